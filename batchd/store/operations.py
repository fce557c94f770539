"""Operations on batches and tasks, in the writing thread: on one, or on many of a batch at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import structs

from batchd import decoders
from batchd.errors import Problem, StaleAttemptError, UsedNameError
from batchd.events import TaskFinished
from batchd.records import Batch, Cause, Parking, Ref, Scope, Task, TaskStatus
from batchd.store import lookups
from batchd.store.lookups import BATCH_COLUMNS, NAMED, TRIED, batch_key, claimed, used
from batchd.store.rows import DispatchedTask, LearntRefusal, WaitingNotice
from batchd.store.stored_values import labels_of, pack_secrets, pack_task
from batchd.store.task_transaction import TaskTransaction

T = TypeVar("T")

#: Tasks whose bodies one transaction drops: a bound on how long others wait.
_PRUNE = 50
#: Pages that one transaction gives back to the file system.
_VACUUM = 500


#: Asked in the transaction before anything is written:
#: raises ``BatchdError`` where it is not to be written.
Check: TypeAlias = Callable[[], None]


def wanted() -> None:
    """Let everything be written."""


def interrupted(db: sqlite3.Connection) -> None:
    """Queue again what ran when the last daemon ended:
    no worker of this machine has it any more.
    """
    db.execute(
        "UPDATE tasks SET status = 'queued', worker = iif(instr(worker, '/'), worker, '')"
        " WHERE published = 0 AND status = 'running'"
    )


def touch(journal: TaskTransaction) -> None:
    """Write a page as it is: a commit that shows whether one can be made."""
    (version,) = journal.db.execute("PRAGMA user_version").fetchone()
    journal.db.execute(f"PRAGMA user_version = {version}")


def add_batch(
    journal: TaskTransaction,
    batch: Batch,
    tasks: Sequence[Task],
    problems: Sequence[Problem] = (),
    check: Check = wanted,
) -> Batch:
    """Store a batch; return it as it is stored, or was by an earlier try with the same claim.

    With ``problems`` it is a refused file, finished from the start. Raises ``UsedNameError`` where
    another batch has its name.
    """
    check()
    db = journal.db
    known = claimed(db, batch.claim)
    if known:
        return known
    if used(db, batch.name):
        raise UsedNameError(f"a batch {batch.name} is stored already")
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM tasks").fetchone()
    batch = structs.replace(batch, first_task=last + 1)
    count = len(tasks)
    row = structs.asdict(batch) | {"after_batches": " ".join(batch.after_batches)}
    why = msgspec.json.encode(problems).decode() if problems else None
    ended_at = None if count else batch.received_at
    cursor = db.execute(
        f"INSERT INTO batches ({BATCH_COLUMNS}, problems, tasks, unfinished, finished_at)"  # noqa: S608 (constants)
        f" VALUES ({'?, ' * len(row)}?, ?, ?, ?)",
        (*row.values(), why, count, count, ended_at),
    )
    journal.batches += 1
    key, at = cursor.lastrowid, batch.received_at
    db.executemany(
        "INSERT INTO tasks (id, batch, name, model, dir, priority, after, since, machine, tags, evaluation, prompt_chars)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(last + place, key, t.id, t.model, t.dir, t.priority, " ".join(t.after), at),
                t.machine,
                *labels_of(t),
            )
            for place, t in enumerate(tasks, 1)
        ),
    )
    db.executemany(
        "INSERT INTO specs (task, body) VALUES (?, ?)",
        ((last + place, pack_task(task)) for place, task in enumerate(tasks, 1)),
    )
    secrets = ((last + place, pack_secrets(task)) for place, task in enumerate(tasks, 1))
    db.executemany(
        "INSERT INTO secrets (task, body) VALUES (?, ?)", (row for row in secrets if row[1])
    )
    return batch


def dispatch(journal: TaskTransaction, ref: Ref, worker: str = "") -> DispatchedTask:
    """Give a task to a worker: from now on only the attempt that this returns may record.

    Raises ``StaleAttemptError`` for a task that has ended.
    """
    line = journal.line(ref)
    if line.final:
        raise StaleAttemptError(f"{ref} has ended as {line.status}")
    history = journal.history(line)
    (queued_at,) = journal.db.execute(
        "SELECT received_at FROM batches WHERE id = ?", (line.batch,)
    ).fetchone()
    line.attempt += 1
    line.worker = worker
    journal.move(line, TaskStatus.RUNNING, "", journal.now())
    return DispatchedTask(
        attempt=line.attempt,
        history=history,
        queued_at=decoders.convert(queued_at, float),
        crashes=line.crashes,
    )


def suspend(
    journal: TaskTransaction,
    ref: Ref,
    attempt: int | None,
    status: TaskStatus,
    message: str = "",
    *,
    left: bool = False,
) -> None:
    """Note that a task waits, as ``queued`` or ``parked``, and why.

    ``left``: a worker of another machine may still be at it, which the next daemon has to know.
    ``attempt`` None: the daemon's own word, also on a task that no worker has.
    Raises ``StaleAttemptError`` where the attempt is not the current one, or the task has ended.
    """
    if status.final or status is TaskStatus.RUNNING:
        raise ValueError(f"{ref}: {status} is no status to wait in")
    line = journal.line(ref)
    if line.final or attempt not in {None, line.attempt}:
        raise StaleAttemptError(f"{ref}: attempt {attempt} is over")
    line.worker = line.worker if left else ""
    journal.move(line, status, message, journal.now())


def requeue(journal: TaskTransaction, refs: Sequence[Ref]) -> None:
    """Show tasks as queued that were parked; those that are not, any more, stay what they are."""
    for ref in refs:
        line = journal.line(ref)
        if line.status == TaskStatus.PARKED:
            journal.move(line, TaskStatus.QUEUED, "", journal.now())


def worker_lost(journal: TaskTransaction, ref: Ref, attempt: int, *, alone: bool) -> int:
    """Queue a task again whose worker died; return how many workers died of it so far.

    ``alone``: nothing else was at work in it. Of deaths that others may have caused only the
    first counts, which makes it a suspect.
    """
    line = journal.line(ref)
    if not line.final and line.status == TaskStatus.RUNNING and line.attempt == attempt:
        line.crashes = line.crashes + 1 if alone else max(line.crashes, 1)
        line.worker = ""
        journal.move(line, TaskStatus.QUEUED, "its worker died", journal.now())
    return line.crashes


def park(journal: TaskTransaction, parking: Parking, check: Check = wanted) -> None:
    """Note that something waits from now on;
    one that is known for the same cause keeps its beginning.
    """
    check()
    if parking.cause.reason:
        # A provider has one outage at a time.
        outages = [(parking.scope, parking.name, c) for c in Cause if c.reason]
        journal.db.executemany(
            "DELETE FROM parked WHERE scope = ? AND name = ? AND cause = ?", outages
        )
    journal.db.execute(
        "INSERT INTO parked (scope, name, cause, message, since) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET message = excluded.message",
        (parking.scope, parking.name, parking.cause, parking.message, parking.since),
    )
    if parking.tried_s:
        tried = (parking.scope, parking.name, TRIED, str(parking.tried_s), parking.since)
        journal.db.execute("INSERT OR REPLACE INTO parked VALUES (?, ?, ?, ?, ?)", tried)


def refuse(journal: TaskTransaction, refused: LearntRefusal) -> None:
    """Note what a model refuses; what was known of it is replaced."""
    row = (refused.model, refused.lesson, refused.setting, refused.at)
    journal.db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", row)


def keep_notices(journal: TaskTransaction, notices: Sequence[WaitingNotice]) -> None:
    """Note what is to reach receivers."""
    rows = [(each.receiver, each.id, each.event, each.message) for each in notices]
    journal.db.executemany("INSERT OR IGNORE INTO notices VALUES (?, ?, ?, ?)", rows)


def try_notices(journal: TaskTransaction, receiver: str, ids: Sequence[str], message: str) -> None:
    """Note in which message it is tried."""
    journal.db.executemany(
        "UPDATE notices SET message = ? WHERE receiver = ? AND id = ?",
        [(message, receiver, each) for each in ids],
    )


def drop_notices(journal: TaskTransaction, receiver: str, message: str) -> None:
    """Forget what a message held."""
    journal.db.execute(
        "DELETE FROM notices WHERE receiver = ? AND message = ?", (receiver, message)
    )


def drop_others(journal: TaskTransaction, receivers: Sequence[str]) -> dict[str, int]:
    """Forget what waits for others than these; return how much that was, by name."""
    gone = lookups.notice_counts(journal.db)
    for name in receivers:
        gone.pop(name, None)
    journal.db.executemany("DELETE FROM notices WHERE receiver = ?", [(name,) for name in gone])
    return gone


def unpark(journal: TaskTransaction, scope: Scope, name: str) -> None:
    """Note that something waits no longer, for whatever cause."""
    journal.db.execute("DELETE FROM parked WHERE scope = ? AND name = ?", (scope, name))


def prioritise(
    journal: TaskTransaction,
    refs: Sequence[Ref],
    new: Callable[[int], int],
    check: Check = wanted,
) -> list[int]:
    """Give tasks another priority, made of their own; return it of each."""
    check()
    keys = [(journal.line(ref).id,) for ref in refs]
    own = "SELECT priority FROM tasks WHERE id = ?"
    found = [new(journal.db.execute(own, key).fetchone()[0]) for key in keys]
    journal.db.executemany(
        "UPDATE tasks SET priority = ? WHERE id = ?",
        [(priority, *key) for priority, key in zip(found, keys, strict=True)],
    )
    return found


def published(journal: TaskTransaction, ref: Ref) -> None:
    """Note that a task's result lies in the outbox."""
    published_all(journal, ref.batch, [ref.task])


