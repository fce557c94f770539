"""The messages between the daemon and its workers,
on its machine or on another one, as frames on a stream socket.

A worker owns no durable state. First comes what all of them speak, then what those on other
machines speak beside that, and how it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from batchd import decoders
from batchd.events import CallStarted, Event, Terms, decode as decode_event
from batchd.records import (
    Activity,
    Base,
    Batch,
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
    #: There: where the keys of ``endpoints`` are, by provider.
    keys: Mapping[str, KeySource] = field(default_factory=dict)

    def secrets(self) -> Iterator[str]:
        """Yield what only the providers may see."""
        return (secret for endpoint in self.endpoints.values() for secret in endpoint.secrets())


class KeySource(Struct, frozen=True):
    """Where a worker on another machine has a provider's key from: the key itself stays here."""

    #: The name of a variable, and the path of a file; both empty: the provider wants no key.
    env: str = ""
    file: str = ""


class FolderProof(Struct, frozen=True):
    """A folder that the machines share, and the name of what the daemon has put there to prove
    it.
    """

    folder: str
    name: str


class MachineFacts(Struct, frozen=True, kw_only=True):
    """What a worker on another machine finds there."""

    #: The machine's own name.
    host: str
    #: ``3.11``, ``3.13``.
    python: str
    #: Its clock, in seconds since the epoch.
    at: float
    #: By provider whose key is there: the key's digest, with the daemon's salt.
    keys: Mapping[str, str]


class Hello(Struct, frozen=True, kw_only=True):
    """Both: the first message each way.

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
    #: Down, to another machine: what distinguishes digests of keys, and the folders to prove.
    salt: str = ""
    proofs: tuple[FolderProof, ...] = ()
    #: Up, from there.
    machine: MachineFacts | None = None


class _OfAttempt(Struct, frozen=True):
    """What all messages about an attempt at a task have."""

    ref: Ref
    attempt: int


class _Committing(_OfAttempt, frozen=True, kw_only=True):
    """What comes up with events that are to become durable."""

    #: The number of the first of ``events``.
    seq: int
    events: tuple[msgspec.Raw, ...]
    #: By provider: its rate limits, as far as they were reported
    #: since the last message; never stored.
    limits: Mapping[str, tuple[RateLimit, ...]] = field(default_factory=dict)
    #: By model: what it was seen to refuse and to do without, since the last message.
    lessons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Run(_OfAttempt, frozen=True, kw_only=True):
    """Down: work on this task; also to resume it, with its history."""

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
    #: Whether files of its directory may be lost, whatever the machine says of itself.
    lost: bool = False
    #: How long it may take to make that, in seconds.
    base_s: float = 600.0
    #: The size of its patch, in bytes.
    max_patch_bytes: int = 10 << 20
    #: By model: what it is known to refuse.
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: The stored events as ``events.encode`` made them, oldest first.
    history: tuple[msgspec.Raw, ...] = ()


class History(_OfAttempt, frozen=True, kw_only=True):
    """Down: an earlier part of the history that a ``Run`` of this attempt ends."""

    events: tuple[msgspec.Raw, ...]


class CancelTask(_OfAttempt, frozen=True):
    """Down: end this task as cancelled."""

    message: str = ""


class Park(_OfAttempt, frozen=True):
    """Down: give this task's slot back at the next durable point."""

    cause: str = ""


class Drain(Struct, frozen=True):
    """Down: give every slot back at its next durable point, then exit."""


class Retune(Struct, frozen=True):
    """Down: the configuration has changed; counts for what starts from now on."""

    settings: WorkerSettings


class Ask(_Committing, frozen=True, kw_only=True):
    """Up: may this task make a model call? Its events are committed with the permit.

    Answered by ``Granted`` or ``Denied``, at its time.
    """

    purpose: Purpose
    #: ``provider/model``.
    model: str
    #: Estimated.
    input_tokens: int
    max_output_tokens: int


class Failed(Struct, frozen=True, kw_only=True):
    """Up: the granted call failed; what now? Answered like ``Ask``, whose fields it repeats.

    The last of its events is the ``CallFailed``.
    """

    ask: Ask
    failure: Failure


