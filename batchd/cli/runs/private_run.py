"""``run --private``: works on task files in a state of the run's own, which goes with its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import queue
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from batchd import config, log, trees, words
from batchd.cli.display import formatting, progress
from batchd.cli.runs import batch_ends
from batchd.errors import NotPossibleError, StoreError
from batchd.spool import claims
from batchd.store.reader import StoreReader

#: What is said at the first Ctrl-C.
_STOPPING = "Stopping: what is left is cancelled. Ctrl-C again ends it at once."


def run(
    settings: config.Config,
    files: Sequence[tuple[str, bytes]],
    *,
    serial: bool,
    processes: int | None,
    as_json: bool,
) -> int:
    """Work on files, names and contents; end with the summaries, and their exit code."""
    settings = _private(settings, serial=serial, processes=processes)
    # What tasks meet stands in the journal, and progress says how they end: that is for people.
    log.configure(formatting.level(settings), settings.log.format, settings.log.file)
    notes: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        with _progress(settings, notes, quiet=as_json):
            asyncio.run(_work(settings, files, lambda: notes.put(_STOPPING)))
    except NotPossibleError:
        _forget_unused(Path(settings.paths.state))
        raise
    except KeyboardInterrupt:
        # Too early for the daemon to take it, or too late.
        if _forget_unused(Path(settings.paths.state)):
            raise
    return _end(settings, len(files), as_json=as_json)


async def _work(
    settings: config.Config,
    files: Sequence[tuple[str, bytes]],
    interrupted: Callable[[], None],
) -> None:
    from batchd.daemon import Daemon  # loads everything; not for wrong arguments
    from batchd.report.maker import ReportMaker

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
    state = Path(settings.paths.state)
    mark = claims.mark(state)
    own = state / f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    own.mkdir(mode=0o700, parents=True)
    # Its results go to this spool's outbox.
    (own / "claims").write_text(f"{mark:x}\n")
    return dataclasses.replace(
        settings,
        paths=dataclasses.replace(settings.paths, state=str(own)),
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
        # What is wrong with the store, the work itself reports;
        # and the reader of our output may have gone.
        with contextlib.suppress(StoreError, BrokenPipeError):
            reader = progress.open_reader(
                formatting.store_path(Path(settings.paths.state)), over.is_set
            )
            if reader is not None:
                with reader:
                    progress.follow(
                        progress.ProgressWatch(reader, lambda r: r.batches()[::-1]),
                        lambda _: over.is_set(),
                        notes=lambda: [notes.get() for _ in range(notes.qsize())],
                    )

    thread = threading.Thread(target=watch, name="progress")
    if not quiet:
        thread.start()
    try:
        yield
    finally:
        # The rest takes a moment: a Ctrl-C would end nothing by now,
        # but what there is to say at the end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        over.set()
        if not quiet:
            thread.join()


def _forget_unused(state: Path) -> bool:
    """Remove a state in which no batch was stored, and say whether:
    the run ended before it began.
    """
    store = formatting.store_path(state)
    if store.exists():
        with StoreReader(store) as reader:
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
    with StoreReader(formatting.store_path(state)) as reader:
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
    return batch_ends.report(rows, as_json=as_json)