def batch_published(journal: TaskTransaction, name: str) -> None:
    """Note that a batch's summary lies in the outbox, the last of its files."""
    db = journal.db
    row = db.execute(
        "SELECT id, finished_at, published_at FROM batches WHERE name = ?", (name,)
    ).fetchone()
    key, finished_at, published_at = row or (None, None, None)
    missing = db.execute(
        "SELECT name FROM tasks WHERE published = 0 AND batch = ? LIMIT 1", (key,)
    ).fetchone()
    if finished_at is None or missing:
        why = f"the result of {missing[0]} is not published" if missing else "no such batch"
        raise ValueError(f"{name} cannot be published: {why}")
    if published_at is None:
        db.execute(
            "UPDATE batches SET published_at = ?1, prune_from = CASE WHEN tasks THEN ?1 END"
            " WHERE id = ?2",
            (journal.now(), key),
        )


def prune(journal: TaskTransaction, before: float) -> bool:
    """Drop some event bodies and task texts of batches published before;
    return whether more are left.
    """
    db = journal.db
    row = db.execute(
        "SELECT id, first_task, tasks, pruned FROM batches WHERE prune_from <= ?"
        " ORDER BY prune_from LIMIT 1",
        (before,),
    ).fetchone()
    if row is None:
        return _shrink(db)
    batch, first, count, pruned = row
    upto = min(count, pruned + _PRUNE)
    for table in ("events", "specs"):
        db.execute(
            f"DELETE FROM {table} WHERE task >= ? AND task < ?",  # noqa: S608 (constants)
            (first + pruned, first + upto),
        )
    db.execute(
        "UPDATE batches SET pruned = ?, prune_from = CASE WHEN ? THEN prune_from END WHERE id = ?",
        (upto, upto < count, batch),
    )
    return True