class Granted(_OfAttempt, frozen=True):
    """Down: make the call now. ``event`` is committed already, and takes the next number."""

    event: CallStarted


class Denied(_OfAttempt, frozen=True, kw_only=True):
    """Down: make no call. Park, or finish as the event says; the worker records it."""

    #: An encoded ``CallDenied`` to finish with, or an encoded ``Suspended`` to park with.
    event: msgspec.Raw


class Record(_Committing, frozen=True, kw_only=True):
    """Up: make these events durable. Answered by ``Ack`` or ``Nack``."""


class Ack(_OfAttempt, frozen=True):
    """Down: every event below ``seq`` is durable."""

    seq: int


class Nack(_OfAttempt, frozen=True):
    """Down: this attempt is stale or its events were refused: stop working on it, write nothing."""


class Progress(_OfAttempt, frozen=True, kw_only=True):
    """Up: what a task is doing right now; for people, never durable."""

    step: Activity
    detail: str = ""


class Done(_OfAttempt, frozen=True):
    """Up: the slot is free."""

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
    #: From another machine: its clock, in seconds since the epoch.
    at: float = 0.0


class KeysFound(Struct, frozen=True):
    """Up, from another machine after a ``Retune``: the keys that are there now,
    as in ``MachineFacts``.
    """

    keys: Mapping[str, str]


class Parted(Struct, frozen=True):
    """Up, the last frame from another machine: the worker has ended there, with all that it had.

    Its parent says so.
    """

    #: Whether it died by itself; else it left, or was asked to end.
    died: bool


class LeaseRenewed(Struct, frozen=True):
    """Down: the lease counts from the moment at which the worker sent this heartbeat."""

    number: int


class Leaving(Struct, frozen=True):
    """Up: the worker takes no more tasks,
    and gives back those it has at their next durable points. ``Drain`` answers it.
    """

    #: Why: its machine is drained, say.
    cause: str


#: A frame longer than this is a bug or an attack:
#: the largest legitimate one is an event of some megabytes.
MAX_FRAME = 1 << 28
#: And one from another machine: any event of ours is smaller.
MAX_ELSEWHERE = 1 << 25
#: And of the history that one message takes along: a task's journal may be larger than a frame.
MAX_HISTORY = 1 << 24
#: To another machine: that it goes on reading shows at each.
MAX_HISTORY_ELSEWHERE = 1 << 20

Down: TypeAlias = (
    Hello
    | LeaseRenewed
    | History
    | Run
    | CancelTask
    | Park
    | Drain
    | Retune
    | Granted
    | Denied
    | Ack
    | Nack
)
Up: TypeAlias = (
    Hello | Ask | Failed | Record | Progress | Done | Heartbeat | Leaving | KeysFound | Parted
)


@cache
def _decoders() -> dict[str, msgspec.json.Decoder[Any]]:
    return {cls.__name__: decoders.decoder(cls) for cls in {*get_args(Down), *get_args(Up)}}


_FRAME: msgspec.json.Decoder[tuple[str, msgspec.Raw]] = decoders.decoder(tuple[str, msgspec.Raw])


def handed(run: Run, most: int = MAX_HISTORY) -> Iterator[History | Run]:
    """Yield the messages that hand a task over:
    of a long history so many bytes each at ``most``, or a single event.
    """
    part: list[msgspec.Raw] = []
    size = 0
    for event in run.history:
        if part and size + len(bytes(event)) > most:
            yield History(ref=run.ref, attempt=run.attempt, events=tuple(part))
            part, size = [], 0
        part.append(event)
        size += len(bytes(event))
    yield replace(run, history=tuple(part))


def pack(message: Down | Up) -> bytes:
    """Return a message as one frame, its length in front."""
    body = msgspec.json.encode((type(message).__name__, message))
    return len(body).to_bytes(4, "big") + body


def unpack(body: bytes) -> Any:
    """Return the message in a frame's body. Raises ``msgspec.MsgspecError`` or ``KeyError``."""
    kind, fields = _FRAME.decode(body)
    return _decoders()[kind].decode(fields)


def unraw(bodies: tuple[msgspec.Raw, ...]) -> list[Event]:
    """Return the events that a message carries."""
    return [decode_event(bytes(b)) for b in bodies]
