"""The tasks of a schedule: what it is told of each, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.records import HoldKey, Ref
from batchd.schedule.holds import Entry, Hold, Lane


@dataclass(frozen=True, slots=True)
class Queued:
    """What the schedule must know of a task."""

    ref: Ref
    #: Higher goes first.
    priority: int
    #: Among equals, lower goes first; never the same twice.
    order: int
    #: The absolute path of the directory that it works in.
    directory: str
    #: The tasks that must complete first.
    after: tuple[Ref, ...] = ()
    provider: str = ""
    #: ``PROVIDER/MODEL``; empty: the provider has but one.
    model: str = ""
    #: Whether it has begun before, so that its directory is its own until it ends.
    begun: bool = False
    #: Whether a worker died of it, so that it must run alone.
    suspect: bool = False

    @property
    def source(self) -> str:
        """What it waits for with others: its model."""
        return self.model or self.provider


@dataclass(slots=True, eq=False)
class Item:
    """A task in the schedule, and where it stands there."""

    queued: Queued
    #: What keeps it from being dispatched: tasks that it comes after, and ``hold``.
    holds: frozenset[HoldKey]
    #: Where it stands while it is ready. The entry is made anew each time, and compared by
    #: identity: what a heap still has of an earlier time is stale.
    lane: Lane | None = None
    entry: Entry | None = None
    suspect: bool = False
    #: Whether it has been dispatched, and has not given its slot back.
    taken: bool = False
    #: Its directory, once it has begun.
    place: Hold | None = None
    #: Whether it begins with its present dispatch.
    begins: bool = False
