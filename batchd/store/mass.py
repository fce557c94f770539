"""Many tasks of one batch at once: read by one query,
ended and noted as published in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from batchd.events import TaskFinished, decode
from batchd.records import Ref, Task
from batchd.store.lookups import batch_key
from batchd.store.stored_values import unpack, unpack_task
from batchd.store.task_transaction import TaskTransaction

_NAMED = "t.name IN (SELECT value FROM json_each(?))"


def unbegun(db: sqlite3.Connection, batch: str, names: Sequence[str]) -> list[Task]:
    """Return those of some tasks that have no event yet,
    in order, without the values of their secrets.
    """
    rows = db.execute(
        "SELECT p.body FROM tasks t JOIN specs p ON p.task = t.id"  # noqa: S608 (constants)
        f" WHERE t.batch = ? AND t.seq = 0 AND {_NAMED} ORDER BY t.id",
        (batch_key(db, batch), json.dumps(names)),
    )
    return [unpack_task(body) for (body,) in rows]


def ends(
    db: sqlite3.Connection, batch: str, names: Sequence[str]
) -> list[tuple[Ref, TaskFinished]]:
    """Return the ends of tasks that have ended, in order."""
    rows = db.execute(
        "SELECT t.name, e.body FROM tasks t JOIN events e ON e.task = t.id AND e.seq = t.seq - 1"  # noqa: S608 (constants)
        f" WHERE t.batch = ? AND t.finished_at IS NOT NULL AND {_NAMED} ORDER BY t.id",
        (batch_key(db, batch), json.dumps(names)),
    )
    found = []
    for name, body in rows:
        event = decode(unpack(body))
        assert isinstance(event, TaskFinished), "nothing is appended after a task's end"
        found.append((Ref(batch, name), event))
    return found


def finish(journal: TaskTransaction, found: Sequence[tuple[Ref, TaskFinished]]) -> list[bool]:
    """Store the ends of tasks that have none, also while a worker has them;
    return for each whether it is the one.
    """
    named: dict[str, list[str]] = {}
    for ref, _ in found:
        named.setdefault(ref.batch, []).append(ref.task)
    for batch, names in named.items():
        journal.load(batch, names)
    return [journal.finish(ref, event, None) for ref, event in found]


def published(journal: TaskTransaction, batch: str, names: Sequence[str]) -> None:
    """Note that results of a batch lie in the outbox."""
    cursor = journal.db.execute(
        f"UPDATE tasks AS t SET published = 1 WHERE t.batch = ? AND t.finished_at IS NOT NULL AND {_NAMED}",  # noqa: S608 (constants)
        (batch_key(journal.db, batch), json.dumps(names)),
    )
    if cursor.rowcount != len(names):
        raise ValueError(f"{batch}: {len(names) - cursor.rowcount} have no result yet")
