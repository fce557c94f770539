"""The transactions of the writing thread on tasks and their events, and the fold of these into a
task's row and into the ledger of money.

The rows of running tasks are kept in memory, so that an operation is checked and folded without
a query, and a whole transaction is written by three statements. The fold keeps what people look at
and what money limits need, by the rules of ``taskstate``; a test holds both to the same sums.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct

from batchd import decoders, events as vocabulary
from batchd.errors import StaleAttemptError
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    CancelRequested,
    Event,
    Resumed,
    RoundEvaluated,
    TaskFinished,
    TaskStarted,
)
from batchd.records import TALLIED, ModelSetup, Purpose, Ref, Tally, TaskStatus
from batchd.store.stored_values import error_message, pack, unpack

_DAY_S = 86400
_NOTHING = Tally()


class LedgerKey(NamedTuple):
    """A row of the ledger, by its key."""

    batch: int
    #: Since 1970-01-01, UTC.
    day: int
    provider: str
    model: str
    purpose: str
    #: The task's tags, as ``TaskLabels`` has them.
    tags: str


#: What a transaction adds to the ledger.
Ledger: TypeAlias = defaultdict[LedgerKey, Tally]


class TaskLine(Struct):
    """A task's row while it is worked on."""

    id: int
    batch: int
    model: str
    tags: str
    # Written when they change.
    status: TaskStatus
    reason: str | None = None
    message: str = ""
    since: float = 0.0
    attempt: int = 0
    crashes: int = 0
    worker: str = ""
    finished_at: float | None = None
    # Written with the events.
    seq: int = 0
    rounds: int = 0
    round_open: int = 0
    call_at: float | None = None
    call_purpose: str | None = None
    reserved_usd: float | None = None
    step: str = ""
    started_at: float | None = None
    last_at: float | None = None
    tally: Tally = _NOTHING
    #: Model and judge, prices included, from ``TaskStarted``; no column.
    setups: tuple[ModelSetup, ModelSetup] | None = None

    @property
    def final(self) -> bool:
        """Whether the task has its end."""
        return self.status.final

    def setup(self, purpose: str) -> ModelSetup:
        """Return how the model for ``purpose`` is called, and what it costs."""
        if self.setups is None:
            return ModelSetup(name=self.model)
        return self.setups[purpose == Purpose.JUDGE]


#: The columns of a task's row but for its tally, by their names.
LINE_COLUMNS = TaskLine.__struct_fields__[:-2]
_FIRST_HOT = LINE_COLUMNS.index("seq")
#: A task's tally by its columns, in the order of ``TALLIED``. They have the money as one sum, which
#: stands as that of the input, and whether anything was counted here, or has no known price.
TALLY_OF_TASK = {name: f"t.{name}" for name in TALLIED} | {
    "estimated_calls": "t.estimated",
    "unpriced_calls": "t.cost_usd IS NULL",
    "input_usd": "coalesce(t.cost_usd, 0.0)",
    "output_usd": "0.0",
}
#: Status and what comes with it.
COLD_COLUMNS = LINE_COLUMNS[LINE_COLUMNS.index("status") : _FIRST_HOT]
#: What changes with every event: by column, where a line has it.
HOT_COLUMNS = {name: name for name in LINE_COLUMNS[_FIRST_HOT:]} | {
    name: f"tally.{name}"
    for name in (*TALLIED, "estimated", "cost_usd")
    if name not in {"estimated_calls", "unpriced_calls", "input_usd", "output_usd"}
}


def fold(line: TaskLine, event: Event, ledger: Ledger) -> None:
    """Apply one event to the task's row and the ledger."""
    kind = type(event)
    if change := _FOLDS.get(kind):
        change(line, event, ledger)
    line.seq += 1
    line.step = kind.__name__
    line.last_at = event.at


