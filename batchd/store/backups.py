"""Backups of a store, and what is put back of one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from batchd import trees
from batchd.errors import (
    StoreError,
    UsageError,
)
from batchd.store.database_file import (
    NONSENSE,
    apply_migrations,
    check,
    connect,
    copy,
    explain,
    open_writer,
    parts,
    reading,
    refuse_empty,
    settle,
    staged,
    version_of,
)
from batchd.store.stored_values import unpack_task

#: What to do about a backup that is of no use.
_NO_BACKUP = "nothing was changed: name another backup"


def draft(source: Path, path: Path) -> Path:
    """Return a migrated copy of the database ``source``,
    beside ``path``, whose place it is to take.

    Raises ``StoreError``: it is no database of batchd, it is damaged, a newer batchd's, it names
    what lies elsewhere, or there is no room.
    """
    settle(path)
    fix = "" if _same(source, path) else _NO_BACKUP
    made = path.with_name(f".{path.name}.draft")
    discard(made)
    try:
        with contextlib.closing(_opened(source, fix)) as db:
            copy(db, made)
        with contextlib.closing(connect(made)) as db:
            apply_migrations(db, version_of(db, made))
            _check_names(db, source)
    except (sqlite3.Error, *NONSENSE, OSError) as error:
        discard(made)
        raise explain(error, source, fix) from error
    return made


def fresh(path: Path) -> Path:
    """Return a new store without a task, beside ``path``, whose place it is to take.

    Raises ``StoreError``.
    """
    settle(path)
    made = path.with_name(f".{path.name}.draft")
    discard(made)
    open_writer(made).close()
    return made


def put_in_place(made: Path, path: Path) -> Path | None:
    """Put a draft that no process has open in the store's place;
    return where the former one lies, if there was one.

    Only who holds the spool's lock may call it. Raises ``OSError``.
    """
    trees.sync(made)
    made.replace(staged(path))
    trees.sync(path.parent)
    former = settle(path)
    return former if former and former.exists() else None


def discard(made: Path) -> None:
    """Take a draft away."""
    for part in (*parts(made), made.with_name(f".{made.name}.tmp")):
        part.unlink(missing_ok=True)


def back_up(path: Path, target: Path) -> int:
    """Copy the store, beside its daemon or without one, to ``target``; return its bytes.

    Raises ``UsageError`` for a target that is the store itself, or no file, ``StoreError``.
    """
    for part in parts(path):
        # By its name too:
        # a log that is not there now would be taken for the store's at the next start.
        if _same(target, part):
            raise UsageError(f"{target} is {part}, a part of the store itself: name another file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a file, so a backup cannot replace it")
    try:
        with contextlib.closing(_opened(path)) as db:
            copy(db, target)
        return target.stat().st_size
    except (sqlite3.Error, *NONSENSE, OSError) as error:
        raise explain(error, path) from error


def _same(path: Path, other: Path) -> bool:
    """Whether two paths mean the same file, be it there or not."""
    if path.exists() and other.exists() and path.samefile(other):
        return True
    return path.resolve() == other.resolve()


def _opened(source: Path, fix: str = "") -> sqlite3.Connection:
    """Open a database of batchd, sound and of no later version, to be read.

    Raises ``StoreError``.
    """
    if not source.is_file():
        raise StoreError(f"{source} does not exist, or is not a file")
    refuse_empty(source, fix)
    db = sqlite3.connect(reading(source), uri=True, isolation_level=None)
    try:
        version_of(db, source, fix)
        check(db, source, fix)
    except BaseException:
        db.close()
        raise
    return db


def _check_names(db: sqlite3.Connection, source: Path) -> None:
    """Raise ``StoreError`` for a name that is more than a name, as no batchd writes one."""
    for what, name in _names(db):
        if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise StoreError(
                f"{source}: {what} has the name {name!r}, which is a path; {_NO_BACKUP}"
            )
    for (outbox,) in db.execute("SELECT DISTINCT outbox FROM batches"):
        if not str(outbox).startswith("/"):
            raise StoreError(
                f"{source}: the outbox {outbox!r} is not an absolute path; {_NO_BACKUP}"
            )


def _names(db: sqlite3.Connection) -> Iterator[tuple[str, object]]:
    for batch, claim, request in db.execute("SELECT name, claim, request FROM batches"):
        yield from (("a batch", batch), ("a claim", claim), ("the file of a batch", request))
    for (task,) in db.execute("SELECT name FROM tasks"):
        yield "a task", task
    # What is published needs no directory any more.
    waiting = "SELECT s.body FROM tasks t JOIN specs s ON s.task = t.id WHERE t.published = 0"
    for (body,) in db.execute(waiting):
        task = unpack_task(body)
        yield "a task", task.id
        if task.dir and not task.dir.startswith("/"):
            yield "the directory of a task", task.dir  # no batchd stores one that is not whole
        if task.origin and task.origin.kind == "copy" and task.origin.remote:
            yield "the directory that a task gets a copy of", task.origin.source
