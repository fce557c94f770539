"""Lookups of the daemon: batches, tasks, money, and everything at its start."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from batchd import decoders
from batchd.errors import Problem, StoreError, UnknownNameError, near
from batchd.events import Event, TaskFinished, decode
from batchd.records import Batch, Cause, Parking, Ref, Scope, Task, TaskStatus, TurnFacts
from batchd.store.rows import (
    BatchTask,
    LearntRefusal,
    PrunableBatch,
    SpentMoney,
    StoredWork,
    WaitingNotice,
)
from batchd.store.stored_values import unpack, unpack_task

#: No parking's cause: such a row's message says for how long it was tried in vain,
#: and goes with the parking.
TRIED = "tried"
#: The columns of a batch are the fields of its record: to rename one takes a migration.
BATCH_COLUMNS = ", ".join(Batch.__struct_fields__)

NAMED = "t.name IN (SELECT value FROM json_each(?))"
#: Tasks that have ended, each with its last event.
_ENDS = (
    " FROM tasks t JOIN events e ON e.task = t.id AND e.seq = t.seq - 1"
    " WHERE t.finished_at IS NOT NULL"
)

_PROBLEMS: msgspec.json.Decoder[tuple[Problem, ...]] = decoders.decoder(tuple[Problem, ...])
#: In an event, where a result stands as a text.
_CAUTION = re.compile(rb'\\"runs_code\\": (?!\[\])|\\"near_limits\\": (?!\{\})')
_QUEUED = (
    "SELECT t.batch, t.name, t.priority, t.id, t.model, t.dir, t.after, t.status, t.since,"
    " t.attempt, t.crashes, t.machine FROM tasks t"
)


def to_batch(row: Sequence[Any]) -> Batch:
    """Return the record of a row of ``BATCH_COLUMNS``."""
    known = dict(zip(Batch.__struct_fields__, row, strict=True))
    known["after_batches"] = tuple(known["after_batches"].split())
    return Batch(**known)


def _batches(db: sqlite3.Connection, where: str, *values: object) -> list[Batch]:
    rows = db.execute(f"SELECT {BATCH_COLUMNS} FROM batches WHERE {where}", values)  # noqa: S608 (constants)
    return [*map(to_batch, rows)]


def to_problems(text: str | None) -> tuple[Problem, ...]:
    """Return why a file was refused."""
    return _PROBLEMS.decode(text) if text else ()


def _batch(db: sqlite3.Connection, columns: str, name: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = db.execute(
        f"SELECT {columns} FROM batches WHERE name = ?",  # noqa: S608 (constants)
        (name,),
    ).fetchone()
    if row is None:
        known = [
            each for (each,) in db.execute("SELECT name FROM batches ORDER BY id DESC LIMIT 1000")
        ]
        fix = near(name, known, "`batchd status` lists them")
        raise UnknownNameError(f"there is no batch {name}: {fix}")
    return row


def batch_key(db: sqlite3.Connection, name: str) -> int:
    """Return the id of a batch. Raises ``StoreError`` where there is none of that name."""
    return int(_batch(db, "id", name)[0])


def task_key(db: sqlite3.Connection, ref: Ref) -> int:
    """Return the id of a task. Raises ``StoreError`` where there is no such task."""
    key = batch_key(db, ref.batch)
    row = db.execute("SELECT id FROM tasks WHERE batch = ? AND name = ?", (key, ref.task))
    for (task,) in row:
        return int(task)
    known = [each for (each,) in db.execute("SELECT name FROM tasks WHERE batch = ?", (key,))]
    rest = f"`batchd status {ref.batch}` lists them"
    fix = near(ref.task, known, rest, before=f"{ref.batch}/")
    raise UnknownNameError(f"there is no task {ref}: {fix}")


def find_batch(db: sqlite3.Connection, name: str) -> Batch:
    """Return a batch."""
    return to_batch(_batch(db, BATCH_COLUMNS, name))


def problems(db: sqlite3.Connection, name: str) -> tuple[Problem, ...]:
    """Return why the file of a batch was refused."""
    return to_problems(_batch(db, "problems", name)[0])


def unfinished(db: sqlite3.Connection, name: str) -> int:
    """Return how many tasks of a batch have not ended."""
    return int(_batch(db, "unfinished", name)[0])


def claimed(db: sqlite3.Connection, claim: str) -> Batch | None:
    """Return the batch of a claim, if there is one."""
    return next(iter(_batches(db, "claim = ?", claim)), None)


def unended_run(db: sqlite3.Connection, run: str) -> Batch | None:
    """Return the newest batch of a ``run``'s file that is not published, if there is one."""
    where = "published_at IS NULL AND run = ? ORDER BY id DESC LIMIT 1"
    return next(iter(_batches(db, where, run)), None)


