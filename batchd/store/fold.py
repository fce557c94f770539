"""The fold of a task's events into its row and into the ledger of money.

It keeps what people look at and what money limits need, by the rules of ``taskstate``; a test
holds both to the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
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
from batchd.records import ModelSetup, Purpose, TaskStatus
from batchd.store.stored_values import error_message

_DAY_S = 86400


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


@dataclass(slots=True)
class LedgerAmounts:
    """The amounts that are added to a row of the ledger, by the names of its columns."""

    calls: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_long_tokens: int = 0
    cache_reported_tokens: int = 0
    cache_saved_usd: float = 0.0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_calls: int = 0
    unpriced_calls: int = 0
    input_usd: float = 0.0
    output_usd: float = 0.0
    unsettled_calls: int = 0
    unsettled_usd: float = 0.0


TALLY_COLUMNS = tuple(f.name for f in fields(LedgerAmounts))


class Ledger(dict[LedgerKey, LedgerAmounts]):
    """The ledger: what a transaction adds to it."""

    def __missing__(self, account: LedgerKey) -> LedgerAmounts:
        tally = self[account] = LedgerAmounts()
        return tally


class TaskLine(Struct, array_like=True):
    """A task's row while it is worked on: its columns, by their names, in the order of loading."""

    id: int
    batch: int
    model: str
    tags: str
    # Written when they change.
    status: TaskStatus
    reason: str | None
    message: str
    since: float
    attempt: int
    crashes: int
    worker: str
    finished_at: float | None
    # Written with the events.
    seq: int
    rounds: int
    round_open: int
    calls: int
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    cache_write_long_tokens: int
    cache_reported_tokens: int
    cache_saved_usd: float
    output_tokens: int
    reasoning_tokens: int
    estimated: int
    cost_usd: float | None
    unsettled_calls: int
    unsettled_usd: float
    call_at: float | None
    call_purpose: str | None
    reserved_usd: float | None
    step: str
    started_at: float | None
    last_at: float | None
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


_COLUMNS = TaskLine.__struct_fields__[:-1]
_FIRST_HOT = _COLUMNS.index("seq")
LINE_COLUMNS = _COLUMNS
#: Status and what comes with it.
COLD_COLUMNS = _COLUMNS[_COLUMNS.index("status") : _FIRST_HOT]
#: What changes with every event.
HOT_COLUMNS = _COLUMNS[_FIRST_HOT:]
#: What a task's row and the ledger sum up alike.
_OF_BOTH = tuple(name for name in TALLY_COLUMNS if name in _COLUMNS)


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


def book(line: TaskLine, purpose: str, used: LedgerAmounts, at: float, ledger: Ledger) -> None:
    """Add what a task used to its row and the ledger, where no event of ours shows it;
    the open call is part of it.
    """
    _close(line)
    tally = ledger[_account(line, purpose, at)]
    for name in TALLY_COLUMNS:
        setattr(tally, name, getattr(tally, name) + getattr(used, name))
    for name in _OF_BOTH:
        setattr(line, name, getattr(line, name) + getattr(used, name))
    line.estimated |= used.estimated_calls > 0
    if used.unpriced_calls or line.cost_usd is None:
        line.cost_usd = None
    else:
        line.cost_usd += used.input_usd + used.output_usd


def _close(line: TaskLine) -> None:
    line.call_at = line.call_purpose = line.reserved_usd = None


def _settle(line: TaskLine, _event: object, ledger: Ledger) -> None:
    """Book the open call, if there is one, as perhaps paid: ``TaskState.settled``."""
    if line.call_at is None:
        return
    reserved = line.reserved_usd or 0.0
    line.unsettled_calls += 1
    line.unsettled_usd += reserved
    tally = ledger[_account(line, line.call_purpose or "", line.call_at)]
    tally.unsettled_calls += 1
    tally.unsettled_usd += reserved
    _close(line)


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
    usage = event.answer.usage
    price = line.setup(event.purpose).price
    cost, saved = event.paid(price), event.saved(price) or 0.0
    tally = ledger[_account(line, event.purpose.value, event.at)]
    for sums in (line, tally):
        sums.calls += usage.calls
        sums.input_tokens += usage.input_tokens
        sums.cached_input_tokens += usage.cached_input_tokens
        sums.cache_write_tokens += usage.cache_write_tokens
        sums.cache_write_long_tokens += usage.cache_write_long_tokens
        sums.cache_reported_tokens += usage.reported_tokens
        sums.cache_saved_usd += saved
        sums.output_tokens += usage.output_tokens
        sums.reasoning_tokens += usage.reasoning_tokens
    line.estimated |= usage.estimated
    tally.estimated_calls += usage.calls if usage.estimated else 0
    if cost is None:
        line.cost_usd = None
        tally.unpriced_calls += usage.calls
    else:
        line.cost_usd = None if line.cost_usd is None else line.cost_usd + cost.total
        tally.input_usd += cost.input
        tally.output_usd += cost.output
    _close(line)


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
