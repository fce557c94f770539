"""``batchd run``: works on task files here and now, in a state of its own, without a daemon."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import queue
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from batchd import config, log, sealing, trees
from batchd.cli import common, ending, progress, trial
from batchd.cli.submit import read_file
from batchd.config import own
from batchd.errors import NotPossibleError, StoreError, UsageError
from batchd.observe import words
from batchd.records import Task
from batchd.spool import taskfile
from batchd.store.reader import Reader

#: What is said at the first Ctrl-C.
_STOPPING = "Stopping: what is left is cancelled. Ctrl-C again ends it at once."
#: What a task file is called, as far as anything is usual.
_USUAL = "task.json"
#: How many tasks a trial takes, where the user asks for one.
_TRIAL = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="task files; none: asks for one")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--serial", action="store_true", help="one task after another")
    mode.add_argument("--processes", type=int, metavar="N", help="worker processes")
    parser.add_argument("--first", type=int, metavar="N", help="a trial: the first N tasks only")
    parser.add_argument("--json", action="store_true", help="no progress; the summaries, as JSON")


def run(args: argparse.Namespace) -> int:
    """Work, show how it goes, end with the summaries."""
    sealing.seal()
    settings = config.load(args.config)
    sealing.forget(settings.variables())
    if not args.files:
        _ask(args, settings)
    if any(number is not None and number < 1 for number in (args.first, args.processes)):
        raise UsageError("--first and --processes want a number from 1 on")
    files = [(name, read_file(name, settings)) for name in args.files]
    if args.first is not None:
        files = [(name, trial.cut(name, data, args.first, settings)) for name, data in files]
    files = [(Path(name).name, data) for name, data in files]
    # Every error now, before anything is paid, or made.
    from batchd.daemon import visible  # noqa: PLC0415 (as below)

    visible.refuse(settings)
    own.prepare(settings.paths, settings.environ)
    _refuse(settings, [t for n, d in files for t in taskfile.parse(d, n, settings).tasks])
    # The parent of the run's own state: as private as that.
    Path(settings.paths.state).mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = _private(settings, serial=args.serial, processes=args.processes)
    # What tasks meet stands in the journal, and progress tells how they end: that is for people.
    log.configure("error", settings.log.format, settings.log.file)
    notes: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        with _progress(settings, notes, quiet=args.json):
            asyncio.run(_work(settings, files, lambda: notes.put(_STOPPING)))
    except NotPossibleError:
        _forget_unused(Path(settings.paths.state))
        raise
    except KeyboardInterrupt:
        # Too early for the daemon to take it, or too late.
        if _forget_unused(Path(settings.paths.state)):
            raise
    return _end(settings, len(files), as_json=args.json)


def _refuse(settings: config.Config, tasks: Sequence[Task]) -> None:
    """Refuse what every task would end with: no key, no outbox. Raises ``NotPossibleError``."""
    models = {task.model for task in tasks}
    if settings.evaluation.judge_model and any(task.evaluator == "judge" for task in tasks):
        models.add(settings.evaluation.judge_model)
    for provider in sorted({model.partition("/")[0] for model in models}):
        settings.endpoint(provider)
    outbox = Path(settings.paths.outbox)
    try:
        outbox.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=outbox):
            pass
    except OSError as error:
        raise NotPossibleError(f"the outbox {outbox} cannot be written: {error.strerror}") from None


async def _work(
    settings: config.Config,
    files: Sequence[tuple[str, bytes]],
    interrupted: Callable[[], None],
) -> None:
    from batchd.daemon import Daemon  # noqa: PLC0415 (loads everything; not for wrong arguments)
    from batchd.report.maker import ReportMaker  # noqa: PLC0415 (as above)

    # The run's state is gone when its reports are read.
    reports = ReportMaker(orders=False)
    await Daemon(settings, watch=False, finishers=[reports]).run_once(files, interrupted)


def _private(settings: config.Config, *, serial: bool, processes: int | None) -> config.Config:
    """Return the configuration of this run: a state of its own, and nothing is parked for long."""
    pool = settings.pool
    if serial:
        pool = dataclasses.replace(pool, processes=1, agents_per_process=1)
    elif processes is not None:
        pool = dataclasses.replace(pool, processes=processes)
    name = f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return dataclasses.replace(
        settings,
        paths=dataclasses.replace(settings.paths, state=str(Path(settings.paths.state, name))),
        pool=pool,
        governor=dataclasses.replace(settings.governor, max_parked_s=0.0),
    )


@contextlib.contextmanager
def _progress(
    settings: config.Config, notes: queue.SimpleQueue[str], *, quiet: bool
) -> Iterator[None]:
    """Show progress, and ``notes``, from a thread, while the daemon works in this one."""
    over = threading.Event()

    def watch() -> None:
        # What is wrong with the store, the work itself will tell; and whoever read our output may have gone.
        with contextlib.suppress(StoreError, BrokenPipeError):
            reader = progress.open_reader(
                common.store_path(Path(settings.paths.state)), over.is_set
            )
            if reader is not None:
                with reader:
                    progress.follow(
                        reader,
                        lambda r: r.batches()[::-1],
                        lambda _: over.is_set(),
                        notes=lambda: [notes.get() for _ in range(notes.qsize())],
                    )

    thread = threading.Thread(target=watch, name="progress")
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        # The rest takes a moment: a Ctrl-C would end nothing by now, but what there is to say at the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        over.set()
        if not quiet:
            thread.join()


def _forget_unused(state: Path) -> bool:
    """Remove a state in which no batch was stored, and say whether: the run ended before it began."""
    store = common.store_path(state)
    if store.exists():
        with Reader(store) as reader:
            if reader.batches(limit=1):
                return False
    _remove(state)
    return True


def _remove(state: Path) -> None:
    """Remove the run's own state, as far as that goes."""
    with contextlib.suppress(OSError):
        trees.remove(state)


