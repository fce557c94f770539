"""What people look at in the store, by a reader that is light to import, and that no writer waits
for: rows of tasks and batches, the ledger, and what lists show beside them.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar

import msgspec

from batchd import decoders
from batchd.errors import StoreError
from batchd.events import CallAnswered, TaskStarted, ToolRan, decode
from batchd.records import (
    TALLIED,
    Parking,
    Purpose,
    Ref,
    Scope,
    Tally,
    TaskStatus,
    ToolCall,
    summed,
    untiered,
)
from batchd.records.tasks import needs_of_column
from batchd.store import lookups
from batchd.store.database_file import NONSENSE, explain, open_reader
from batchd.store.lookups import BATCH_COLUMNS, batch_key, task_key, to_batch, to_problems
from batchd.store.rows import BatchRow, SpendRow, TaskRow, WorkDone
from batchd.store.stored_values import unpack
from batchd.store.task_transaction import TALLY_OF_TASK

P = ParamSpec("P")
T = TypeVar("T")

#: More names help nobody who completes one.
_MOST_NAMES = 200


class StoreReader:
    """The reader of the store: as of the last commit, beside a daemon or without one.

    Its connection can only read, and every read is a short transaction of its own. Every method
    raises ``StoreError`` where the file cannot be read, and for names that it does not know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_reader(path)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self,
        query: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what a query returns."""
        try:
            return query(self._db, *args, **kwargs)
        except (sqlite3.Error, *NONSENSE) as error:
            raise explain(error, self._path) from error

    def _made(self, make: Callable[[Any], T], statement: str, *values: object) -> list[T]:
        """Return what ``make`` makes of each row of a statement."""
        return self.read(lambda db: [make(row) for row in db.execute(statement, values)])

    def batches(self, *, limit: int = -1, unpublished: bool = False) -> list[BatchRow]:
        """Return the batches, newest first; at most ``limit`` of them, if it is not negative."""
        where = "WHERE b.published_at IS NULL" if unpublished else ""
        return self._made(
            batch_row,
            f"{BATCHES} {where} GROUP BY b.id ORDER BY b.id DESC LIMIT ?",
            limit,
        )

    def batch(self, name: str) -> BatchRow:
        """Return one batch."""
        key = self.read(lookups.batch_key, name)
        (row,) = self._made(batch_row, f"{BATCHES} WHERE b.id = ? GROUP BY b.id", key)
        return row

    def tasks(self, batch: str) -> list[TaskRow]:
        """Return the tasks of a batch, in the order of its file."""
        key = self.read(lookups.batch_key, batch)
        return self._made(task_row, f"{TASKS} WHERE t.batch = ? ORDER BY t.id", key)

    def tasks_where(
        self,
        batch: str,
        *,
        statuses: Sequence[str] = (),
        text: str = "",
        sort: str = "",
        descending: bool = False,
        limit: int,
        offset: int = 0,
    ) -> tuple[int, list[TaskRow]]:
        """Return how many tasks of a batch match, and some of them:
        ``sort`` is one of ``SORTS``.
        """
        key = self.read(lookups.batch_key, batch)
        given = (key, json.dumps([*statuses]), text)
        [(count,)] = self._made(tuple, f"SELECT count(*) FROM tasks t{MATCHING}", *given)  # noqa: S608 (constants)
        by, way = SORTS[sort], "DESC" if descending else "ASC"
        rows = self._made(
            task_row,
            f"{TASKS}{MATCHING} ORDER BY {by} IS NULL, {by} {way}, t.id LIMIT ?4 OFFSET ?5",
            *(*given, limit, offset),
        )
        return int(count), rows

    def changes(self) -> int:
        """Return a number that is another one once somebody has stored something."""
        [(number,)] = self._made(tuple, "PRAGMA data_version")
        return int(number)

    def task(self, ref: Ref) -> TaskRow:
        """Return one task, as people look at it."""
        key = self.read(lookups.task_key, ref)
        (row,) = self._made(task_row, f"{TASKS} WHERE t.id = ?", key)
        return row

    def running(self) -> list[TaskRow]:
        """Return the tasks of all batches that run now, or are parked, longest first."""
        return self._made(
            task_row,
            f"{TASKS} WHERE t.published = 0 AND t.status IN ('running', 'parked') ORDER BY t.since, t.id",
        )

    def begun(self) -> list[TaskRow]:
        """Return the tasks of all batches that have begun and not ended:
        each has its directory to itself.
        """
        return self._made(
            task_row, f"{TASKS} WHERE t.published = 0 AND t.finished_at IS NULL AND t.attempt > 0"
        )

    def parked(self) -> tuple[Parking, ...]:
        """Return what waits, and why; oldest first."""
        return summed(self.read(lookups.parked))

    def prompt(self, ref: Ref) -> str:
        """Return a task's prompt; not once it was pruned."""
        return self.read(lookups.find_task, ref).first_prompt

    def result(self, ref: Ref) -> str:
        """Return the result text of a task that has ended; empty once it was pruned."""
        try:
            return self.read(lookups.result, ref)
        except StoreError:
            return ""

    def results(self, batch: str) -> Iterator[tuple[str, str]]:
        """Yield id and result text of each task that has ended, in order, one at a time;
        not once it was pruned.
        """
        for ref in self.read(lookups.ended, batch):
            yield ref.task, self.read(lookups.result, ref)

    def spend(
        self,
        by: Sequence[Split] = ("day", "batch", "provider", "model", "purpose"),
        *,
        batch: str | None = None,
        since: dt.date | None = None,
        until: dt.date | None = None,
        models: Sequence[str] = (),
        providers: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> list[SpendRow]:
        """Return the ledger, summed up by ``by``: of one batch or all,
        of days in UTC, both included.

        ``models``, with or without their provider, ``providers`` and ``tags``: of these only. By
        tag, what a task with several spent is in the row of each.
        """
        days = _number(since, 0), _number(until, 1 << 31)
        batches = _list((batch,) if batch else ())
        asked = (batches, *days, _list(models), _list(providers), _list(tags))
        make = partial(record, tuple(by))
        return self._made(make, statement(tuple(by)), *asked)


#: The fields of a task's row that are no column of that name.
_TASK_MADE = {
    "directory": "CASE t.dir WHEN '' THEN b.outbox || '/' || b.name || '/' || t.name ELSE t.dir END",
    "round": "t.rounds + t.round_open",
    "attempts": "t.attempt",
    "queued_at": "b.received_at",
}
_TASK = {
    f.name: _TASK_MADE.get(f.name, f"t.{f.name}")
    for f in fields(TaskRow)
    if f.name not in {"ref", "tally"}
}
TASKS = (
    f"SELECT b.name, t.name, {', '.join((*_TASK.values(), *TALLY_OF_TASK.values()))}"  # noqa: S608 (constants)
    " FROM tasks t JOIN batches b ON b.id = t.batch"
)

_OPEN = (
    "(SELECT count(*) FROM tasks t WHERE t.batch = b.id AND t.published = 0 AND t.status = '{}')"
)
#: The fields of a batch's row that are no column of that name.
_BATCH_MADE = {
    "running": _OPEN.format(TaskStatus.RUNNING),
    "parked": _OPEN.format(TaskStatus.PARKED),
}
_BATCH = {
    f.name: _BATCH_MADE.get(f.name, f"b.{f.name}")
    for f in fields(BatchRow)
    if f.name not in {"batch", "tally", "queued"}
}
_SUMS = [f"coalesce(sum(s.{name}), {getattr(Tally(), name)})" for name in TALLIED]
BATCHES = (
    f"SELECT {', '.join((*_BATCH.values(), *_SUMS))}, {BATCH_COLUMNS}"  # noqa: S608 (constants)
    " FROM batches b LEFT JOIN spend s ON s.batch = b.id"
)

#: What tasks can be sorted by. What is not known comes last, whichever way.
SORTS = {
    "": "t.id",
    # What did not complete comes first, then what is at work; what has not begun comes last.
    "failed": "CASE t.status WHEN 'error' THEN 0 WHEN 'timeout' THEN 0 WHEN 'cancelled' THEN 1"
    " WHEN 'running' THEN 2 WHEN 'parked' THEN 3 WHEN 'completed' THEN 4 ELSE 5 END",
    "id": "t.name COLLATE NOCASE",
    "status": "t.status || ' ' || coalesce(t.reason, '')",
    "model": "t.model",
    "rounds": _TASK["round"],
    "calls": "t.calls",
    "tokens": "t.input_tokens + t.output_tokens",
    "usd": "t.cost_usd",
    "started_at": "t.started_at",
    "took_s": "t.finished_at - t.started_at",
}
#: Tasks of batch ?1, of the statuses in the JSON list ?2 (empty:
#: all), with the text ?3 (empty: any).
MATCHING = (
    " WHERE t.batch = ?1 AND (?2 = '[]' OR t.status IN (SELECT value FROM json_each(?2)))"
    " AND (?3 = '' OR instr(lower(t.name || char(10) || t.model || char(10) || t.message || char(10)"
    " || replace(coalesce(t.reason, ''), '_', ' ')), lower(?3)))"
)


def task_row(row: tuple[Any, ...]) -> TaskRow:
    """Return the record of a row of ``TASKS``."""
    batch, task, *values = row
    known = dict(zip(_TASK, values, strict=False))
    known["tally"] = _tally(values[len(_TASK) :])
    known["status"] = TaskStatus(known["status"])
    known["published"] = bool(known["published"])
    known["after"] = tuple(known["after"].split()) if known["after"] else ()
    known["needs"] = str(needs_of_column(known["needs"])) if known["needs"] else ""
    return TaskRow(ref=Ref(batch, task), **known)


def batch_row(row: tuple[Any, ...]) -> BatchRow:
    """Return the record of a row of ``BATCHES``."""
    known = dict(zip(_BATCH, row, strict=False))
    known["tally"] = _tally(row[len(_BATCH) :])
    known["problems"] = to_problems(known["problems"])
    begun = ("running", "parked", "completed", "timeout", "error", "cancelled")
    return BatchRow(
        batch=to_batch(row[len(_BATCH) + len(TALLIED) :]),
        queued=known["tasks"] - sum(known[name] for name in begun),
        **known,
    )


def _tally(row: Sequence[Any]) -> Tally:
    """Return the tally that a row begins with."""
    return Tally(**dict(zip(TALLIED, row, strict=False)))


#: A command is looked for in so many of a task's last events:
#: behind it come its answer's call, and a verdict.
_LOOKED_BACK = 6


class _Asked(msgspec.Struct):
    """The request of a stored task, without the rest."""

    first_prompt: str = ""


_ASKED: msgspec.json.Decoder[_Asked] = decoders.decoder(_Asked)


def prompts_of_batch(db: sqlite3.Connection, name: str, most: int = -1) -> dict[str, str]:
    """Return the prompts of a batch's tasks by their ids,
    of the first ``most``, if it is not negative; of pruned ones none.
    """
    found = prompts_from(db, name, 0, most)
    return {task: prompt for _, task, prompt in found if prompt is not None}


def prompts_from(
    db: sqlite3.Connection, name: str, first: int, most: int, task: str = ""
) -> list[tuple[int, str, str | None]]:
    """Return the number, id and prompt of some tasks of a batch, or of one task: of those from
    number ``first`` on at most so many. A prompt is None once it was pruned.
    """
    rows = db.execute(
        "SELECT t.id, t.name, p.body FROM tasks t LEFT JOIN specs p ON p.task = t.id"
        " WHERE t.batch = ?1 AND t.id >= ?2 AND (?4 = '' OR t.name = ?4) ORDER BY t.id LIMIT ?3",
        (batch_key(db, name), first, most, task),
    )
    return [
        (number, each, None if body is None else _ASKED.decode(unpack(body)).first_prompt)
        for number, each, body in rows
    ]


def names(db: sqlite3.Connection, begun: str) -> list[str]:
    """Return what a name that somebody types may become: a batch, the newest first, or behind its
    slash a task.
    """
    batch, slash, _ = begun.partition("/")
    tasks = "SELECT b.name || '/' || t.name FROM tasks t JOIN batches b ON b.id = t.batch WHERE b.name = ?"
    rows = (
        db.execute(f"{tasks} ORDER BY t.id", (batch,))
        if slash
        else db.execute("SELECT name FROM batches ORDER BY id DESC")
    )
    fitting = (name for (name,) in rows if name.startswith(begun))
    return [*itertools.islice(fitting, _MOST_NAMES)]


def first_prompts(db: sqlite3.Connection, names: Collection[str]) -> dict[str, str]:
    """Return by batch the prompt of its first task; of pruned and of refused ones none."""
    rows = db.execute(
        "SELECT b.name, p.body FROM batches b JOIN specs p ON p.task = b.first_task"
        # A refused one has no task, and the number of the next one's first.
        " WHERE b.tasks > 0 AND b.name IN (SELECT value FROM json_each(?))",
        (json.dumps([*names]),),
    )
    return {name: _ASKED.decode(unpack(body)).first_prompt for name, body in rows}


def command(db: sqlite3.Connection, ref: Ref) -> ToolCall | None:
    """Return the tool call that a task ran last; None: there was none of late."""
    rows = db.execute(
        "SELECT body FROM events WHERE task = ? ORDER BY seq DESC LIMIT ?",
        (task_key(db, ref), _LOOKED_BACK),
    )
    found = (decode(unpack(body)) for (body,) in rows)
    return next((event.call for event in found if isinstance(event, ToolRan)), None)


def ended(db: sqlite3.Connection, since: float, most: int) -> list[TaskRow]:
    """Return tasks that have ended since then, the newest first."""
    rows = db.execute(
        f"{TASKS} WHERE (b.published_at IS NULL OR b.published_at >= ?1) AND t.finished_at >= ?1"
        " ORDER BY t.finished_at DESC LIMIT ?2",
        (since, most),
    )
    return [*map(task_row, rows)]


#: What is asked of each queued task is asked only where something of that kind is parked:
#: there may be 100,000.
_HELD = """
    SELECT count(*) FROM tasks t JOIN batches b ON b.id = t.batch
    WHERE t.published = 0 AND (t.status = 'parked' OR t.status = 'queued' AND (
        ?1
        OR b.name IN (SELECT value FROM json_each(?2))
        OR ?5 <> '[]' AND t.model IN (SELECT value FROM json_each(?5))
        OR ?3 <> '[]' AND substr(t.model, 1, instr(t.model, '/') - 1) IN (SELECT value FROM json_each(?3))
        OR ?4 <> '[]' AND b.name || '/' || t.name IN (SELECT value FROM json_each(?4))))
"""


def held(db: sqlite3.Connection, parked: Iterable[Parking]) -> int:
    """Return how many tasks are parked, or are queued for what is parked as a whole:
    a provider, a model, a batch, everything.
    """
    names: dict[Scope, list[str]] = {scope: [] for scope in Scope}
    for each in parked:
        names[each.scope].append(each.name)
    everything = bool(names[Scope.ALL] or names[Scope.DAY])
    lists = (json.dumps(names[s]) for s in (Scope.BATCH, Scope.PROVIDER, Scope.TASK, Scope.MODEL))
    return int(db.execute(_HELD, (everything, *lists)).fetchone()[0])


def idle(db: sqlite3.Connection, parked: Iterable[Parking]) -> frozenset[str]:
    """Return which providers and models are out of order, while no task
    that has not ended needs them, nor is parked for any cause.

    None that the next task would not try: one that somebody paused, or whose provider waits.
    """
    asked = [each for each in parked if each.scope.asked]
    waiting = {each.name for each in asked}
    paused = {each.name for each in asked if not each.cause.reason}
    names = {
        name
        for name in waiting - paused
        if "/" not in name or name.partition("/")[0] not in waiting
    }
    if not names:
        return frozenset()
    if db.execute("SELECT 1 FROM tasks WHERE published = 0 AND status = 'parked'").fetchone():
        return frozenset()  # it may be its judge that is
    open_tasks = "SELECT DISTINCT model FROM tasks WHERE published = 0 AND finished_at IS NULL"
    models = {model for (model,) in db.execute(open_tasks)}
    models |= {model.partition("/")[0] for model in models}
    return frozenset(name for name in names if untiered(name) not in models)


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
        newest = db.execute("SELECT body FROM events WHERE task = ? ORDER BY seq DESC", (task,))
        for (body,) in newest:
            event = decode(unpack(body))
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


def _judge(db: sqlite3.Connection, task: int) -> str:
    """Return the model that judges a task; empty where its journal does not say."""
    for (body,) in db.execute("SELECT body FROM events WHERE task = ? AND seq = 0", (task,)):
        if isinstance(event := decode(unpack(body)), TaskStarted):
            return event.terms.judge.name
    return ""


#: Who was cancelled was not done, and a task without a call shows nothing.
_ENDED = (
    f"t.status IN ('{TaskStatus.COMPLETED}', '{TaskStatus.TIMEOUT}', '{TaskStatus.ERROR}')"
    " AND t.calls > 0 AND t.started_at IS NOT NULL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTask:
    """A task that has ended, and what it came to."""

    #: The key of its batch: tasks of one batch are more alike than others.
    batch: int
    status: TaskStatus
    #: From its first start to its end, waits included.
    seconds: float
    tally: Tally


def past_of_model(db: sqlite3.Connection, model: str, most: int) -> list[PastTask]:
    """Return the newest tasks of a model, newest first."""
    rows = db.execute(
        f"SELECT t.batch, t.status, t.finished_at - t.started_at, {', '.join(TALLY_OF_TASK.values())}"  # noqa: S608 (constants)
        f" FROM tasks t WHERE {_ENDED} AND t.model = ?1 ORDER BY t.id DESC LIMIT ?2",
        (model, most),
    )
    return [
        PastTask(
            batch=batch,
            status=TaskStatus(status),
            seconds=max(0.0, seconds),
            tally=_tally(amounts),
        )
        for batch, status, seconds, *amounts in rows
    ]


#: What the ledger can be split by.
Split: TypeAlias = Literal["day", "batch", "provider", "model", "purpose", "tag"]
SPLITS: dict[Split, str] = {
    "day": "s.day",
    "batch": "b.name",
    "provider": "s.provider",
    "model": "s.model",
    "purpose": "s.purpose",
    "tag": "g.value",
}


def named(by: Sequence[Split]) -> tuple[Split, ...]:
    """Return what to split the ledger by where its rows are named by ``by``: a model's own name
    says little without its provider's.
    """
    both: tuple[Split, ...] = ("provider", "model")
    keys = (key for split in by for key in (both if split == "model" else (split,)))
    return (*dict.fromkeys(keys),)


#: Without tags a row is booked under none, once; with several it is counted under each.
_TAGGED = ", json_each(CASE s.tags WHEN '' THEN '[null]' ELSE s.tags END) g"
#: Everything that can be asked for: a list is JSON, and NULL asks for all.
_WHERE = """
    (?1 IS NULL OR b.name IN (SELECT value FROM json_each(?1)))
    AND s.day BETWEEN ?2 AND ?3
    AND (?4 IS NULL OR s.model IN (SELECT value FROM json_each(?4))
        OR s.provider || '/' || s.model IN (SELECT value FROM json_each(?4)))
    AND (?5 IS NULL OR s.provider IN (SELECT value FROM json_each(?5)))
    AND (?6 IS NULL OR s.tags <> '' AND EXISTS (
        SELECT 1 FROM json_each(s.tags) h WHERE h.value IN (SELECT value FROM json_each(?6))))
"""
_EPOCH = dt.date(1970, 1, 1)


def statement(by: tuple[Split, ...]) -> str:
    """Return the query for the ledger split by ``by``; its parameters are those of ``spend``."""
    sums = ", ".join(f"sum(s.{name})" for name in TALLIED)
    keys = ", ".join(SPLITS[name] for name in by)
    return (
        f"SELECT {f'{keys}, ' if by else ''}{sums}"  # noqa: S608 (constants)
        f" FROM spend s JOIN batches b ON b.id = s.batch{_TAGGED if 'tag' in by else ''}"
        f" WHERE {_WHERE}"
        f" {f'GROUP BY {keys} ORDER BY {keys}' if by else 'HAVING count(*)'}"
    )


def record(by: tuple[Split, ...], row: tuple[Any, ...]) -> SpendRow:
    """Return the record of a row of ``statement``."""
    values = dict(zip(by, row, strict=False))
    if "day" in values:
        values["day"] = (_EPOCH + dt.timedelta(days=values["day"])).isoformat()
    return SpendRow(**values, tally=_tally(row[len(by) :]))


def _list(names: Sequence[str]) -> str | None:
    return json.dumps(list(names)) if names else None


def _number(day: dt.date | None, default: int) -> int:
    """Return a day as the ledger counts it."""
    return default if day is None else (day - _EPOCH).days
