"""Batches and tasks as programs are shown them: by ``status --json`` and the control socket.

Their JSON Schema is what ``batchd schema`` prints: fields are added, none is renamed or removed.
"""

from __future__ import annotations

from typing import Self, TypeVar

from msgspec import Struct

from batchd.errors import Problem
from batchd.records import BatchStatus, TaskStatus
from batchd.store.rows import BatchRow, TaskRow

S = TypeVar("S", bound=Struct)


class TallyJson(Struct, frozen=True, kw_only=True):
    """Calls, tokens and money, in US dollars."""

    calls: int = 0
    input_tokens: int = 0
    #: Of it, what was read from the provider's prompt cache, what was written to it, and what is
    #: kept there for an hour or longer.
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_long_tokens: int = 0
    #: The input of calls whose provider says how much of it came from its cache.
    cache_reported_tokens: int = 0
    cache_saved_usd: float = 0.0
    output_tokens: int = 0
    #: Calls without a recorded answer that may have been paid, and what they may have cost.
    unsettled_calls: int = 0
    unsettled_usd: float = 0.0
    reasoning_tokens: int = 0
    #: Whether any of it was counted by batchd because the provider sent no usage.
    estimated: bool = False
    #: null: a price is missing.
    cost_usd: float | None = None
    #: What the calls came to whose price is known.
    known_usd: float = 0.0
    #: 0 to 1; null: no provider says.
    cache_share: float | None = None
    cache_saved: float | None = None


class BatchJson(TallyJson, frozen=True, kw_only=True):
    """A batch. Moments are seconds since the epoch."""

    name: str
    #: Its folder in the outbox, and what its file is called there.
    folder: str = ""
    request: str
    #: null: the daemon is of a version that does not say.
    status: BatchStatus | None = None
    received_at: float
    #: When its last task ended, and when its summary was written.
    finished_at: float | None = None
    published_at: float | None = None
    #: Whether its file was refused, and why.
    rejected: bool = False
    problems: tuple[Problem, ...] = ()
    tasks: int = 0
    queued: int = 0
    running: int = 0
    parked: int = 0
    completed: int = 0
    timeout: int = 0
    error: int = 0
    cancelled: int = 0
    #: Tasks whose journals were dropped.
    pruned: int = 0
    #: 0: none.
    budget_usd: float = 0.0
    #: Tasks that work at a time; 0: as many as there are slots.
    parallel: int = 0
    #: The batches that must have completed first.
    after_batches: tuple[str, ...] = ()
    #: The batch that this one runs again.
    retry_of: str | None = None
    #: The unique mark of its file, the folder that it was to go to, the order of its first task,
    #: and what marks the file of a ``run``.
    claim: str = ""
    outbox: str = ""
    first_task: int = 0
    run: str = ""

    @classmethod
    def of(cls, row: BatchRow, **more: object) -> Self:
        """Return a batch as it is shown, with ``more`` of its fields."""
        return filled(cls, row, row.batch, row.tally, rejected=bool(row.problems), **more)


class TaskJson(TallyJson, frozen=True, kw_only=True):
    """A task. Moments are seconds since the epoch."""

    batch: str
    task: str
    status: TaskStatus
    reason: str | None
    #: The error's message, or why it is parked.
    message: str
    model: str
    priority: int
    directory: str
    #: The tasks that must have completed before.
    after: tuple[str, ...]
    #: What the machine of its worker must have, and the one that it is to work on; empty: any.
    needs: str = ""
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

    @classmethod
    def of(cls, row: TaskRow, **more: object) -> Self:
        """Return a task as it is shown, with ``more`` of its fields."""
        return filled(cls, row, row.ref, row.tally, **more)


def filled(kind: type[S], *sources: object, **more: object) -> S:
    """Return a record of what ``more`` says, and of attributes of the same name: each is taken from
    the first source that has it.
    """
    names = [name for name in kind.__struct_fields__ if name not in more]
    found = {n: getattr(s, n) for s in reversed(sources) for n in names if hasattr(s, n)}
    return kind(**found, **more)
