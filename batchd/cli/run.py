"""``batchd run``: has task files worked on here and now, by the daemon that is there or by one for them alone."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from batchd import config, sealing
from batchd.cli import (
    admission,
    common,
    ending,
    errand,
    following,
    given,
    leftovers,
    private,
    trial,
)
from batchd.config import own
from batchd.errors import NoDaemonError, NotPossibleError, TaskFileError, UsageError
from batchd.log import escape_text
from batchd.observe import words
from batchd.records import Task
from batchd.store.reader import Reader
from batchd.store.rows import BatchRow

#: What a task file is called, as far as anything is usual.
_USUAL = "task.json"
#: How many tasks a trial takes, where the user asks for one.
_TRIAL = 3


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
    if not args.files:
        _ask(args, settings)
    if any(number is not None and number < 1 for number in (args.first, args.processes)):
        raise UsageError("--first and --processes want a number from 1 on")
    files = [(name, given.read_file(name, settings)) for name in args.files]
    if args.first is not None:
        files = [(name, trial.cut(name, data, args.first, settings)) for name, data in files]
    files = [(Path(name).name, data) for name, data in files]
    # Every error now, before anything is paid, or made.
    found = [given.parsed(data, name, settings) for name, data in files]
    tasks = [task for parsed in found for task in parsed.tasks]
    if args.here:
        here = str(Path("outbox").absolute())
        settings = dataclasses.replace(
            settings, paths=dataclasses.replace(settings.paths, outbox=here)
        )
    if args.private:
        if any(parsed.after_batches for parsed in found):
            raise UsageError("--private knows no other batches: leave it out, or `after_batches`")
        _refuse(settings, tasks)
        return private.run(
            settings, files, serial=args.serial, processes=args.processes, as_json=args.json
        )
    # As Ctrl-C, for who stops a program by its number.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return _have_done(args, settings, files, tasks)


def _have_done(
    args: argparse.Namespace,
    settings: config.Config,
    files: Sequence[tuple[str, bytes]],
    tasks: Sequence[Task],
) -> int:
    daemon = errand.running(settings, processes=args.processes)
    if daemon is None and (over := leftovers.over(settings, files)):
        return ending.report(_rows(settings, [batch.name for batch in over]), as_json=args.json)
    if daemon is None:
        _refuse(settings, tasks)
        admission.refuse_paused(settings, {task.model for task in tasks})
        daemon = errand.start(settings, processes=args.processes)
    with daemon:
        names = [
            daemon.ended(name, data) or daemon.hand_over(name, data, serial=args.serial)
            for name, data in files
        ]
        end = following.follow(settings, daemon, names, quiet=args.json)
    rows = _rows(settings, names)
    if end != "done":
        finished = sum(row.finished for row in rows)
        whole = words.counted(sum(row.tasks for row in rows), "task")
        said = f"{finished:,} of {whole} done"
        if end == "left":
            print(f"{said}. batchd status {' '.join(names)}", file=sys.stderr)
            return 130
        raise NoDaemonError(
            f"{said}: the daemon has ended under it. `batchd run` of the same file goes on with "
            "it, and so does `batchd serve`"
        )
    daemon.forget(row.batch for row in rows)
    code = ending.report(rows, as_json=args.json)
    sys.stdout.flush()
    daemon.leave()
    return code


def _rows(settings: config.Config, names: Sequence[str]) -> list[BatchRow]:
    """Return how batches stand."""
    with Reader(common.store_path(Path(settings.paths.state))) as reader:
        return [reader.batch(name) for name in names]


def _refuse(settings: config.Config, tasks: Sequence[Task]) -> None:
    """Refuse what every task would end with: no key, no outbox. Raises ``NotPossibleError``."""
    from batchd import visible  # noqa: PLC0415 (loads the sandbox; a running daemon has looked)

    visible.refuse(settings)
    models = {task.model for task in tasks}
    if settings.evaluation.judge_model and any(task.evaluator == "judge" for task in tasks):
        models.add(settings.evaluation.judge_model)
    for provider in sorted({model.partition("/")[0] for model in models}):
        settings.endpoint(provider)
    own.prepare(settings.paths, settings.environ)
    outbox = Path(settings.paths.outbox)
    try:
        outbox.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=outbox):
            pass
    except OSError as error:
        raise NotPossibleError(f"the outbox {outbox} cannot be written: {error.strerror}") from None
    Path(settings.paths.state).mkdir(mode=0o700, parents=True, exist_ok=True)


def _ask_file(usual: str, settings: config.Config) -> tuple[str, int]:
    """Ask for a task file until one is valid; return its name, and how many tasks it has."""
    while True:
        name = input(f"Task file [{usual}]: " if usual else "Task file: ").strip() or usual
        if not name:
            raise UsageError("nothing was started: it needs a task file")
        try:
            data = given.read_file(name, settings)
            return name, len(given.parsed(data, Path(name).name, settings).tasks)
        except (UsageError, TaskFileError) as error:
            print(escape_text(str(error)))


def _ask(args: argparse.Namespace, settings: config.Config) -> None:
    """Ask for the file and the mode, as long as somebody is there to answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("name a task file: batchd run FILE")
    try:
        # Nothing is offered that is not there.
        usual = _USUAL if Path(_USUAL).is_file() else ""
        name, count = _ask_file(usual, settings)
        parallel = settings.pool.processes * settings.pool.agents_per_process
        print(
            f"{words.counted(count, 'task')}. How shall they run?",
            f"  1  parallel, {parallel} at a time",
            "  2  serial, one after another",
            *([f"  3  a trial, the first {_TRIAL} only"] if count > _TRIAL else []),
            "  q  not at all",
            sep="\n",
        )
        choices = ("1", "2", *(["3"] if count > _TRIAL else []), "q")
        while (choice := input("Choose [1]: ").strip() or "1") not in choices:
            print(f"It is one of {', '.join(choices)}.")
    except EOFError:
        choice = "q"
    if choice == "q":
        raise UsageError("nothing was started")
    args.files = [name]
    args.serial = choice == "2"
    args.first = _TRIAL if choice == "3" else args.first
