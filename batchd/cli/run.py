"""``batchd run``: has task files worked on here and now,
by the daemon that is there or by one for them alone.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from batchd import config, sealing
from batchd.cli.runs.standby import Standby, ahead
from batchd.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="task files; none: asks for one")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--serial", action="store_true", help="one task of a file after another")
    mode.add_argument(
        "--processes", type=int, metavar="N", help="worker processes, where no daemon runs"
    )
    parser.add_argument("--first", type=int, metavar="N", help="a trial: the first N tasks only")
    parser.add_argument("--here", action="store_true", help="results in ./outbox")
    parser.add_argument(
        "--private", action="store_true", help="in a store of its own, which goes with its end"
    )
    parser.add_argument("--json", action="store_true", help="no progress; the summaries, as JSON")
    parser.epilog = (
        "Where a daemon runs on the spool, it does the work. Else one is started that works on these "
        "files and on nothing else. Ctrl-C asks whether to cancel what is left or to leave it running; what "
        "is killed half-finished goes on with the next `batchd run` of the same file."
    )


def run(args: argparse.Namespace) -> int:
    """Have it done, show how it goes, end with the summaries."""
    sealing.seal()
    settings = config.load(args.config)
    sealing.forget(settings.variables())
    for option, number in (("--first", args.first), ("--processes", args.processes)):
        if number is not None and number < 1:
            raise UsageError(f"{option} wants a number from 1 on, not {number}")
    if not args.files:
        from batchd.cli.runs import run_questions  # noqa: PLC0415 (for who answers)

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
    from batchd.cli.runs import working  # noqa: PLC0415 (what it loads, it loads beside the daemon)

    return working.work(args, settings, standby)
