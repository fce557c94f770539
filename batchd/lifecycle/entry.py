"""The entry of one task: its phase, and what the lifecycle knows of it."""

from __future__ import annotations

import enum

from msgspec import Struct

from batchd.events import CancelRequested
from batchd.lifecycle.effects import End, Wish
from batchd.lifecycle.holds import Lane, Rank, Taken
from batchd.records import HoldKey, Ref, TaskStatus, TurnFacts


class Phase(enum.StrEnum):
    """The phase of a task, from the store's promise to the last file of its result."""

    #: It starts when its turn comes.
    QUEUED = "queued"
    #: Something keeps it alone, or its batch, from starting.
    HELD = "held"
    #: It has a slot, and no attempt yet: its worker comes up, or its folder is looked at.
    RESERVED = "reserved"
    #: The store has numbered its attempt, and the worker does not have it yet.
    STARTING = "starting"
    #: A worker works on it.
    RUNNING = "running"
    #: A worker works on it, and is asked to stop at its next durable point.
    STOPPING = "stopping"
    #: No worker has it any more; how the attempt ended is not durable yet.
    SUSPENDED = "suspended"
    #: The daemon makes its end, which is not durable yet.
    ENDING = "ending"
    #: Its end is durable; its files are not known to be published.
    ENDED = "ended"
    #: Its files are published: it leaves the map.
    PUBLISHED = "published"

    # An enum's own is Python code, and 100,000 tasks may be looked up several times each.
    __hash__ = str.__hash__

    @property
    def waits(self) -> bool:
        """Whether it has no slot, and may get one."""
        return self in _PLACELESS

    @property
    def has_slot(self) -> bool:
        """Whether a slot of the pool is its own."""
        return self in _WITH_SLOT

    @property
    def open(self) -> bool:
        """Whether it may still run."""
        return self not in _OVER


_PLACELESS = frozenset({Phase.QUEUED, Phase.HELD})
_WITH_SLOT = frozenset({Phase.RESERVED, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})
_OVER = frozenset({Phase.ENDING, Phase.ENDED, Phase.PUBLISHED})


class Entry(Struct, eq=False):
    """One task. Only the lifecycle changes it."""

    facts: TurnFacts
    phase: Phase
    #: What keeps this task from starting, each once;
    #: what keeps a provider, a model or everything is not repeated here.
    holds: tuple[HoldKey, ...] = ()
    #: Whether a worker died of it, so that it must run alone.
    suspect: bool = False
    #: The number that the store gave the attempt under way; 0: none is.
    attempt: int = 0
    #: What the attempt was asked to stop with.
    wish: Wish | None = None
    #: How it ends where it does not end otherwise: what it comes after has failed.
    doom: End | None = None
    #: How it ended, once that is durable.
    ended: TaskStatus | None = None
    # Where it stands in the queue, which alone changes what follows.
    #: The lane that it is in, and by what it is sorted there. The rank is another one each time,
    #: and compared by identity: what a heap still has of an earlier time is stale.
    lane: Lane | None = None
    rank: Rank | None = None
    #: Its directory, once it has begun.
    place: Taken | None = None
    #: Whether it was drawn, and it is not decided yet whether it starts.
    drawn: bool = False
    #: Whether it began with its present, or last, start.
    begins: bool = False

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.facts.ref

    @property
    def waiting(self) -> Phase:
        """The phase in which it waits for a slot."""
        return Phase.HELD if self.holds else Phase.QUEUED

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return isinstance(self.wish, CancelRequested)
