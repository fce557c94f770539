"""The names in a store that become parts of paths:
in one that came from elsewhere they may lead anywhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from batchd.errors import StoreError
from batchd.store.stored_values import unpack_task


def check(db: sqlite3.Connection, source: Path, fix: str) -> None:
    """Raise ``StoreError`` for a name that is more than a name, as no batchd writes one."""
    for what, name in _names(db):
        if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise StoreError(f"{source}: {what} has the name {name!r}, which is a path; {fix}")
    for (outbox,) in db.execute("SELECT DISTINCT outbox FROM batches"):
        if not str(outbox).startswith("/"):
            raise StoreError(f"{source}: the outbox {outbox!r} is not an absolute path; {fix}")


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
