"""Tickets for what ``batchd run`` has handed over:
a file each in the state directory, locked as long as its ``run`` lives.

By them a ``run`` knows what another of the same file has left,
from what was dropped or is run again by an order.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

_FOLDER = "runs"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def issued(state: Path) -> set[str]:
    """Return the claims that have a ticket, by ULID."""
    with contextlib.suppress(FileNotFoundError), os.scandir(state / _FOLDER) as entries:
        return {entry.name for entry in entries}
    return set()


def issue(state: Path, claim: str) -> int:
    """Make a claim's ticket, locked until the descriptor that is returned is closed.

    Raises ``OSError``.
    """
    folder = state / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / claim, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def take(state: Path, claim: str) -> int | None:
    """Lock the ticket of a claim whose ``run`` has gone, as ``issue`` does;
    None: it lives, or the ticket is gone.
    """
    try:
        descriptor = os.open(state / _FOLDER / claim, _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def forget(state: Path, claim: str) -> None:
    """Remove a ticket: what it is for has ended."""
    (state / _FOLDER / claim).unlink(missing_ok=True)
