"""Records that the store returns, not rows of tables.

A task as it was dropped is a ``records.Task``. What the table ``tasks`` keeps of it has one
definition, ``task_transaction.TaskLine``, and these views, each no larger than who asks needs it:
``TaskRow`` for people, ``records.Facts`` for the lifecycle and ``BatchTask`` for orders,
both of which hold a hundred thousand at once, ``queries.PastTask`` for estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from batchd.errors import Problem
from batchd.records import (
    Batch,
    BatchStatus,
    Parking,
    Ref,
    Tally,
    TargetCounts,
    TaskStatus,
    TurnFacts,
    outcome,
)
from batchd.words import NO_TAG


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchedTask:
    """A task that was just given to a worker."""

    #: Older ones are refused from now on.
    attempt: int
    #: Its events as ``events.encode`` made them, oldest first.
    history: tuple[bytes, ...]
    queued_at: float
    #: Workers that died of it so far.
    crashes: int


class BatchTask(NamedTuple):
    """A task of a batch, ended or not, as an order looks at it."""

    status: TaskStatus
    #: The ids of those that it comes after.
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWork:
    """Everything that a daemon that starts must know."""

    #: Batches whose summary is not published yet, refused files among them.
    batches: tuple[Batch, ...]
    #: By order.
    queued: tuple[TurnFacts, ...]
    #: Those of them that gave their slot back, in the order in which they did.
    given_back: tuple[TurnFacts, ...]
    #: Tasks that ended, but whose result is not confirmed as published.
    unpublished: tuple[Ref, ...]
    #: Tasks that ended and that some of ``queued`` come after.
    ended: tuple[tuple[Ref, TaskStatus], ...]
    #: What waits, and why; oldest first.
    parked: tuple[Parking, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunableBatch:
    """A published batch, and what the store still keeps of it beside its figures."""

    batch: Batch
    tasks: int
    published_at: float
    #: Whether there is anything to drop.
    stored: bool
    #: Journals and task texts, as they are stored.
    bytes: int


@dataclass(frozen=True, slots=True)
class SpentMoney:
    """The money that was spent, in US dollars, as far as prices are known."""

    settled: float = 0.0
    #: Requests that may have been paid without an answer.
    unsettled: float = 0.0
    #: Requests under way.
    reserved: float = 0.0

    @property
    def total(self) -> float:
        """What counts against a limit."""
        return self.settled + self.unsettled + self.reserved


@dataclass(frozen=True, slots=True)
class WorkDone:
    """The work of some tasks, or of all of them in some time."""

    #: Tasks that have ended.
    tasks: int = 0
    tokens: float = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task, as people look at it."""

    ref: Ref
    tally: Tally
    status: TaskStatus
    reason: str | None
    #: The error's message, or why it is parked.
    message: str
    model: str
    priority: int
    directory: str
    #: The ids of the tasks that must have completed before.
    after: tuple[str, ...]
    #: What the machine of its worker must have, in words; empty: nothing.
    needs: str = ""
    #: The machine that it is to work on; empty: any.
    machine: str = ""
    #: Rounds begun.
    round: int
    #: The kind of its last event.
    step: str
    #: Who works on it, or did last.
    worker: str
    attempts: int
    crashes: int
    queued_at: float
    #: When it came into its status.
    since: float
    started_at: float | None
    finished_at: float | None
    published: bool

    @property
    def took_s(self) -> float | None:
        """Seconds from its start to its end; None: it has not had both."""
        began, ended = self.started_at, self.finished_at
        return ended - began if began and ended else None

    @property
    def counts(self) -> TargetCounts:
        """The one task, counted."""
        done = self.status is TaskStatus.COMPLETED
        return TargetCounts(not self.status.final, done, self.status.final and not done)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One batch, as people look at it."""

    batch: Batch
    tally: Tally
    tasks: int
    queued: int
    running: int
    parked: int
    completed: int
    timeout: int
    error: int
    cancelled: int
    finished_at: float | None
    published_at: float | None
    #: Tasks whose journals were dropped.
    pruned: int
    #: Why the file was refused.
    problems: tuple[Problem, ...]

    @property
    def finished(self) -> int:
        """Tasks that have their end."""
        return self.completed + self.timeout + self.error + self.cancelled

    @property
    def failed(self) -> int:
        """Tasks that neither completed nor were cancelled."""
        return self.timeout + self.error

    @property
    def counts(self) -> TargetCounts:
        """Its tasks, counted."""
        finished = self.finished
        return TargetCounts(self.tasks - finished, self.completed, finished - self.completed)

    @property
    def status(self) -> BatchStatus:
        """How it stands, in one word."""
        if self.problems:
            return "rejected"
        if self.finished >= self.tasks:
            return outcome({s: getattr(self, s) for s in TaskStatus if s.final})
        if self.running:
            return "running"
        return "parked" if self.parked and not self.queued else "queued"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendRow:
    """One part of the ledger. What it was not split by is empty."""

    tally: Tally
    #: ``2026-11-24``, UTC.
    day: str = ""
    batch: str = ""
    provider: str = ""
    #: The model's name at the provider.
    model: str = ""
    purpose: str = ""
    #: None: of tasks without any.
    tag: str | None = ""

    def name(self, split: str) -> str:
        """Return under what it is shown where it was split so: a model with its provider."""
        if split == "model":
            return f"{self.provider}/{self.model}"
        found: str | None = getattr(self, split)
        return NO_TAG if found is None else found


@dataclass(frozen=True, slots=True)
class WaitingNotice:
    """An event that a receiver of notifications is to get."""

    receiver: str
    #: The event's.
    id: str
    #: JSON.
    event: str
    #: The id of the message in which it was tried; empty: it was not.
    message: str = ""


@dataclass(frozen=True, slots=True)
class LearntRefusal:
    """A refusal that was learnt: what a model refuses, and does without."""

    #: ``provider/model``.
    model: str
    #: In the words of ``llm.dialect``.
    lesson: str
    #: What says how it was called.
    setting: str
    at: float