def _shrink(db: sqlite3.Connection) -> bool:
    """Give some room back to the file system; return whether there is more to give.

    A quarter of the file may stay free: a spool at work needs it again.
    """
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    if free * 4 <= pages:
        return False
    db.execute(f"PRAGMA incremental_vacuum({_VACUUM})").fetchall()
    (left,) = db.execute("PRAGMA freelist_count").fetchone()
    # A file that was put together by hand, from a dump say, gives nothing back.
    return bool(left < free)


def finish_all(
    journal: TaskTransaction, found: Sequence[tuple[Ref, TaskFinished]], check: Check = wanted
) -> list[bool]:
    """Store the ends of tasks that have none, each of another one, also while a worker has them;
    return for each whether it is the one.
    """
    check()
    by_batch: dict[str, list[str]] = {}
    for ref, _ in found:
        by_batch.setdefault(ref.batch, []).append(ref.task)
    for batch, names in by_batch.items():
        journal.load(batch, names)
    return [journal.finish(ref, event, None) for ref, event in found]


def published_all(journal: TaskTransaction, batch: str, names: Sequence[str]) -> None:
    """Note that results of a batch lie in the outbox."""
    cursor = journal.db.execute(
        f"UPDATE tasks AS t SET published = 1 WHERE t.batch = ? AND t.finished_at IS NOT NULL AND {NAMED}",  # noqa: S608 (constants)
        (batch_key(journal.db, batch), json.dumps(names)),
    )
    if cursor.rowcount != len(names):
        raise ValueError(f"{batch}: {len(names) - cursor.rowcount} have no result yet")