def find_task(db: sqlite3.Connection, ref: Ref) -> Task:
    """Return a task as its file asked for it."""
    row = db.execute(
        "SELECT p.body, s.body FROM specs p LEFT JOIN secrets s USING (task) WHERE p.task = ?",
        (task_key(db, ref),),
    ).fetchone()
    if row is None:
        raise StoreError(f"{ref} has been pruned")
    return unpack_task(*row)


def retries(db: sqlite3.Connection, batch: str) -> list[str]:
    """Return the batches that run tasks of a batch again, the oldest first."""
    rows = db.execute("SELECT name FROM batches WHERE retry_of = ? ORDER BY id", (batch,))
    return [name for (name,) in rows]


def pruned(db: sqlite3.Connection, ref: Ref) -> bool:
    """Return whether a task's text and journal were dropped."""
    found = db.execute("SELECT 1 FROM specs WHERE task = ?", (task_key(db, ref),))
    return found.fetchone() is None


def bodies(
    db: sqlite3.Connection, ref: Ref, start: int = 0, stop: int | None = None
) -> tuple[bytes, ...]:
    """Return a task's events from number ``start`` on,
    before ``stop``, encoded; none once it was pruned.
    """
    rows = db.execute(
        "SELECT body FROM events WHERE task = ?1 AND seq >= ?2 AND (?3 IS NULL OR seq < ?3) ORDER BY seq",
        (task_key(db, ref), start, stop),
    ).fetchall()
    return tuple(unpack(body) for (body,) in rows)


def events(
    db: sqlite3.Connection, ref: Ref, start: int = 0, stop: int | None = None
) -> list[Event]:
    """Return a task's events from number ``start`` on, before ``stop``; none once it was pruned."""
    return [decode(body) for body in bodies(db, ref, start, stop)]


def length(db: sqlite3.Connection, ref: Ref) -> int:
    """Return how many events a task has had."""
    (count,) = db.execute("SELECT seq FROM tasks WHERE id = ?", (task_key(db, ref),)).fetchone()
    return int(count)


def lengths(db: sqlite3.Connection, name: str, task: str = "") -> dict[str, int]:
    """Return how many events each task of a batch has had, or one task; of those that had any."""
    rows = db.execute(
        "SELECT name, seq FROM tasks"
        " WHERE batch = ?1 AND seq > 0 AND (?2 = '' OR name = ?2) ORDER BY id",
        (batch_key(db, name), task),
    )
    return dict(rows.fetchall())


def left(db: sqlite3.Connection, name: str, among: Collection[str]) -> set[Ref]:
    """Return which of some tasks of a batch have not ended."""
    rows = db.execute(
        "SELECT name FROM tasks WHERE batch = ? AND finished_at IS NULL"
        " AND name IN (SELECT value FROM json_each(?))",
        (batch_key(db, name), json.dumps([*among])),
    )
    return {Ref(name, task) for (task,) in rows}


def ended(db: sqlite3.Connection, name: str) -> tuple[Ref, ...]:
    """Return the tasks of a batch that have a result, in order."""
    rows = db.execute(f"SELECT t.name{_ENDS} AND t.batch = ? ORDER BY t.id", (batch_key(db, name),))
    return tuple(Ref(name, task) for (task,) in rows)


def unbegun(db: sqlite3.Connection, batch: str, names: Sequence[str]) -> list[Task]:
    """Return those of some tasks that have no event yet,
    in order, without the values of their secrets.
    """
    rows = db.execute(
        "SELECT p.body FROM tasks t JOIN specs p ON p.task = t.id"  # noqa: S608 (constants)
        f" WHERE t.batch = ? AND t.seq = 0 AND {NAMED} ORDER BY t.id",
        (batch_key(db, batch), json.dumps(names)),
    )
    return [unpack_task(body) for (body,) in rows]


def ends(
    db: sqlite3.Connection, batch: str, names: Sequence[str]
) -> list[tuple[Ref, TaskFinished]]:
    """Return the ends of tasks that have ended, in order."""
    rows = db.execute(
        f"SELECT t.name, e.body{_ENDS} AND t.batch = ? AND {NAMED} ORDER BY t.id",
        (batch_key(db, batch), json.dumps(names)),
    )
    return [(Ref(batch, name), _end(body)) for name, body in rows]


