"""Following the batches of a ``run`` to their end, and asking what becomes of them at Ctrl-C."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn, TypeAlias

from batchd import config
from batchd.cli.display import formatting, progress
from batchd.cli.runs.run_daemon import RunDaemon
from batchd.errors import NoDaemonError
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow

#: The time between two looks whether the daemon is still there.
_ALIVE_S = 1.0
#: … and, while somebody is asked, whether the batches have ended.
_LOOK_S = 1.0


#: How it ends: the batches have, somebody left them, or their daemon ended under them.
End: TypeAlias = Literal["done", "left", "gone"]


class Terminated(KeyboardInterrupt):
    """SIGTERM. Who stops a program by its number is not there to answer a question."""


def follow(settings: config.Config, daemon: RunDaemon, names: Sequence[str], *, quiet: bool) -> End:
    """Show how batches go until they have ended, or no one is left to wait for."""
    with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:

        def find(books: progress.ProgressSource) -> list[BatchRow]:
            return [books.batch(name) for name in names]

        def over(rows: Sequence[BatchRow]) -> bool:
            daemon.show_lines()
            return ended(rows)

        watch, ended = progress.ProgressWatch(reader, find), _ended(daemon)
        while True:
            try:
                progress.follow(watch, over, quiet=quiet)
            except KeyboardInterrupt as stop:
                left = [row.batch.name for row in find(reader) if row.published_at is None]
                if not left:
                    continue
                asks = (
                    sys.stdin.isatty() and sys.stdout.isatty() and not isinstance(stop, Terminated)
                )
                answer = _answer(daemon, left, lambda: ended(find(reader))) if asks else "c"
                if not _goes_on(daemon, left, answer):
                    return "left"
            else:
                done = all(row.published_at is not None for row in find(reader))
                return "done" if done else "gone"


def terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM as Ctrl-C that nobody is asked about."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
    raise Terminated(number)


def _ended(daemon: RunDaemon) -> Callable[[Sequence[BatchRow]], bool]:
    """Return what says whether there is nothing to wait for any more, by the batches' rows."""
    asked = time.monotonic()

    def ended(rows: Sequence[BatchRow]) -> bool:
        nonlocal asked
        if all(row.published_at is not None for row in rows):
            return True
        if time.monotonic() - asked < _ALIVE_S:
            return False
        asked = time.monotonic()
        return not daemon.alive()

    return ended


def _answer(daemon: RunDaemon, names: Sequence[str], over: Callable[[], bool]) -> str:
    """Ask what is to become of what is left; return the answer, empty where it is over first."""
    question = "\nCancel what is left (c), leave it running (l), or wait on (Enter)? "
    try:
        print(question, end="", flush=True)
        while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            if over():
                print()
                return ""
        return sys.stdin.readline() or "l"
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            print()
            return "c"
        print(f"\n{daemon.without_us(names)}", file=sys.stderr)
        raise


def _goes_on(daemon: RunDaemon, names: Sequence[str], answer: str) -> bool:
    """Carry out what is to become of what is left; return whether it is still waited for."""
    # Meanwhile they may have ended, and their daemon with them: the next look shows that.
    with contextlib.suppress(NoDaemonError):
        match answer.strip().lower()[:1]:
            case "c":
                daemon.cancel(names)
                print("Stopping: what is left is cancelled.", file=sys.stderr)
            case "l":
                daemon.detach(names)
                print(
                    f"It goes on: batchd status {' '.join(names)}; batchd cancel ends it.",
                    file=sys.stderr,
                )
                return False
            case "":
                pass
            case _:
                print("That is not c, l or Enter: still waiting.", file=sys.stderr)
    return True
