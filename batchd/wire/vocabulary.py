"""Messages between the daemon and every worker. Which way each goes stands in its docstring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct, field

from batchd.events import CallStarted, Terms
from batchd.records import (
    Activity,
    Base,
    Batch,
    Chain,
    Endpoint,
    Failure,
    Purpose,
    RateLimit,
    Ref,
    SandboxPolicy,
    Task,
)

#: How an attempt ended in its worker; ``refused``: the worker takes no task;
#: ``unopened``: the batch's folder takes no directory.
DoneAs: TypeAlias = Literal[
    "published", "unpublished", "suspended", "stale", "failed", "refused", "unopened"
]


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """The settings of a worker, from the configuration."""

    #: By provider name.
    endpoints: Mapping[str, Endpoint]
    sandbox: SandboxPolicy
    agents_per_process: int = 1
    #: Seconds between two heartbeats.
    heartbeat_s: float = 2.0
    #: Whether each step is to be said at once, for the log,
    #: and not the last one of those within an instant.
    each_step: bool = False
    #: On another machine:
    #: how long the worker may go on after the last renewal of its lease, in seconds.
    lease_s: float = 0.0
    #: There: whether directories of tasks travel, since it does not have them at the same paths.
    travels: bool = False

    def secrets(self) -> Iterator[str]:
        """Yield what only the providers may see."""
        return (secret for endpoint in self.endpoints.values() for secret in endpoint.secrets())


class Hello(Struct, frozen=True, kw_only=True):
    """Both: the first message each way, on this machine.

    A difference in ``version`` or ``code`` ends the worker.
    """

    version: str
    #: Up: the fingerprint of the files that the worker runs.
    code: str = ""
    #: Up: the worker's process.
    pid: int = 0
    #: Up: why no task can run there.
    problem: str = ""
    #: Down.
    settings: WorkerSettings | None = None


class Run(Struct, frozen=True, kw_only=True):
    """Down: work on this task; also to resume it, with its history."""

    ref: Ref
    attempt: int
    task: Task
    batch: Batch
    #: Model, judge and prices from today's configuration; a task that has started keeps its own.
    terms: Terms
    #: When it was first queued.
    queued_at: float
    #: The machine that it is handed to; empty: the daemon's.
    node: str = ""
    #: The folder that is its commands' /tmp, over all of its attempts;
    #: empty: each command gets an empty one.
    tmp: str = ""
    #: What its directory begins as; None: it begins empty, or is another's.
    base: Base | None = None
    #: What its directory is made of, where the worker does not have it at the same path;
    #: None: it has.
    chain: Chain | None = None
    #: How long it may take to make that, in seconds.
    base_s: float = 600.0
    #: The size of its patch, in bytes.
    max_patch_bytes: int = 10 << 20
    #: By model: what it is known to refuse.
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The stored events as ``events.encode`` made them, oldest first.
    history: tuple[msgspec.Raw, ...] = ()


class History(Struct, frozen=True, kw_only=True):
    """Down: an earlier part of the history that a ``Run`` of this attempt ends."""

    ref: Ref
    attempt: int
    events: tuple[msgspec.Raw, ...]


class CancelTask(Struct, frozen=True):
    """Down: end this task as cancelled."""

    ref: Ref
    attempt: int
    message: str = ""


class Park(Struct, frozen=True):
    """Down: give this task's slot back at the next durable point."""

    ref: Ref
    attempt: int
    cause: str = ""


class Drain(Struct, frozen=True):
    """Down: give every slot back at its next durable point, then exit."""


class Retune(Struct, frozen=True):
    """Down: the configuration has changed; counts for what starts from now on."""

    settings: WorkerSettings


class Ask(Struct, frozen=True, kw_only=True):
    """Up: may this task make a model call? Answered by ``Granted`` or ``Denied``, at its time."""

    ref: Ref
    attempt: int
    #: The number of the first of ``events``.
    seq: int
    #: To be committed with the permit.
    events: tuple[msgspec.Raw, ...]
    purpose: Purpose
    #: ``provider/model``.
    model: str
    #: Estimated.
    input_tokens: int
    max_output_tokens: int
    #: By provider: its rate limits, as far as they were reported
    #: since the last message; never stored.
    limits: Mapping[str, tuple[RateLimit, ...]] = field(default_factory=dict)
    #: By model: what it was seen to refuse and to do without, since the last message.
    lessons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Failed(Struct, frozen=True, kw_only=True):
    """Up: the granted call failed; what now? Answered like ``Ask``, whose fields it repeats.

    The last of its events is the ``CallFailed``.
    """

    ask: Ask
    failure: Failure


class Granted(Struct, frozen=True):
    """Down: make the call now. ``event`` is committed already, and takes the next number."""

    ref: Ref
    attempt: int
    event: CallStarted


class Denied(Struct, frozen=True, kw_only=True):
    """Down: make no call. Park, or finish as the event says; the worker records it."""

    ref: Ref
    attempt: int
    #: An encoded ``CallDenied`` to finish with, or an encoded ``Suspended`` to park with.
    event: msgspec.Raw


class Record(Struct, frozen=True, kw_only=True):
    """Up: make these events durable. Answered by ``Ack`` or ``Nack``."""

    ref: Ref
    attempt: int
    seq: int
    events: tuple[msgspec.Raw, ...]
    #: As in ``Ask``.
    limits: Mapping[str, tuple[RateLimit, ...]] = field(default_factory=dict)
    lessons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Ack(Struct, frozen=True):
    """Down: every event below ``seq`` is durable."""

    ref: Ref
    attempt: int
    seq: int


class Nack(Struct, frozen=True):
    """Down: this attempt is stale or its events were refused: stop working on it, write nothing."""

    ref: Ref
    attempt: int


class Progress(Struct, frozen=True, kw_only=True):
    """Up: what a task is doing right now; for people, never durable."""

    ref: Ref
    attempt: int
    step: Activity
    detail: str = ""


class Done(Struct, frozen=True):
    """Up: the slot is free."""

    ref: Ref
    attempt: int
    outcome: DoneAs
    #: For ``failed`` and ``refused``: for the log.
    message: str = ""


class Heartbeat(Struct, frozen=True):
    """Up: the worker's loop turns. From another machine answered by ``LeaseRenewed``."""

    #: Resident memory in bytes.
    rss: int = 0
    #: Tasks it works on.
    busy: int = 0
    #: Which heartbeat of this worker's it is.
    number: int = 0
