"""Copies of the store: made whole beside its daemon, and put in its place."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from pathlib import Path

from batchd import trees

#: What a database's note of what it has acknowledged is called, behind its own name.
_WITNESS = "-acked"
#: And what keeps room for it, which holds nothing.
_BALLAST = "-ballast"
#: A database and what SQLite, and we, keep beside it.
_PARTS = ("", "-wal", "-shm", "-journal", _WITNESS)


def copy(db: sqlite3.Connection, target: Path) -> None:
    """Copy a database, what stands in its log included,
    to ``target``: whole and durable, or not at all.

    What is there is replaced. Raises ``sqlite3.Error``, ``OSError``.
    """
    draft = target.with_name(f".{target.name}.tmp")
    draft.unlink(missing_ok=True)
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        twin = sqlite3.connect(draft, isolation_level=None)
        try:
            db.backup(twin)
            # One file alone, which needs no log beside it.
            twin.execute("PRAGMA journal_mode = DELETE")
        finally:
            twin.close()
        trees.sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)  # gives the room back, if that was the trouble
        raise
    trees.sync(target.parent)


def witness(path: Path) -> Path:
    """Return where it is noted what the database at ``path`` has acknowledged."""
    return path.with_name(path.name + _WITNESS)


def ballast(path: Path) -> Path:
    """Return the file that keeps room for what the database at ``path`` must be able to write."""
    return path.with_name(path.name + _BALLAST)


def staged(path: Path) -> Path:
    """Return where a database waits that is to replace the one at ``path``.

    It appears there whole. From then on the exchange is decided, and every opening completes it: a
    crash can come between its steps.
    """
    return path.with_name(f"{path.name}.restored")


def parts(path: Path) -> list[Path]:
    """Return the files that the database at ``path`` may consist of,
    one that is to replace it included.
    """
    kept = (*_PARTS, _BALLAST)
    return [*(path.with_name(path.name + part) for part in kept), staged(path)]


def settle(path: Path) -> Path | None:
    """Complete the exchange that was decided, if one was;
    return where the former database lies now.
    """
    new = staged(path)
    if not new.exists():
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(new.stat().st_mtime))
    former = f"{path.name}.before-restore-{stamp}"
    # None of them may stay: the log of one database destroys another one.
    for part in _PARTS:
        old = path.with_name(path.name + part)
        if os.path.lexists(old):
            old.replace(path.with_name(former + part))
    ballast(path).unlink(missing_ok=True)  # the next daemon lays its own
    trees.sync(path.parent)
    new.replace(path)
    trees.sync(path.parent)
    return path.with_name(former)


def reserve(folder: Path, size: int) -> None:
    """Take so many bytes of a folder's disk, and give them back.

    Raises ``OSError`` where they are not there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
