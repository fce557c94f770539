"""Following the batches of a ``run`` to their end, and asking what becomes of them at Ctrl-C."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from batchd import config
from batchd.cli.display import formatting, progress
from batchd.cli.runs.errand import DaemonConnection
from batchd.errors import NoDaemonError
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow

#: The time between two looks whether the daemon is still there.
_ALIVE_S = 1.0


#: How it ends: the batches have, somebody left them, or their daemon ended under them.
End: TypeAlias = Literal["done", "left", "gone"]


def follow(
    settings: config.Config, daemon: DaemonConnection, names: Sequence[str], *, quiet: bool
) -> End:
    """Show how batches go until they have ended, or no one is left to wait for."""
    with StoreReader(formatting.store_path(Path(settings.paths.state))) as reader:

        def find(books: progress.ProgressSource) -> list[BatchRow]:
            return [books.batch(name) for name in names]

        watch, ended = progress.ProgressWatch(reader, find), _ended(daemon)
        while True:
            try:
                progress.follow(watch, ended, quiet=quiet)
            except KeyboardInterrupt:
                left = [row.batch.name for row in find(reader) if row.published_at is None]
                if left and not _goes_on(daemon, left):
                    return "left"
            else:
                over = all(row.published_at is not None for row in find(reader))
                return "done" if over else "gone"


def _ended(daemon: DaemonConnection) -> Callable[[Sequence[BatchRow]], bool]:
    """Return why there is nothing to wait for any more, for each such batch."""
    asked = time.monotonic()

    def ended(rows: Sequence[BatchRow]) -> bool:
        nonlocal asked
        daemon.show_lines()
        if all(row.published_at is not None for row in rows):
            return True
        if time.monotonic() - asked < _ALIVE_S:
            return False
        asked = time.monotonic()
        return not daemon.alive()

    return ended


def _goes_on(daemon: DaemonConnection, names: Sequence[str]) -> bool:
    """Ask what is to become of what is left, where somebody can answer;
    return whether it is still waited for.
    """
    answer = "c"
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            answer = input("\nCancel what is left (c), leave it running (l), or wait on (Enter)? ")
        except EOFError:
            answer = "l"
        except KeyboardInterrupt:
            print(f"\n{daemon.without_us(names)}", file=sys.stderr)
            raise
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