def _end(body: bytes) -> TaskFinished:
    event = decode(unpack(body))
    assert isinstance(event, TaskFinished), "nothing is appended after a task's end"
    return event


def result(db: sqlite3.Connection, ref: Ref) -> str:
    """Return the result text of a task that has ended."""
    rows = db.execute(f"SELECT e.body{_ENDS} AND t.id = ?", (task_key(db, ref),))
    for (body,) in rows:
        return _end(body).result
    raise StoreError(f"{ref} has no result: it has not ended, or it has been pruned")


def cautions(db: sqlite3.Connection, name: str, task: str = "") -> dict[str, str]:
    """Return by id the results in a batch, or of one task in it, that report files which run code,
    that no one looked for them, or that a limit was near.
    """
    rows = db.execute(
        f"SELECT t.name, e.body{_ENDS} AND t.batch = ?1 AND (?2 = '' OR t.name = ?2) ORDER BY t.id",
        (batch_key(db, name), task),
    )
    bodies = ((name, unpack(body)) for name, body in rows)
    # To decode all of a batch of thousands would take seconds;
    # nearly all say that there is nothing.
    found = ((name, decode(body)) for name, body in bodies if _CAUTION.search(body))
    return {name: event.result for name, event in found if isinstance(event, TaskFinished)}


def open_before(db: sqlite3.Connection, name: str) -> list[str]:
    """Return the batches that have not ended, of those that a batch comes after."""
    rows = db.execute(
        "SELECT name FROM batches WHERE published_at IS NULL"
        " AND name IN (SELECT value FROM json_each(?)) ORDER BY id",
        (json.dumps(find_batch(db, name).after_batches),),
    )
    return [earlier for (earlier,) in rows]


def left_at(db: sqlite3.Connection) -> dict[Ref, str]:
    """Return the workers of other machines that an earlier daemon left tasks at."""
    rows = db.execute(
        "SELECT b.name, t.name, t.worker FROM tasks AS t JOIN batches AS b ON b.id = t.batch"
        " WHERE t.published = 0 AND t.status = 'queued' AND instr(t.worker, '/')"
    )
    return {Ref(batch, task): worker for batch, task, worker in rows}


def task_money(db: sqlite3.Connection, ref: Ref) -> SpentMoney:
    """Return what one task has spent."""
    # A task whose price is missing has no cost: it counts as nothing, as in the other sums.
    row = db.execute(
        "SELECT coalesce(cost_usd, 0), unsettled_usd, coalesce(reserved_usd, 0)"
        " FROM tasks WHERE id = ?",
        (task_key(db, ref),),
    ).fetchone()
    return SpentMoney(*row)


def batch_money(db: sqlite3.Connection, name: str) -> SpentMoney:
    """Return what one batch has spent."""
    return _money(db, "batch = ?1", "batch = ?1", batch_key(db, name))


def day_money(db: sqlite3.Connection, day: int) -> SpentMoney:
    """Return what was spent on one day, by number since 1970-01-01, UTC."""
    return _money(db, "day = ?1", "call_at >= ?1 * 86400.0 AND call_at < (?1 + 1) * 86400.0", day)


def _money(db: sqlite3.Connection, booked: str, opened: str, key: int) -> SpentMoney:
    query = f"""
        SELECT coalesce(sum(input_usd + output_usd), 0), coalesce(sum(unsettled_usd), 0),
            (SELECT coalesce(sum(reserved_usd), 0) FROM tasks WHERE published = 0 AND {opened})
        FROM spend WHERE {booked}
    """  # noqa: S608 (constants)
    return SpentMoney(*db.execute(query, (key,)).fetchone())


def used(db: sqlite3.Connection, name: str) -> bool:
    """Return whether a batch ever had this name."""
    return db.execute("SELECT 1 FROM batches WHERE name = ?", (name,)).fetchone() is not None


def tasks(db: sqlite3.Connection, name: str) -> dict[str, BatchTask]:
    """Return all tasks of a batch by their ids, those that have ended too, in order."""
    query = "SELECT name, status, after FROM tasks WHERE batch = ? ORDER BY id"
    rows = db.execute(query, (batch_key(db, name),))
    return {
        task: BatchTask(TaskStatus(status), tuple(after.split())) for task, status, after in rows
    }


