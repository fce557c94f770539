"""The fold of a task's events into its row and into the ledger of money.

It keeps what people look at and what money limits need, by the rules of ``taskstate``; a test
holds both to the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from msgspec import Struct

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
from batchd.records import TALLIED, ModelSetup, Purpose, Tally, TaskStatus
from batchd.store.stored_values import error_message

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
    #: The task's tags, as ``labels`` writes them.
    tags: str


class Ledger(dict[LedgerKey, Tally]):
    """The ledger: what a transaction adds to it."""

    def __missing__(self, account: LedgerKey) -> Tally:
        return _NOTHING


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
    _FOLDS.get(kind, _nothing)(line, event, ledger)
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


def _nothing(_line: TaskLine, _event: Event, _ledger: Ledger) -> None:
    """Leave the row as it is, but for what every event changes."""


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
