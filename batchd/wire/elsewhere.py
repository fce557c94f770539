"""Messages between the daemon and a worker of another machine alone:
how it joins, its lease, its keys, its patches.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from batchd.records import Endpoint, Pack, Patch, Ref

#: What one message takes along of a pack, in bytes.
MAX_PART = 1 << 20


class Join(Struct, frozen=True, kw_only=True):
    """Up: the first message of a worker on another machine.

    Answered by ``Hello`` or ``NotAdmitted``.
    """

    token: str
    version: str
    #: The fingerprint of the files that it runs, by what is in them.
    code: str
    #: ``3.11``, ``3.13``.
    python: str
    #: What its machine is called.
    node: str
    #: The worker's process there.
    pid: int
    #: The digest of the word by which its keeper will say that it has ended.
    parting: str
    #: What its machine has for tasks that need something.
    gpus: int = 0
    labels: tuple[str, ...] = ()


class WorkerEnded(Struct, frozen=True):
    """Up, on a connection of its own: a worker has ended,
    seen by its keeper, who alone knows the ``parting`` word.
    """

    parting: str
    #: Whether it died by itself; else it left, was asked to end, or was ended with its lease.
    died: bool


class NotAdmitted(Struct, frozen=True):
    """Down: the worker is not let in; ``message`` says why, with the fix."""

    message: str


class Keys(Struct, frozen=True):
    """Down, to another machine:
    where the providers of the next task are reached, and with which keys.
    """

    endpoints: Mapping[str, Endpoint]


class PatchMade(Struct, frozen=True):
    """Up, from another machine: keep this patch where the result will be.

    Answered by ``PatchKept``.
    """

    ref: Ref
    attempt: int
    patch: Patch


class PatchKept(Struct, frozen=True):
    """Down: the patch is durable, or was refused by the disk."""

    ref: Ref
    attempt: int
    #: What the disk refused it with; 0: it is durable.
    errno: int = 0
    message: str = ""


class PackWanted(Struct, frozen=True, kw_only=True):
    """Up: send this pack of the task's chain, from an offset on.

    Answered by ``PackPart``, or ``PackTaken`` with why not.
    """

    ref: Ref
    attempt: int
    digest: str
    offset: int


class PackPart(Struct, frozen=True, kw_only=True):
    """Down: a part of a pack, ``MAX_PART`` bytes of it or what is left."""

    ref: Ref
    attempt: int
    data: bytes


class PackSent(Struct, frozen=True, kw_only=True):
    """Up: a part of what a task has changed in its directory. Answered by ``PackTaken``."""

    ref: Ref
    attempt: int
    pack: Pack
    offset: int
    data: bytes
    #: Whether it has all that the task has changed: it takes the place of earlier ones.
    whole: bool = False


class PackTaken(Struct, frozen=True, kw_only=True):
    """Down: a part was taken; with its last one the pack is durable."""

    ref: Ref
    attempt: int
    #: What the disk refused it with; 0: it was taken.
    errno: int = 0
    message: str = ""


class LeaseRenewed(Struct, frozen=True):
    """Down: the lease counts from the moment at which the worker sent this heartbeat."""

    number: int


class Leaving(Struct, frozen=True):
    """Up: the worker takes no more tasks,
    and gives back those it has at their next durable points. ``Drain`` answers it.
    """

    #: Why: its machine is drained, say.
    cause: str