def restore(db: sqlite3.Connection) -> StoredWork:
    """Return everything that a daemon that starts must know."""
    batches = {
        row[0]: to_batch(row[1:])
        for row in db.execute(
            f"SELECT id, {BATCH_COLUMNS} FROM batches WHERE published_at IS NULL ORDER BY id"  # noqa: S608 (constants)
        )
    }
    waiting: list[TurnFacts] = []
    given_back: list[tuple[float, TurnFacts]] = []
    unpublished: list[Ref] = []
    wanted: dict[tuple[int, str], None] = {}
    for row in db.execute(f"{_QUEUED} WHERE t.published = 0 ORDER BY t.id"):
        key, name, *_, status, since, _, _, _ = row
        batch = batches[key]
        if TaskStatus(status).final:
            unpublished.append(Ref(batch.name, name))
            continue
        task = _facts(batch, row)
        waiting.append(task)
        if task.given_back:
            given_back.append((since, task))
        wanted.update(((row[0], ref.task), None) for ref in task.after)
    ended: list[tuple[Ref, TaskStatus]] = []
    for key, name in wanted:
        (status,) = db.execute(
            "SELECT status FROM tasks WHERE batch = ? AND name = ?", (key, name)
        ).fetchone()
        if TaskStatus(status).final:
            ended.append((Ref(batches[key].name, name), TaskStatus(status)))
    given_back.sort(key=lambda found: found[0])
    return StoredWork(
        batches=tuple(batches.values()),
        queued=tuple(waiting),
        given_back=tuple(task for _, task in given_back),
        unpublished=tuple(unpublished),
        ended=tuple(ended),
        parked=parked(db),
    )


def prunable(db: sqlite3.Connection, before: float) -> tuple[PrunableBatch, ...]:
    """Return the batches published before, oldest first, refused files among them."""
    sizes = " + ".join(
        f"(SELECT coalesce(sum(length(body)), 0) FROM {table}"  # noqa: S608 (constants)
        " WHERE task >= first_task AND task < first_task + tasks)"
        for table in ("events", "specs")
    )
    rows = db.execute(
        f"SELECT tasks, published_at, prune_from IS NOT NULL, {sizes}, {BATCH_COLUMNS}"  # noqa: S608 (constants)
        " FROM batches WHERE published_at <= ? ORDER BY published_at, id",
        (before,),
    )
    return tuple(
        PrunableBatch(
            batch=to_batch(row),
            tasks=tasks,
            published_at=at,
            stored=bool(stored),
            bytes=size,
        )
        for tasks, at, stored, size, *row in rows
    )


def parked(db: sqlite3.Connection) -> tuple[Parking, ...]:
    """Return what waits, and why; oldest first."""
    rows = db.execute(
        "SELECT p.scope, p.name, p.cause, p.message, p.since, t.message FROM parked p"
        " LEFT JOIN parked t ON t.scope = p.scope AND t.name = p.name AND t.cause = ?1"
        " WHERE p.cause <> ?1 ORDER BY p.since",
        (TRIED,),
    )
    return tuple(
        Parking(
            scope=Scope(scope),
            name=name,
            cause=(why := Cause(cause)),
            message=message,
            since=since,
            tried_s=float(tried or 0.0) if why.reason else 0.0,
        )
        for scope, name, cause, message, since, tried in rows
    )


def notices(db: sqlite3.Connection, receiver: str) -> list[WaitingNotice]:
    """Return what waits for a receiver: what was tried first, then in the order of events."""
    rows = db.execute(
        "SELECT receiver, id, event, message FROM notices WHERE receiver = ?"
        " ORDER BY message = '', id",
        (receiver,),
    )
    return [WaitingNotice(*row) for row in rows]


def notice_counts(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many events wait, by receiver."""
    return dict(db.execute("SELECT receiver, count(*) FROM notices GROUP BY receiver"))


def refused(db: sqlite3.Connection) -> tuple[LearntRefusal, ...]:
    """Return what models were seen to refuse."""
    return tuple(
        LearntRefusal(*row) for row in db.execute("SELECT model, lesson, setting, at FROM refused")
    )


def _facts(batch: Batch, row: tuple[Any, ...]) -> TurnFacts:
    _, name, priority, order, model, directory, after, status, *rest = row
    _, attempt, crashes, machine = rest
    return TurnFacts(
        ref=Ref(batch.name, name),
        priority=priority,
        order=order,
        directory=directory or f"{batch.folder}/{name}",
        after=tuple(Ref(batch.name, a) for a in after.split()) if after else (),
        model=model,
        machine=machine,
        begun=attempt > 0,
        suspect=crashes > 0,
        given_back=status == TaskStatus.PARKED,
    )
