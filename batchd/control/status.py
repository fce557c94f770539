"""The answer to ``status``. A daemon from before an upgrade leaves out what has a default here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

import msgspec

from batchd import decoders
from batchd.control.requests import ControlRequest, Field
from batchd.records import Parking
from batchd.store.shown import BatchJson


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Batches, counted."""

    #: Those whose summary is not written yet.
    open: int = 0


class TaskCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that have not ended, counted."""

    #: Not begun.
    queued: int
    #: Begun, and without a slot now.
    parked: int = 0
    running: int
    #: Of those that run, those that wait for their turn at a model.
    waiting: int = 0


class ProviderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that was called since the daemon started."""

    #: Calls that wait for their answers, and for their turn.
    under_way: int = 0
    waiting: int = 0
    #: How long it asks everybody to wait, from now (seconds).
    paused_s: int | float = 0.0
    #: Requests and tokens a minute, configured or found out; 0: no limit is known.
    rpm: int | float = 0.0
    tpm: int | float = 0.0
    #: How many may be under way: as many as are configured, or fewer while it is overloaded.
    concurrent: int = 0
    #: 0: it does not say.
    max_concurrent: int = 0


class ShownParking(msgspec.Struct, frozen=True, kw_only=True):
    """A ``Parking`` as it is shown: another version may know other scopes and causes."""

    scope: str
    name: str = ""
    cause: str
    message: str = ""
    #: Seconds since the epoch.
    since: float
    #: Seconds.
    tried_s: float = 0.0
    #: When it is tried again by itself, in seconds since the epoch; null: nobody knows.
    again_at: float | None = None

    @classmethod
    def of(cls, parking: Parking) -> Self:
        """Return a parking as it is shown."""
        return decoders.convert(msgspec.to_builtins(parking), cls)


class DayStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The day's money in US dollars, counted in UTC; ``limit_usd`` 0: it has none."""

    limit_usd: int | float
    #: What may have been paid counts as spent.
    spent_usd: int | float
    reserved_usd: int | float


class OpenTrouble(msgspec.Struct, frozen=True):
    """Something that the daemon cannot do at this time."""

    #: A name of the log's: ``outbox_trouble``.
    what: str
    message: str
    #: Seconds since the epoch.
    since: float
    #: How to go on.
    mend: str
    #: The batches that it concerns, where it concerns single ones.
    batches: tuple[str, ...] = ()


class ModelWarning(msgspec.Struct, frozen=True):
    """A model that is gone, or will be soon."""

    #: ``provider/model``.
    model: str
    #: The day, as in 2026-12-11; None: it is gone, and since when is not known.
    on: str | None
    message: str
    mend: str


class Fetching(msgspec.Struct, frozen=True, kw_only=True):
    """A base that is being fetched:
    what clones or copies of a batch begin as, and its tasks wait for.
    """

    batch: str
    #: A path or an address.
    source: str
    #: The branch, tag or commit; empty: what it has checked out, or a copy.
    ref: str = ""
    #: ``clone`` or ``copy``.
    kind: str = "clone"
    #: Since when it is wanted: its turn may still be to come. Seconds since the epoch.
    since: float


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process."""

    #: None: it is being started.
    pid: int | None = None
    #: The machine it runs on; empty: the daemon's.
    node: str = ""
    #: Tasks that it works on.
    tasks: int = 0
    #: Resident memory in bytes.
    rss: int = 0
    #: Tasks that it has worked on.
    tasks_done: int = 0


class RunningTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task at work."""

    #: ``BATCH/TASK``.
    task: str
    attempt: int = 0
    #: The process; None: it is being started.
    worker: int | None = None
    #: The machine it runs on; empty: the daemon's.
    node: str = ""
    #: ``starting``, ``waiting``, ``model``, ``tool`` or ``evaluating``.
    step: str
    #: Which model, which command, what it waits for.
    detail: str
    #: When this step began, in seconds since the epoch.
    since: float

    @property
    def said(self) -> str:
        """What it works at, and on which machine if not on the daemon's."""
        return ": ".join(filter(None, (self.node, self.detail)))


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the daemon at this moment."""

    pid: int
    version: str
    #: Seconds since the epoch.
    started_at: float
    #: Whether it starts nothing any more.
    draining: bool
    #: Whether it takes what is dropped into the inbox;
    #: one that works for `batchd run` alone does not.
    watching: bool = True
    #: Where new batches get their folders; empty: it does not say.
    outbox: str = ""
    #: What distinguishes how it works from other ways,
    #: where it works for `batchd run` alone; else empty.
    conditions: str = ""
    batches: BatchCounts = BatchCounts()
    tasks: TaskCounts
    #: Agents that can be at work at once; 0: it does not say.
    slots: int = 0
    #: By name.
    providers: Mapping[str, ProviderStatus] = msgspec.field(default_factory=dict)
    #: None: it does not say.
    day: DayStatus | None = None
    #: What waits as a whole, and why.
    parked: tuple[ShownParking, ...] = ()
    troubles: tuple[OpenTrouble, ...] = ()
    #: Filled by version 0.2 alone.
    retiring: tuple[ModelWarning, ...] = ()
    fetching: tuple[Fetching, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    #: By machine: why no task can run there.
    unfit: Mapping[str, str] = msgspec.field(default_factory=dict)
    running: tuple[RunningTask, ...] = ()
    #: The batches that were asked for.
    rows: tuple[BatchJson, ...] = ()

    @property
    def nodes(self) -> int:
        """Other machines on which workers run."""
        return len({worker.node for worker in self.workers if worker.node})


class AskStatus(ControlRequest[DaemonStatus], frozen=True, kw_only=True):
    """Ask how the daemon does."""

    @classmethod
    def verb(cls) -> str:
        """Return what it is called on the socket."""
        return "status"

    #: Also for so many of the newest batches, …
    last: Annotated[int, Field("last is a whole number: of batches")] = 0
    #: … or for this one.
    batch: Annotated[str, Field("a batch is text: its name")] = ""
