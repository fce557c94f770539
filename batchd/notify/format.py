"""The format of a notification, version 1: what webhooks and commands get.

The JSON Schema derives from it.

Numbers are numbers, moments are ISO 8601 in UTC with Z, durations are seconds. Fields may be
added; none is renamed or removed within version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchd.formats import json_schema
from batchd.records import Reason, TaskStatus

SCHEMA = "batchd/notification/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresV1:
    """Tasks of a batch that ended alike, without being completed."""

    status: TaskStatus
    reason: Reason | None
    count: int
    #: One of them, and what it says.
    task: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchV1:
    """A batch that ended; its ``summary.json`` has more."""

    name: str
    #: Its folder in the outbox.
    folder: str
    retry_of: str | None = None
    counts: Mapping[TaskStatus, int] = field(default_factory=dict)
    total: int = 0
    #: Completed tasks of all, 0 to 1; null for a refused file.
    success_rate: float | None = None
    total_tokens: int = 0
    #: null: no price is known.
    cost_usd: float | None = None
    #: What calls without a recorded answer may have cost on top, at most.
    unsettled_usd: float | None = None
    #: From the drop to the last result.
    wall_s: float = 0.0
    #: The most frequent first.
    failures: tuple[FailuresV1, ...] = ()
    #: Why a file was refused; the first of them.
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetV1:
    """A budget that is spent."""

    #: ``batch`` or ``day``.
    scope: str
    #: null: the day's.
    batch: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderV1:
    """A provider that is parked, or one of its models, or no longer."""

    name: str
    #: ``auth``, ``quota``, ``provider_unavailable``,
    #: ``rate_limited``, ``model_gone`` or ``model_unfit``.
    cause: str
    since: str
    #: ``PROVIDER/MODEL``; null: the provider as a whole.
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelV1:
    """A model in use that is shut down, or will be soon."""

    #: ``PROVIDER/MODEL``.
    name: str
    #: The first day without it, as in 2026-12-11, in UTC;
    #: null: it is gone, and it is not known since when.
    shutdown_date: str | None
    #: What to take in its place; null: nothing is known.
    successor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonV1:
    """A daemon that started."""

    version: str
    pid: int
    #: Whether the last one did not end by itself: it was killed, or the machine went down.
    after_crash: bool
    #: Batches without a summary, and their tasks that have not ended.
    batches: int
    tasks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventV1:
    """One thing that happened."""

    #: Unique; who gets an event twice recognises it by this.
    id: str
    #: One of the names that ``on`` takes, or ``test``.
    event: str
    at: str
    #: A line for people.
    headline: str
    #: What more there is to say, one line or several; may be empty.
    message: str = ""
    #: What can be done about it; may be empty.
    how_to_go_on: str = ""
    #: Of these, at most one is there.
    batch: BatchV1 | None = None
    budget: BudgetV1 | None = None
    provider: ProviderV1 | None = None
    model: ModelV1 | None = None
    daemon: DaemonV1 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationV1:
    """A message to one receiver: one event, or several that came close together."""

    schema: str = SCHEMA
    #: Unique; a retry keeps it.
    id: str
    #: When it was made.
    at: str
    #: The machine's name.
    host: str
    #: For people, as a mail has them.
    subject: str
    text: str
    #: Oldest first.
    events: tuple[EventV1, ...]
    #: More of them that are only counted, by name.
    left_out: Mapping[str, int] = field(default_factory=dict)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a notification."""
    return json_schema(NotificationV1)
