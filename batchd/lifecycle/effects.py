"""Effects: what is to be done about a task, as values.

One that takes time comes back as an input.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from batchd.events import CancelRequested, Suspended
from batchd.records import Reason, Ref, TaskStatus


class _Effect(Struct, frozen=True, gc=False):
    """What all effects have."""

    ref: Ref


class Start(_Effect, frozen=True, gc=False):
    """Look whether a task can start in its slot."""


class HandOver(_Effect, frozen=True, gc=False):
    """Hand a task to its worker."""


class Free(_Effect, frozen=True, gc=False):
    """Give back a slot in which nothing was started."""


class Stop(_Effect, frozen=True, gc=False):
    """Stop the worker, or a request of its that waits,
    with what the task was asked to stop with.
    """


class Suspend(_Effect, frozen=True, gc=False):
    """Write that an attempt gave its slot back."""

    #: What it was asked to give it back with; None: its worker has said so itself.
    wish: Suspended | None = None


class Recover(_Effect, frozen=True, gc=False):
    """Write that an attempt lost its worker, once all that it said is durable."""

    #: Whether the task may have killed it.
    counted: bool
    #: Whether no other one can have.
    alone: bool


class End(_Effect, frozen=True, gc=False):
    """Make the end of a task that no worker can end itself."""

    status: TaskStatus
    reason: Reason
    #: For people.
    message: str
    #: The attempts that count, those that left no event included; 0: as many as left one.
    attempts: int = 0
    #: For the log alone.
    details: str = ""


class Publish(_Effect, frozen=True, gc=False):
    """Write the files of a task that has ended."""


class Confirm(_Effect, frozen=True, gc=False):
    """Write that the files of a task, which its worker wrote, are published."""


Effect: TypeAlias = Start | HandOver | Free | Stop | Suspend | Recover | End | Publish | Confirm


#: What an attempt was asked to stop with: to end, or to give its slot back.
Wish: TypeAlias = CancelRequested | Suspended
