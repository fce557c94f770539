"""Jobs of the daemon's child for mirrors and directories, and their outcome: JSON each way."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from batchd.records import Base, Origin, Pack, SandboxPolicy
from batchd.workspace.mirrors import Pin


class FetchJob(Struct, frozen=True, kw_only=True, tag=True):
    """The job to bring a mirror up to what a task asks for."""

    origin: Origin
    #: The mirror's ``kept``; it is made where it is missing.
    kept: str
    #: Whether to fetch; else what was fetched before counts.
    fetch: bool
    #: What a batch has used of it, to which the commit is added; None: nothing is noted.
    pin: Pin | None = None
    policy: SandboxPolicy
    #: Of a URL: the file of users and passwords, empty: none.
    credentials: str = ""
    timeout_s: float
    max_bytes: int


class PackUp(Struct, frozen=True, kw_only=True, tag=True):
    """The job to pack all that lies in a directory, as far as its owner may read it."""

    directory: str
    #: Whether it is a mirror's, in which nothing else may work meanwhile.
    mirror: bool = False
    #: The folder of packs.
    shelf: str
    policy: SandboxPolicy
    timeout_s: float
    max_bytes: int


class Lay(Struct, frozen=True, kw_only=True, tag=True):
    """The job to change a task's directory to what the task made of it elsewhere. Can be
    repeated.
    """

    directory: str
    #: Whether it is made where it is not there yet.
    fresh: bool
    #: What it is made to be first; None: it is as it should be.
    base: Base | None = None
    changes: tuple[Pack, ...]
    shelf: str
    policy: SandboxPolicy
    timeout_s: float


WorkspaceJob: TypeAlias = FetchJob | PackUp | Lay


class WorkspaceOutcome(Struct, frozen=True, kw_only=True):
    """The outcome of any of these jobs; of ``Lay``, only whether it failed."""

    #: Of a ``FetchJob``: the commit that the ref stands for; of a copy, the tree.
    commit: str = ""
    #: Of a ``PackUp``: what was packed.
    pack: Pack | None = None
    #: Why it cannot be done, in words; empty: it is.
    error: str = ""
    #: What the disk refused it with; 0: that was not the cause.
    errno: int = 0
