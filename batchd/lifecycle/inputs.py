"""A task's entry, all that is known of where it stands; inputs, what happens to it; and effects,
what is to be done about it, as values. An effect that takes time comes back as an input.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from batchd.events import CancelRequested, Suspended
from batchd.lifecycle.holds import Lane, Rank, Taken
from batchd.records import HoldKey, Reason, Ref, TaskStatus, TurnFacts


class Start(Struct, frozen=True, gc=False):
    """Look whether a task can start in its slot."""

    ref: Ref


class HandOver(Struct, frozen=True, gc=False):
    """Hand a task to its worker."""

    ref: Ref


class Free(Struct, frozen=True, gc=False):
    """Give back a slot in which nothing was started."""

    ref: Ref


class Stop(Struct, frozen=True, gc=False):
    """Stop the worker, or a request of its that waits,
    with what the task was asked to stop with.
    """

    ref: Ref


class Suspend(Struct, frozen=True, gc=False):
    """Write that an attempt gave its slot back."""

    ref: Ref
    #: What it was asked to give it back with; None: its worker has said so itself.
    wish: Suspended | None = None


class Recover(Struct, frozen=True, gc=False):
    """Write that an attempt lost its worker, once all that it said is durable."""

    ref: Ref
    #: Whether the task may have killed it.
    counted: bool
    #: Whether no other one can have.
    alone: bool


class End(Struct, frozen=True, gc=False):
    """Make the end of a task that no worker can end itself."""

    ref: Ref
    status: TaskStatus
    reason: Reason
    #: For people.
    message: str
    #: The attempts that count, those that left no event included; 0: as many as left one.
    attempts: int = 0
    #: For the log alone.
    details: str = ""


class Publish(Struct, frozen=True, gc=False):
    """Write the files of a task that has ended."""

    ref: Ref


class Confirm(Struct, frozen=True, gc=False):
    """Write that the files of a task, which its worker wrote, are published."""

    ref: Ref


Effect: TypeAlias = Start | HandOver | Free | Stop | Suspend | Recover | End | Publish | Confirm


#: What an attempt was asked to stop with: to end, or to give its slot back.
Wish: TypeAlias = CancelRequested | Suspended


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


class _Input(Struct, frozen=True, gc=False):
    """What all inputs have."""

    def note(self, entry: Entry) -> None:
        """Take over into the task's entry what it says; what follows from that is for the table."""


class Accepted(_Input, frozen=True, gc=False):
    """A task is in the store, and has not ended.

    What it comes ``after`` is yet to be ``Published``, also where that was never here.
    """

    facts: TurnFacts

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.facts.ref


class Unpublished(_Input, frozen=True, gc=False):
    """A task ended under an earlier daemon, which did not confirm its files."""

    ref: Ref


class Held(_Input, frozen=True, gc=False):
    """Something keeps a task from starting; one that runs is not stopped by that."""

    ref: Ref
    hold: HoldKey

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        if self.hold not in entry.holds:
            entry.holds += (self.hold,)


class Lifted(_Input, frozen=True, gc=False):
    """That is over."""

    ref: Ref
    hold: HoldKey

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        if self.hold in entry.holds:
            entry.holds = tuple(hold for hold in entry.holds if hold != self.hold)


class Reprioritised(_Input, frozen=True, gc=False):
    """A task has another priority, which also counts for its next turns."""

    ref: Ref
    priority: int

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.facts = replace(entry.facts, priority=self.priority)


class SlotFree(_Input, frozen=True, gc=False):
    """The input that it is a task's turn, and a slot is reserved for it."""

    ref: Ref


class Unready(_Input, frozen=True, gc=False):
    """What a task needs is not there:
    a folder that takes its result, or the repository that it begins at.
    """

    ref: Ref


class Dispatched(_Input, frozen=True, gc=False):
    """The store has numbered an attempt."""

    ref: Ref
    attempt: int

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.attempt = self.attempt


class Stale(_Input, frozen=True, gc=False):
    """The store numbers no attempt: the task has ended."""

    ref: Ref


class Refused(_Input, frozen=True, gc=False):
    """A task cannot start under today's configuration, and ends."""

    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


class TurnedAway(_Input, frozen=True, gc=False):
    """A task cannot start yet: what it needs is parked."""

    ref: Ref
    wish: Suspended

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = entry.wish or self.wish


class Ready(_Input, frozen=True, gc=False):
    """The input that nothing is missing: the worker may have the task."""

    ref: Ref


class CancelOrdered(_Input, frozen=True, gc=False):
    """Somebody wants a task to end."""

    ref: Ref
    wish: CancelRequested

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = self.wish


class Halt(_Input, frozen=True, gc=False):
    """A task that has a slot is to give it back:
    something is paused, or needs the room, or the daemon stops.
    """

    ref: Ref
    wish: Suspended

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = entry.wish or self.wish


class GiveUp(_Input, frozen=True, gc=False):
    """A task that has no slot is to end:
    what it comes after failed, or its provider was gone for too long.
    """

    end: End

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.doom = entry.doom or self.end

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


class Finished(_Input, frozen=True, gc=False):
    """A worker's last event of a task is durable."""

    ref: Ref
    status: TaskStatus

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.ended = entry.ended or self.status


class Confirmed(_Input, frozen=True, gc=False):
    """A worker is done with a task that has ended, and has written its files."""

    ref: Ref


class Unconfirmed(_Input, frozen=True, gc=False):
    """A worker is done with a task that has ended, and could not write its files."""

    ref: Ref


class GaveBack(_Input, frozen=True, gc=False):
    """A worker has stopped at a durable point, and gave the slot back."""

    ref: Ref


class Broke(_Input, frozen=True, gc=False):
    """An agent broke inside a worker: a bug."""

    #: How the task ends, unless it has ended.
    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


class Lost(_Input, frozen=True, gc=False):
    """A worker is gone, or never took the task up."""

    ref: Ref
    #: Whether the task may have killed it.
    counted: bool = False
    #: Whether no other one can have.
    alone: bool = True


class Settled(_Input, frozen=True, gc=False):
    """The store knows how an attempt ended."""

    ref: Ref
    #: Whether the task must run alone from now on.
    suspect: bool = False
    #: How it ends, where its workers died too often.
    worn_out: End | None = None
    #: Whether it gave its slot back, so that it counts as parked.
    given_back: bool = False

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.suspect = entry.suspect or self.suspect


class Ended(_Input, frozen=True, gc=False):
    """An end that the daemon made is durable."""

    ref: Ref
    status: TaskStatus

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.ended = entry.ended or self.status


class EndRefused(_Input, frozen=True, gc=False):
    """The store did not take an end that an order asked for: nothing has changed."""

    ref: Ref


class Published(_Input, frozen=True, gc=False):
    """All files of a task are known to be published."""

    ref: Ref
    status: TaskStatus


Input: TypeAlias = (
    Accepted
    | Unpublished
    | Held
    | Lifted
    | Reprioritised
    | SlotFree
    | Unready
    | Dispatched
    | Stale
    | Refused
    | TurnedAway
    | Ready
    | CancelOrdered
    | Halt
    | GiveUp
    | Finished
    | Confirmed
    | Unconfirmed
    | GaveBack
    | Broke
    | Lost
    | Settled
    | Ended
    | EndRefused
    | Published
)
