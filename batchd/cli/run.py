"""``batchd run``: has task files worked on here and now,
by the daemon that is there or by one for them alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from batchd import config, sealing, silent_paths
from batchd.cli.runs.standby import Standby, ahead
from batchd.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="task files; without one, run asks for it"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--serial",
        action="store_true",
        help="one task at a time; where a daemon runs, one of each file",
    )
    mode.add_argument(
        "--processes", type=int, metavar="N", help="worker processes, where no daemon runs"
    )
    parser.add_argument("--first", type=int, metavar="N", help="a trial: the first N tasks only")
    parser.add_argument("--here", action="store_true", help="write results to ./outbox")
    parser.add_argument(
        "--private", action="store_true", help="use a store of its own, which is gone at the end"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summaries as JSON, without progress"
    )
    parser.epilog = (
        "If a daemon runs on the spool, it does the work. Otherwise run starts one that works "
        "on these files alone. Ctrl-C asks whether to cancel what is left, or to leave it "
        "running. If a run is killed, the next `batchd run` of the same file goes on with it."
    )


def run(args: argparse.Namespace) -> int:
    """Run the files, show progress, end with the summaries."""
    sealing.seal()
    settings = config.load(args.config)
    silent_paths.refuse(settings.paths.state)
    sealing.forget(settings.variables())
    for option, number in (("--first", args.first), ("--processes", args.processes)):
        if number is not None and number < 1:
            raise UsageError(f"{option} needs a number, 1 or more, not {number}")
    if not args.files:
        from batchd.cli.runs import run_questions  # for who answers

        run_questions.ask(args, settings)
    if args.here:
        here = str(Path("outbox").absolute())
        settings = dataclasses.replace(
            settings, paths=dataclasses.replace(settings.paths, outbox=here)
        )
    if args.private:
        return _worked(args, settings, None)
    with ahead(settings, args.processes) as standby:
        return _worked(args, settings, standby)


def _worked(args: argparse.Namespace, settings: config.Config, standby: Standby | None) -> int:
    from batchd.cli.runs import working  # what it loads, it loads beside the daemon

    return working.work(args, settings, standby)
