"""Requests and answers of the control socket: a class pair for each command, both named after it.

The fields are those of the JSON, in its order. They only grow: another version leaves some out, or
says more. Structs, for they are made fifty times as fast as data classes,
and every command loads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Self, TypeAlias, TypeVar

import msgspec

from batchd.records import Parking, Scope

A = TypeVar("A")

#: ``BATCH`` or ``BATCH/TASK``, one or several.
Target: TypeAlias = str | tuple[str, ...]


class ControlRequest(msgspec.Struct, Generic[A], frozen=True):
    """A request; ``A`` is the class of its answer."""


# cancel


class EndedBefore(msgspec.Struct, frozen=True, kw_only=True):
    """A target that had nothing left to end when the order came."""

    #: ``BATCH`` or ``BATCH/TASK``.
    target: str
    #: How many of its tasks ended in each final status; none: the file was refused.
    counts: Mapping[str, int]


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Cancel``: the ends are durable."""

    #: Tasks; those left out ended by themselves before the order reached them.
    cancelled: int
    ended: tuple[EndedBefore, ...] = ()


class Cancel(ControlRequest[Cancelled], frozen=True, kw_only=True):
    """End batches or tasks."""

    target: Target
    #: Why; stands in the results.
    message: str = ""


# pause, resume


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

    @classmethod
    def of(cls, parking: Parking) -> Self:
        """Return a parking as it is shown."""
        return cls(
            scope=parking.scope,
            name=parking.name,
            cause=parking.cause,
            message=parking.message,
            since=parking.since,
            tried_s=parking.tried_s,
        )


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Pause``: nothing of the scope starts any more."""

    #: Tasks that wait now, or will at their next durable point.
    parked: int
    #: Of these, those that work until they are judged: only their judge is paused.
    judged: int = 0


class Pause(ControlRequest[Paused], frozen=True, kw_only=True):
    """Let nothing of a scope start, and have what runs give its slot back."""

    scope: Scope
    #: Of the provider, model, batch or task.
    name: str = ""
    #: Why; ``status`` shows it.
    message: str = ""


class ResumedScope(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Resume``: the scope goes on, as far as nothing else holds it."""

    #: Things that were parked and are no more, those that are tried included.
    resumed: int
    #: Providers and models that must answer one call first.
    trying: tuple[str, ...] = ()
    #: What it still waits for.
    held: tuple[ShownParking, ...] = ()


class Resume(ControlRequest[ResumedScope], frozen=True, kw_only=True):
    """Let a scope go on, whatever it waits for."""

    #: None: everything but what is uncertain.
    scope: Scope | None = None
    name: str = ""


# priority


class Prioritised(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Priority``: places in the queue have changed."""

    #: Tasks that had not ended.
    tasks: int


class Priority(ControlRequest[Prioritised], frozen=True, kw_only=True):
    """Give tasks that have not ended another priority."""

    target: Target
    #: Of 32 bits; higher goes first.
    priority: int


# submit, detach


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Submit``: the batch is durable."""

    #: Empty: the daemon ends just now, and another one is to be asked.
    batch: str
    #: Tasks; 0: the file was refused, and its folder in the outbox says why.
    tasks: int
    #: An earlier ``run`` of the same file began it.
    again: bool = False


class Submit(ControlRequest[Submitted], frozen=True, kw_only=True):
    """Take a file up that lies claimed, or a batch that a ``run`` left half-finished:
    for a ``run``, which waits for its end.

    One of the two is given.
    A daemon that works for ``run`` alone gives a batch up when who asked for it is gone.
    """

    #: The ULID of a file in the folder for claims.
    claim: str = ""
    batch: str = ""
    #: A hash of the file's path and bytes: the newest batch of the same that has not ended is gone
    #: on with, in place of a new one; empty: always a new one.
    run: str = ""
    #: So many of its tasks at a time, whatever the file says; 0: what that says.
    parallel: int = 0


class Detached(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Detach``: the batch goes on without those who asked for it."""

    batch: str


class Detach(ControlRequest[Detached], frozen=True, kw_only=True):
    """Let a batch of a ``run`` go on where no one waits for it."""

    batch: str


# retry


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A new run of old tasks."""

    #: Its name, and that of the one whose tasks they are.
    batch: str
    retry_of: str | None
    tasks: int


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Retry``: the tasks are queued again."""

    runs: tuple[NewRun, ...]
    #: The names of the runs.
    batches: tuple[str, ...] = ()
    #: The keys of old tasks that are gone, and were left out; unset: none was.
    dropped: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


class Retry(ControlRequest[Retried], frozen=True, kw_only=True):
    """Run batches or tasks again."""

    target: Target
    #: Only what of them did not complete, and what comes after it.
    failed: bool = False
    #: With this one, ``PROVIDER/MODEL``, in place of their own; empty: with their own.
    model: str = ""
    #: A ULID that marks the order, so that one that is given twice is carried out once;
    #: empty: a new one.
    claim: str = ""


# prune


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Prune``: room is given back."""

    #: Batches whose journals went, and their bytes.
    pruned: int
    bytes: int
    #: Folders that went, and their bytes.
    folders: int = 0
    folder_bytes: int = 0
    #: Mirrors of repositories that no clone begins at any more, and their bytes.
    mirrors: int = 0
    mirror_bytes: int = 0
    #: What was left alone, and why.
    problems: tuple[str, ...] = ()


class Prune(ControlRequest[Pruned], frozen=True, kw_only=True):
    """Drop what finished batches have left."""

    #: Only of those that were published so long ago, or earlier.
    older_than_days: int | float = 0
    #: Their folders in the outbox too.
    outbox: bool = False


# tune


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``Tune``: all that is changed now."""

    #: By ``SECTION.KEY``, without secrets.
    overrides: Mapping[str, str]


class Tune(ControlRequest[Tuned], frozen=True, kw_only=True):
    """Change the configuration of the running daemon until it ends, or only ask what is changed."""

    #: By ``SECTION.KEY``: the value as TOML has it.
    changes: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: First take all earlier changes back.
    reset: bool = False
