"""Many tasks of one batch at once: read by one query,
ended and noted as published in one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from batchd.events import TaskFinished, decode, encode
from batchd.records import Ref, Task
from batchd.store.lookups import batch_key
from batchd.store.stored_values import error_message, pack, unpack, unpack_task
from batchd.store.task_transaction import INSERT_EVENT, TaskTransaction

_NAMED = "t.name IN (SELECT value FROM json_each(?))"
#: All that an end changes in the row of a task that has no other event.
_END = """
    UPDATE tasks SET status = ?2, reason = ?3, message = ?4, since = ?5, finished_at = ?5,
        last_at = ?5, seq = 1, step = 'TaskFinished'
    WHERE id = ?1
"""


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
    """Store the ends of tasks that have none, each of another one, also while a worker has them;
    return for each whether it is the one.
    """
    by_batch: dict[str, dict[str, TaskFinished]] = {}
    for ref, event in found:
        by_batch.setdefault(ref.batch, {})[ref.task] = event
    stored: set[Ref] = set()
    for batch, ends in by_batch.items():
        stored |= _finish_unbegun(journal, batch, ends)
        journal.load(batch, [name for name in ends if Ref(batch, name) not in stored])
    return [ref in stored or journal.finish(ref, event, None) for ref, event in found]


def _finish_unbegun(
    journal: TaskTransaction, batch: str, ends: Mapping[str, TaskFinished]
) -> set[Ref]:
    """Store the ends of those tasks of a batch that have no event, and that no worker has;
    return which these are.

    Their rows are not loaded: such an end changes a few columns, and no sum.
    """
    key, db = batch_key(journal.db, batch), journal.db
    rows = db.execute(
        "SELECT t.name, t.id FROM tasks t"  # noqa: S608 (constants)
        f" WHERE t.batch = ? AND t.seq = 0 AND t.finished_at IS NULL AND {_NAMED}",
        (key, json.dumps(journal.unloaded(batch, ends))),
    )
    ids: dict[str, int] = dict(rows.fetchall())
    if not ids:
        return set()
    events, tasks = [ends[name] for name in ids], list(ids.values())
    pairs = zip(tasks, events, strict=True)
    db.executemany(INSERT_EVENT, ((t, 0, pack(encode(event))) for t, event in pairs))
    db.executemany(_END, ((t, *_columns(e)) for t, e in zip(tasks, events, strict=True)))
    journal.follow_ends(key, tasks, Counter(e.status for e in events), max(e.at for e in events))
    journal.events += len(events)
    return {Ref(batch, name) for name in ids}


def _columns(end: TaskFinished) -> tuple[str, str | None, str, float]:
    reason = end.reason.value if end.reason else None
    return end.status.value, reason, error_message(end.result), end.at


def published(journal: TaskTransaction, batch: str, names: Sequence[str]) -> None:
    """Note that results of a batch lie in the outbox."""
    cursor = journal.db.execute(
        f"UPDATE tasks AS t SET published = 1 WHERE t.batch = ? AND t.finished_at IS NOT NULL AND {_NAMED}",  # noqa: S608 (constants)
        (batch_key(journal.db, batch), json.dumps(names)),
    )
    if cursor.rowcount != len(names):
        raise ValueError(f"{batch}: {len(names) - cursor.rowcount} have no result yet")