def _end(settings: config.Config, files: int, *, as_json: bool) -> int:
    state = Path(settings.paths.state)
    with Reader(common.store_path(state)) as reader:
        rows = reader.batches()[::-1]
    if not rows:  # interrupted before anything was taken up
        _remove(state)
        return 130
    if len(rows) < files or any(row.published_at is None for row in rows):
        done = sum(row.finished for row in rows)
        print(
            f"Stopped: {done:,} of {words.counted(sum(r.tasks for r in rows), 'task')} done, results "
            f"in {settings.paths.outbox}; the journal of the rest is kept in {state}.\n"
            f"To go on with the rest: BATCHD_PATHS__STATE={shlex.quote(str(state))} batchd serve",
            file=sys.stderr,
        )
        return 130
    # All that counts lies in the outbox now.
    _remove(state)
    return ending.report(rows, as_json=as_json)


def _ask(args: argparse.Namespace, settings: config.Config) -> None:
    """Ask for the file and the mode, as long as somebody is there to answer."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("name a task file: batchd run FILE")
    try:
        # Nothing is offered that is not there.
        usual = _USUAL if Path(_USUAL).is_file() else ""
        name = input(f"Task file [{usual}]: " if usual else "Task file: ").strip() or usual
        if not name:
            raise UsageError("nothing was started: it needs a task file")
        count = len(taskfile.parse(read_file(name, settings), Path(name).name, settings).tasks)
        parallel = settings.pool.processes * settings.pool.agents_per_process
        print(
            f"{words.counted(count, 'task')}. How shall they run?",
            f"  1  parallel, {parallel} at a time",
            "  2  serial, one after another",
            f"  3  a trial, the first {_TRIAL} only",
            "  q  not at all",
            sep="\n",
        )
        choice = input("Choose [1]: ").strip() or "1"
    except EOFError:
        choice = "q"
    if choice not in {"1", "2", "3"}:
        raise UsageError("nothing was started")
    args.files = [name]
    args.serial = choice == "2"
    args.first = _TRIAL if choice == "3" else args.first
