"""Inputs: what happens to a task, as values."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from batchd.events import CancelRequested, Suspended
from batchd.lifecycle.effects import End
from batchd.lifecycle.entry import Entry
from batchd.records import HoldKey, Ref, TaskStatus, TurnFacts


class _Input(Struct, frozen=True, gc=False):
    """What all inputs have."""

    def note(self, entry: Entry) -> None:
        """Take over into the task's entry what it says; what follows from that is for the table."""


class _OfTask(_Input, frozen=True, gc=False):
    """What happens to a task that it names."""

    ref: Ref


class _WithEnd(_Input, frozen=True, gc=False):
    """What a task ends with, unless it has ended."""

    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


class _Wish(_OfTask, frozen=True, gc=False):
    """A task is to give its slot back."""

    wish: Suspended

    def note(self, entry: Entry) -> None:
        """Take over what it says; what was wished before counts."""
        entry.wish = entry.wish or self.wish


class _Over(_OfTask, frozen=True, gc=False):
    """An end is durable."""

    status: TaskStatus

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.ended = entry.ended or self.status


class Accepted(_Input, frozen=True, gc=False):
    """A task is in the store, and has not ended.

    What it comes ``after`` is yet to be ``Published``, also where that was never here.
    """

    facts: TurnFacts

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.facts.ref


class Unpublished(_OfTask, frozen=True, gc=False):
    """A task ended under an earlier daemon, which did not confirm its files."""


class Held(_OfTask, frozen=True, gc=False):
    """Something keeps a task from starting; one that runs is not stopped by that."""

    hold: HoldKey

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        if self.hold not in entry.holds:
            entry.holds += (self.hold,)


class Lifted(_OfTask, frozen=True, gc=False):
    """That is over."""

    hold: HoldKey

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        if self.hold in entry.holds:
            entry.holds = tuple(hold for hold in entry.holds if hold != self.hold)


class Reprioritised(_OfTask, frozen=True, gc=False):
    """A task has another priority, which also counts for its next turns."""

    priority: int

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.facts = replace(entry.facts, priority=self.priority)


class SlotFree(_OfTask, frozen=True, gc=False):
    """The input that it is a task's turn, and a slot is reserved for it."""


class Unready(_OfTask, frozen=True, gc=False):
    """What a task needs is not there:
    a folder that takes its result, or the repository that it begins at.
    """


class Dispatched(_OfTask, frozen=True, gc=False):
    """The store has numbered an attempt."""

    attempt: int

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.attempt = self.attempt


class Stale(_OfTask, frozen=True, gc=False):
    """The store numbers no attempt: the task has ended."""


class Refused(_WithEnd, frozen=True, gc=False):
    """A task cannot start under today's configuration, and ends."""


class TurnedAway(_Wish, frozen=True, gc=False):
    """A task cannot start yet: what it needs is parked."""


class Ready(_OfTask, frozen=True, gc=False):
    """The input that nothing is missing: the worker may have the task."""


class CancelOrdered(_OfTask, frozen=True, gc=False):
    """Somebody wants a task to end."""

    wish: CancelRequested

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = self.wish


class Halt(_Wish, frozen=True, gc=False):
    """A task that has a slot is to give it back:
    something is paused, or needs the room, or the daemon stops.
    """


class GiveUp(_WithEnd, frozen=True, gc=False):
    """A task that has no slot is to end:
    what it comes after failed, or its provider was gone for too long.
    """

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.doom = entry.doom or self.end


class Finished(_Over, frozen=True, gc=False):
    """A worker's last event of a task is durable."""


class Confirmed(_OfTask, frozen=True, gc=False):
    """A worker is done with a task that has ended, and has written its files."""


class Unconfirmed(_OfTask, frozen=True, gc=False):
    """A worker is done with a task that has ended, and could not write its files."""


class GaveBack(_OfTask, frozen=True, gc=False):
    """A worker has stopped at a durable point, and gave the slot back."""


class Broke(_WithEnd, frozen=True, gc=False):
    """An agent broke inside a worker: a bug."""


class Lost(_OfTask, frozen=True, gc=False):
    """A worker is gone, or never took the task up."""

    #: Whether the task may have killed it.
    counted: bool = False
    #: Whether no other one can have.
    alone: bool = True


class Settled(_OfTask, frozen=True, gc=False):
    """The store knows how an attempt ended."""

    #: Whether the task must run alone from now on.
    suspect: bool = False
    #: How it ends, where its workers died too often.
    worn_out: End | None = None
    #: Whether it gave its slot back, so that it counts as parked.
    given_back: bool = False

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.suspect = entry.suspect or self.suspect


class Ended(_Over, frozen=True, gc=False):
    """An end that the daemon made is durable."""


class EndRefused(_OfTask, frozen=True, gc=False):
    """The store did not take an end that an order asked for: nothing has changed."""


class Published(_OfTask, frozen=True, gc=False):
    """All files of a task are known to be published."""

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
