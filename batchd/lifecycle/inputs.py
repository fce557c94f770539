"""What happens to a task, as values: what people want, what workers and the store report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from batchd.events import CancelRequested, Suspended
from batchd.lifecycle.effects import End
from batchd.lifecycle.entry import Entry, Facts
from batchd.records import HoldKey, Ref, Status


class _Input:
    """What all inputs have."""

    __slots__ = ()

    def note(self, entry: Entry) -> None:
        """Take over into the task's entry what it says; what follows from that is for the table."""


@dataclass(frozen=True, slots=True)
class Accepted(_Input):
    """A task is in the store, and has not ended.

    What it comes ``after`` is yet to be ``Published``, also where that was never here.
    """

    facts: Facts

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.facts.ref


@dataclass(frozen=True, slots=True)
class Unpublished(_Input):
    """A task ended under an earlier daemon, which did not confirm its files."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Held(_Input):
    """Something keeps a task from starting; one that runs is not stopped by that."""

    ref: Ref
    hold: HoldKey

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.holds |= {self.hold}


@dataclass(frozen=True, slots=True)
class Lifted(_Input):
    """That is over."""

    ref: Ref
    hold: HoldKey

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.holds -= {self.hold}


@dataclass(frozen=True, slots=True)
class Prioritised(_Input):
    """A task has another priority, which also counts for its next turns."""

    ref: Ref
    priority: int

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.facts = replace(entry.facts, priority=self.priority)


@dataclass(frozen=True, slots=True)
class SlotFree(_Input):
    """It is a task's turn, and a slot is reserved for it."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class FolderShut(_Input):
    """A task's folder takes no files: it could leave no result."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Dispatched(_Input):
    """The store has numbered an attempt."""

    ref: Ref
    attempt: int

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.attempt = self.attempt


@dataclass(frozen=True, slots=True)
class Stale(_Input):
    """The store numbers no attempt: the task has ended."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Refused(_Input):
    """A task cannot start under today's configuration, and ends."""

    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


@dataclass(frozen=True, slots=True)
class TurnedAway(_Input):
    """A task cannot start yet: what it needs is parked."""

    ref: Ref
    wish: Suspended

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = entry.wish or self.wish


@dataclass(frozen=True, slots=True)
class Ready(_Input):
    """Nothing is missing: the worker may have the task."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Cancel(_Input):
    """Somebody wants a task to end."""

    ref: Ref
    wish: CancelRequested

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = self.wish


@dataclass(frozen=True, slots=True)
class Halt(_Input):
    """A task that has a slot is to give it back: something is paused, or needs the room, or the daemon stops."""

    ref: Ref
    wish: Suspended

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.wish = entry.wish or self.wish


@dataclass(frozen=True, slots=True)
class GiveUp(_Input):
    """A task that has no slot is to end: what it comes after failed, or its provider was gone for too long."""

    end: End

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.doom = entry.doom or self.end

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


@dataclass(frozen=True, slots=True)
class Finished(_Input):
    """A worker's last event of a task is durable."""

    ref: Ref
    status: Status

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.ended = entry.ended or self.status


@dataclass(frozen=True, slots=True)
class Confirmed(_Input):
    """A worker is done with a task that has ended, and has written its files."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Unconfirmed(_Input):
    """A worker is done with a task that has ended, and could not write its files."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class GaveBack(_Input):
    """A worker has stopped at a durable point, and gave the slot back."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Broke(_Input):
    """An agent broke inside a worker: a bug."""

    #: How the task ends, unless it has ended.
    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


@dataclass(frozen=True, slots=True)
class Lost(_Input):
    """A worker is gone, or never took the task up."""

    ref: Ref
    #: Whether the task may have killed it.
    counted: bool = False
    #: Whether no other one can have.
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Settled(_Input):
    """The store knows how an attempt ended."""

    ref: Ref
    #: Whether the task must run alone from now on.
    suspect: bool = False
    #: How it ends, where its workers died too often.
    worn_out: End | None = None

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.suspect = entry.suspect or self.suspect


@dataclass(frozen=True, slots=True)
class Ended(_Input):
    """An end that the daemon made is durable."""

    ref: Ref
    status: Status

    def note(self, entry: Entry) -> None:
        """Take over what it says."""
        entry.ended = entry.ended or self.status


@dataclass(frozen=True, slots=True)
class EndRefused(_Input):
    """The store did not take an end that an order asked for: nothing has changed."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Published(_Input):
    """All files of a task are known to be published."""

    ref: Ref
    status: Status


Input: TypeAlias = (
    Accepted
    | Unpublished
    | Held
    | Lifted
    | Prioritised
    | SlotFree
    | FolderShut
    | Dispatched
    | Stale
    | Refused
    | TurnedAway
    | Ready
    | Cancel
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
