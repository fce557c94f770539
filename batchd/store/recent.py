"""Recent work: of tasks as a whole, and call by call as their journals have it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from batchd.events import CallAnswered, Event, TaskStarted, decode
from batchd.records import Purpose
from batchd.store.rows import WorkDone
from batchd.store.stored_values import unpack

#: Tasks that had an event since then; their batches are few among all that there ever were.
_LATELY = (
    " FROM batches b JOIN tasks t ON t.batch = b.id"
    " WHERE (b.published_at IS NULL OR b.published_at >= ?1) AND t.last_at >= ?1"
)
#: Of a task that began before, the part of its time that lies behind ?1:
#: calls are taken to be spread evenly.
_PART = (
    "CASE WHEN t.started_at < ?1 THEN (t.last_at - ?1) / (t.last_at - t.started_at) ELSE 1.0 END"
)


@dataclass(frozen=True, slots=True)
class AnsweredCall:
    """A call that was answered."""

    #: Seconds since the epoch.
    at: float
    #: How long it took.
    seconds: float
    provider: str
    tokens: int


def done(db: sqlite3.Connection, since: float) -> WorkDone:
    """Return how many tasks have ended since then, and what was used by all that were at work."""
    row = db.execute(
        f"SELECT count(CASE WHEN t.finished_at >= ?1 THEN 1 END),"
        f" coalesce(sum((t.input_tokens + t.output_tokens) * {_PART}), 0.0),"
        f" coalesce(sum(t.cost_usd * {_PART}), 0.0){_LATELY}",
        (since,),
    ).fetchone()
    return WorkDone(*row)


def answered(db: sqlite3.Connection, since: float) -> list[AnsweredCall]:
    """Return the calls that were answered since then; of tasks whose journals are still there."""
    found: list[AnsweredCall] = []
    for task, model in db.execute(f"SELECT t.id, t.model{_LATELY}", (since,)).fetchall():
        judge = ""
        for event in _newest(db, task):
            if event.at < since:
                break
            if isinstance(event, CallAnswered):
                name = model
                if event.purpose is Purpose.JUDGE:
                    name = judge = judge or _judge(db, task) or model
                usage = event.answer.usage
                seconds, provider = event.answer.seconds, name.partition("/")[0]
                found.append(AnsweredCall(event.at, seconds, provider, usage.total_tokens))
    return found


def _newest(db: sqlite3.Connection, task: int) -> Iterator[Event]:
    """Yield a task's events, the last one first."""
    rows = db.execute("SELECT body FROM events WHERE task = ? ORDER BY seq DESC", (task,))
    return (decode(unpack(body)) for (body,) in rows)


def _judge(db: sqlite3.Connection, task: int) -> str:
    """Return the model that judges a task; empty where its journal does not say."""
    for (body,) in db.execute("SELECT body FROM events WHERE task = ? AND seq = 0", (task,)):
        if isinstance(event := decode(unpack(body)), TaskStarted):
            return event.terms.judge.name
    return ""
