"""Records that the store returns, not rows of tables; and large values as it keeps them: JSON,
deflated where that is worth its time.

A task as it was dropped is a ``records.Task``. What the table ``tasks`` keeps of it has one
definition, ``task_transaction.TaskLine``, and these views, each no larger than who asks needs it:
``TaskRow`` for people, ``records.Facts`` for the lifecycle and ``BatchTask`` for orders, both of
which hold a hundred thousand at once, ``queries.PastTask`` for estimates.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from batchd import decoders
from batchd.errors import Problem
from batchd.records import (
    Batch,
    BatchStatus,
    Parking,
    Ref,
    Tally,
    TargetCounts,
    Task,
    TaskStatus,
    TurnFacts,
    outcome,
)


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

    def __add__(self, other: WorkDone) -> WorkDone:
        return WorkDone(self.tasks + other.tasks, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: WorkDone) -> WorkDone:
        return WorkDone(self.tasks - other.tasks, self.tokens - other.tokens, self.usd - other.usd)


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


#: Below this, deflating saves less than a row costs anyway.
_DEFLATE_FROM_BYTES = 512
#: How a zlib stream begins. JSON never does.
_ZLIB = b"x"
#: The header of a stream whose window is at most 32 KB (RFC 1950).
_HEADER = b"x\x01"
#: Up to this size a small window is enough, and a fifth of the time: to clear the large one takes
#: longer than to deflate so little (700 bytes: 14 µs, where it was 75; 4 KB: 31, where it was 90).
_SMALL_WINDOW_UP_TO_BYTES = 4096
_WINDOW_BITS, _MEMORY_LEVEL = 13, 6

_TASK: msgspec.json.Decoder[Task] = decoders.decoder(Task)
_VALUES: msgspec.json.Decoder[dict[str, str]] = decoders.decoder(dict[str, str])


def pack(body: bytes) -> bytes:
    """Return JSON text as it is stored.

    Level 1: a fifth of the time of the default, and nearly its size.
    """
    if len(body) <= _DEFLATE_FROM_BYTES:
        return body
    deflated = _small(body) if len(body) <= _SMALL_WINDOW_UP_TO_BYTES else zlib.compress(body, 1)
    return deflated if len(deflated) < len(body) else body


def _small(body: bytes) -> bytes:
    """Return a few bytes deflated, with the header by which every version knows a stream."""
    deflating = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
    deflated = deflating.compress(body) + deflating.flush()
    return _HEADER + deflated[len(_HEADER) :]


def unpack(stored: bytes) -> bytes:
    """Return the JSON text that ``pack`` stored."""
    return zlib.decompress(stored) if stored.startswith(_ZLIB) else stored


def pack_task(task: Task) -> bytes:
    """Return a task as it is stored: without the values of its secrets."""
    if task.secrets:
        names = {name: replace(secret, value="") for name, secret in task.secrets.items()}
        task = replace(task, secrets=names)
    return pack(msgspec.json.encode(task))


def pack_secrets(task: Task) -> bytes:
    """Return the values of a task's secrets as they are stored,
    as long as it has not ended; empty: it has none.
    """
    values = {name: secret.value for name, secret in task.secrets.items() if secret.value}
    return msgspec.json.encode(values) if values else b""


def unpack_task(stored: bytes, secrets: bytes | None = None) -> Task:
    """Return the task that ``pack_task`` stored, and ``pack_secrets``, if they are still there."""
    task = _TASK.decode(unpack(stored))
    if not secrets:
        return task
    known = dict(task.secrets)
    for name, value in _VALUES.decode(secrets).items():
        known[name] = replace(known[name], value=value)
    return replace(task, secrets=known)


def error_message(result: str) -> str:
    """Return the ``error.message`` of a result's text; empty where it has none."""
    try:
        error: Any = decoders.decode(result, _Peek).error
    except msgspec.MsgspecError:
        return ""
    return error.message if error else ""


class _Error(msgspec.Struct):
    message: str = ""


class _Peek(msgspec.Struct):
    error: _Error | None = None


class TaskLabels(NamedTuple):
    """Three columns of a task's row."""

    #: Its tags as JSON, sorted and each once; empty: it has none. Equal sets are equal texts.
    tags: str
    #: Who evaluates its rounds, in order: words of ``check``,
    #: ``output_schema`` and ``judge``, or ``none``.
    evaluation: str
    #: How long the user's own prompts are, in characters.
    prompt_chars: int


def labels_of(task: Task) -> TaskLabels:
    """Return the labels of a task."""
    asked = {
        "check": task.check,
        "output_schema": task.output_schema is not None,
        "judge": task.evaluator == "judge",
    }
    return TaskLabels(
        tags=msgspec.json.encode(sorted(set(task.tags))).decode() if task.tags else "",
        evaluation=" ".join(by for by, wanted in asked.items() if wanted) or "none",
        prompt_chars=len(task.first_prompt) + len(task.system_prompt),
    )