def _account(line: TaskLine, purpose: str, at: float) -> LedgerKey:
    setup = line.setup(purpose)
    return LedgerKey(line.batch, int(at // _DAY_S), setup.provider, setup.model, purpose, line.tags)


def book(line: TaskLine, purpose: str, used: Tally, at: float, ledger: Ledger) -> None:
    """Add what a task used to its row and the ledger; the open call is part of it."""
    _close(line)
    line.tally += used
    ledger[_account(line, purpose, at)] += used


def _close(line: TaskLine) -> None:
    line.call_at = line.call_purpose = line.reserved_usd = None


def _settle(line: TaskLine, _event: object, ledger: Ledger) -> None:
    """Book the open call, if there is one, as perhaps paid: ``TaskState.settled``."""
    if line.call_at is None:
        return
    lost = Tally(unsettled_calls=1, unsettled_usd=line.reserved_usd or 0.0)
    book(line, line.call_purpose or "", lost, line.call_at, ledger)


def _started(line: TaskLine, event: TaskStarted, _ledger: Ledger) -> None:
    line.setups = (event.terms.model, event.terms.judge)
    line.started_at = event.at


def _resumed(line: TaskLine, event: Resumed, ledger: Ledger) -> None:
    _settle(line, event, ledger)
    if event.terms is not None:
        line.setups = (event.terms.model, event.terms.judge)


def _call_started(line: TaskLine, event: CallStarted, ledger: Ledger) -> None:
    _settle(line, event, ledger)
    line.round_open = True
    line.call_at = event.at
    line.call_purpose = event.purpose.value
    line.reserved_usd = event.reserved_usd


def _call_failed(line: TaskLine, event: CallFailed, ledger: Ledger) -> None:
    if event.failure.unsettled:
        _settle(line, event, ledger)
    _close(line)


def _call_answered(line: TaskLine, event: CallAnswered, ledger: Ledger) -> None:
    price = line.setup(event.purpose).price
    used = Tally.of_call(event.answer.usage, event.paid(price), event.saved(price))
    book(line, event.purpose.value, used, event.at, ledger)


def _round_evaluated(line: TaskLine, event: RoundEvaluated, _ledger: Ledger) -> None:
    if event.final:
        line.rounds += 1
        line.round_open = False


def _finished(line: TaskLine, event: TaskFinished, ledger: Ledger) -> None:
    _settle(line, event, ledger)
    line.status = event.status
    line.reason = event.reason.value if event.reason else None
    line.message = error_message(event.result)
    line.since = line.finished_at = event.at


_Fold: TypeAlias = Callable[[TaskLine, Any, Ledger], None]
#: Of events that change more than every event does.
_FOLDS: Mapping[type[Event], _Fold] = {
    TaskStarted: _started,
    Resumed: _resumed,
    CallStarted: _call_started,
    CallAnswered: _call_answered,
    CallFailed: _call_failed,
    RoundEvaluated: _round_evaluated,
    CancelRequested: _settle,
    TaskFinished: _finished,
}


# The texts are built of constants, once: SQLite's statements are cached by text.
_LINE = ", ".join((*(f"t.{column}" for column in LINE_COLUMNS), *TALLY_OF_TASK.values()))
_LOAD = (
    f"SELECT t.name, {_LINE} FROM tasks t "  # noqa: S608 (constants)
    "WHERE t.batch = (SELECT id FROM batches WHERE name = ?) AND t.name IN (SELECT value FROM json_each(?))"
)
_HOT = f"UPDATE tasks SET {', '.join(f'{c} = ?' for c in HOT_COLUMNS)} WHERE id = ?"  # noqa: S608 (constants)
_COLD = f"UPDATE tasks SET {', '.join(f'{c} = ?' for c in COLD_COLUMNS)} WHERE id = ?"  # noqa: S608 (constants)
_WHOLE = _COLD.replace(" WHERE", f", {', '.join(f'{c} = ?' for c in HOT_COLUMNS)} WHERE")
INSERT_EVENT = "INSERT INTO events (task, seq, body) VALUES (?, ?, ?)"
_LEDGER_COLUMNS = (*LedgerKey._fields, *TALLIED)
_SPEND = (
    f"INSERT INTO spend ({', '.join(_LEDGER_COLUMNS)}) "  # noqa: S608 (constants)
    f"VALUES ({', '.join('?' * len(_LEDGER_COLUMNS))}) "
    "ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{column} = {column} + excluded.{column}" for column in TALLIED)
)
_ENDED = """
    UPDATE batches SET unfinished = unfinished - ?4,
        completed = completed + ?4 * (?1 = 'completed'), timeout = timeout + ?4 * (?1 = 'timeout'),
        error = error + ?4 * (?1 = 'error'), cancelled = cancelled + ?4 * (?1 = 'cancelled'),
        finished_at = CASE WHEN unfinished = ?4 THEN ?2 END
    WHERE id = ?3
"""

_hot = attrgetter(*HOT_COLUMNS.values(), "id")
_cold = attrgetter(*COLD_COLUMNS, "id")
_whole = attrgetter(*COLD_COLUMNS, *HOT_COLUMNS.values(), "id")
_tally = attrgetter(*TALLIED)


class TaskTransaction:
    """The tasks as the open transaction sees them.

    Every operation refuses, with a ``StaleAttemptError``, before it changes anything.
    """

    def __init__(self, db: sqlite3.Connection, now: Callable[[], float]) -> None:
        self.db = db
        #: The time, in seconds since the epoch.
        self.now = now
        self._lines: dict[Ref, TaskLine] = {}
        #: Used in this transaction.
        self._touched: dict[Ref, TaskLine] = {}
        #: Folded, but not written yet: by id.
        self._dirty: dict[int, TaskLine] = {}
        self._events: list[tuple[int, int, bytes]] = []
        self._ledger: Ledger = defaultdict(Tally)
        #: What this transaction adds to what the store knows.
        self.batches = 0
        self.events = 0

    def line(self, ref: Ref) -> TaskLine:
        """Return a task's row. Raises ``ValueError`` where there is no such task."""
        if ref in self._lines:
            self._touched[ref] = self._lines[ref]
        elif ref not in self._touched:
            self.load(ref.batch, [ref.task])
        if ref not in self._touched:
            raise ValueError(f"no task {ref}")
        return self._touched[ref]

    def load(self, batch: str, names: Sequence[str]) -> None:
        """Read rows of many tasks of a batch by one query, for what follows in this transaction."""
        refs = (Ref(batch, name) for name in names)
        wanted = [r.task for r in refs if r not in self._touched and r not in self._lines]
        for name, *row in self.db.execute(_LOAD, (batch, json.dumps(wanted))):
            self._touched[Ref(batch, name)] = self._line(row)

    def append(
        self,
        ref: Ref,
        attempt: int,
        seq: int,
        bodies: Sequence[bytes],
        events: Sequence[Event],
    ) -> None:
        """Append events, the first numbered ``seq``; what is there already is skipped.

        Raises ``StaleAttemptError``, and appends nothing, where the attempt is not the current one,
        numbers are missing, the task has ended, or other events have these numbers.
        """
        line = self.line(ref)
        if attempt != line.attempt:
            raise StaleAttemptError(
                f"{ref}: attempt {attempt} is not {line.attempt}, the current one"
            )
        known = line.seq - seq
        if known < 0:
            raise StaleAttemptError(f"{ref}: events {line.seq} to {seq - 1} are missing")
        if known and self.history(line, seq)[: len(bodies)] != tuple(bodies[:known]):
            raise StaleAttemptError(f"{ref}: other events than these have the numbers from {seq}")
        if known >= len(bodies):
            return
        if line.final:
            raise StaleAttemptError(f"{ref} has ended as {line.status}")
        self._fold(line, bodies[known:], events[known:])

    def finish(self, ref: Ref, event: TaskFinished, attempt: int | None) -> bool:
        """Store a task's end unless it has one; return whether this is it.

        ``attempt`` None: the daemon itself ends it, whatever worker has it.
        Raises ``StaleAttemptError`` where the attempt is not the current one.
        """
        line = self.line(ref)
        if line.final:
            return False
        if attempt not in {None, line.attempt}:
            raise StaleAttemptError(
                f"{ref}: attempt {attempt} is not {line.attempt}, the current one"
            )
        self._fold(line, [vocabulary.encode(event)], [event])
        return True

    def adopt(self, ref: Ref, event: TaskFinished, used: Tally) -> None:
        """Store an end that lies in the outbox, unless there is one,
        and what its agent used until then.
        """
        line = self.line(ref)
        if not line.final:
            book(line, Purpose.AGENT, used, event.at, self._ledger)
            self._fold(line, [vocabulary.encode(event)], [event])

    def move(self, line: TaskLine, status: TaskStatus, message: str, now: float) -> None:
        """Write a new status that does not come from an event."""
        line.status, line.message, line.since = status, message, now
        self.db.execute(_COLD, _cold(line))
        self._dirty[line.id] = line

    def history(self, line: TaskLine, start: int = 0) -> tuple[bytes, ...]:
        """Return a task's events from number ``start`` on, encoded."""
        self.flush()
        rows = self.db.execute(
            "SELECT body FROM events WHERE task = ? AND seq >= ? ORDER BY seq", (line.id, start)
        )
        return tuple(unpack(body) for (body,) in rows)

    def flush(self) -> None:
        """Write what was folded."""
        if self._events:
            self.db.executemany(INSERT_EVENT, self._events)
            self._events.clear()
        if ended := [line for line in self._dirty.values() if line.final]:
            self._write_ends(ended)
        if len(ended) < len(self._dirty):
            left = (line for line in self._dirty.values() if not line.final)
            self.db.executemany(_HOT, map(_hot, left))
        self._dirty.clear()
        if self._ledger:
            self.db.executemany(_SPEND, ((*a, *_tally(t)) for a, t in self._ledger.items()))
            self._ledger.clear()

    def _write_ends(self, ended: Sequence[TaskLine]) -> None:
        self.db.executemany(_WHOLE, map(_whole, ended))
        self.db.executemany("DELETE FROM secrets WHERE task = ?", ((line.id,) for line in ended))
        by_batch: dict[int, list[TaskLine]] = {}
        for line in ended:
            by_batch.setdefault(line.batch, []).append(line)
        for batch, lines in by_batch.items():
            last = max(line.finished_at or 0.0 for line in lines)
            for status, count in Counter(line.status for line in lines).items():
                self.db.execute(_ENDED, (status, last, batch, count))

    def committed(self) -> None:
        """Keep the rows of running tasks for the next transaction."""
        self.batches = self.events = 0
        for ref, line in self._touched.items():
            if line.status == TaskStatus.RUNNING:
                self._lines[ref] = line
            else:
                self._lines.pop(ref, None)
        self._touched.clear()

    def rolled_back(self) -> None:
        """Forget what the transaction did."""
        self.batches = self.events = 0
        for ref in self._touched:
            self._lines.pop(ref, None)
        for pending in (self._touched, self._dirty, self._events, self._ledger):
            pending.clear()

    def _line(self, row: Sequence[object]) -> TaskLine:
        # A damaged byte may have made a number of a text: no sum is to meet that first.
        known: dict[str, object] = dict(zip(LINE_COLUMNS, row, strict=False))
        known["tally"] = dict(zip(TALLIED, row[len(LINE_COLUMNS) :], strict=True))
        line = decoders.convert(known, TaskLine)
        if not line.seq:
            return line
        first = self.db.execute("SELECT body FROM events WHERE task = ? AND seq = 0", (line.id,))
        for (body,) in first:
            event = vocabulary.decode(unpack(body))
            if isinstance(event, TaskStarted):
                line.setups = (event.terms.model, event.terms.judge)
        return line

    def _fold(self, line: TaskLine, bodies: Sequence[bytes], events: Sequence[Event]) -> None:
        self.events += len(bodies)
        for body, event in zip(bodies, events, strict=True):
            self._events.append((line.id, line.seq, pack(body)))
            fold(line, event, self._ledger)
        self._dirty[line.id] = line
