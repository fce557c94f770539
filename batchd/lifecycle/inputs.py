"""What happens to a task, as values: what people want, what workers and the store report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from batchd.events import CancelRequested, Suspended
from batchd.lifecycle.effects import End
from batchd.lifecycle.entry import Facts
from batchd.records import HoldKey, Ref, Status


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task is in the store, and has not ended.

    What it comes ``after`` is yet to be ``Published``, also where that was never here.
    """

    facts: Facts

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.facts.ref


@dataclass(frozen=True, slots=True)
class Unpublished:
    """A task ended under an earlier daemon, which did not confirm its files."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Held:
    """Something keeps a task from starting; one that runs is not stopped by that."""

    ref: Ref
    hold: HoldKey


@dataclass(frozen=True, slots=True)
class Lifted:
    """That is over."""

    ref: Ref
    hold: HoldKey


@dataclass(frozen=True, slots=True)
class Prioritised:
    """A task has another priority, which also counts for its next turns."""

    ref: Ref
    priority: int


@dataclass(frozen=True, slots=True)
class SlotFree:
    """It is a task's turn, and a slot is reserved for it."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class FolderShut:
    """A task's folder takes no files: it could leave no result."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Dispatched:
    """The store has numbered an attempt."""

    ref: Ref
    attempt: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The store numbers no attempt: the task has ended."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Refused:
    """A task cannot start under today's configuration, and ends."""

    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A task cannot start yet: what it needs is parked."""

    ref: Ref
    wish: Suspended


@dataclass(frozen=True, slots=True)
class Ready:
    """Nothing is missing: the worker may have the task."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody wants a task to end."""

    ref: Ref
    wish: CancelRequested


@dataclass(frozen=True, slots=True)
class Halt:
    """A task that has a slot is to give it back: something is paused, or needs the room, or the daemon stops."""

    ref: Ref
    wish: Suspended


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A task that has no slot is to end: what it comes after failed, or its provider was gone for too long."""

    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker's last event of a task is durable."""

    ref: Ref
    status: Status


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A worker is done with a task that has ended, and has written its files."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A worker is done with a task that has ended, and could not write its files."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class GaveBack:
    """A worker has stopped at a durable point, and gave the slot back."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Broke:
    """An agent broke inside a worker: a bug."""

    #: How the task ends, unless it has ended.
    end: End

    @property
    def ref(self) -> Ref:
        """The task."""
        return self.end.ref


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, or never took the task up."""

    ref: Ref
    #: Whether the task may have killed it.
    counted: bool = False
    #: Whether no other one can have.
    alone: bool = True


@dataclass(frozen=True, slots=True)
class Settled:
    """The store knows how an attempt ended."""

    ref: Ref
    #: Whether the task must run alone from now on.
    suspect: bool = False
    #: How it ends, where its workers died too often.
    worn_out: End | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An end that the daemon made is durable."""

    ref: Ref
    status: Status


@dataclass(frozen=True, slots=True)
class EndRefused:
    """The store did not take an end that an order asked for: nothing has changed."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Published:
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
