"""Workspaces instead of a directory in place: a clone of a repository, or a copy of a directory."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

#: ``clone``: a repository's commit, on a branch of the task's own;
#: ``copy``: all that lies in a directory.
WorkspaceKind: TypeAlias = Literal["clone", "copy"]


class Origin(Struct, frozen=True, kw_only=True):
    """The origin that a task asks to work on."""

    kind: WorkspaceKind
    #: The real path of a directory or repository, or a repository's URL.
    source: str
    #: A repository's branch, tag or commit; empty: what it has checked out.
    ref: str = ""

    @property
    def remote(self) -> bool:
        """Whether it is a URL."""
        return not self.source.startswith("/")


class Base(Struct, frozen=True, kw_only=True):
    """The base that a task's directory begins as."""

    origin: Origin
    #: The folder of batchd's own that has it, as ``workspace.mirrors`` lays it out;
    #: commands see it read-only.
    mirror: str
    #: The commit that a clone begins at; of a copy, the tree.
    commit: str
    #: The branch of the task's own; empty: a copy has none.
    branch: str = ""


class Change(Struct, frozen=True, kw_only=True):
    """The change of one file of a clone or a copy."""

    path: str
    #: Lines; None: it is no text.
    added: int | None
    removed: int | None


class Patch(Struct, frozen=True, kw_only=True):
    """The patch: all that a task has changed in a clone or a copy, as ``git apply`` takes it."""

    changes: tuple[Change, ...] = ()
    #: The patch; empty: nothing has changed, or it could not be made.
    data: bytes = b""
    #: The files whose changes it leaves out, since it would be too large.
    left_out: tuple[str, ...] = ()
    #: Whether it holds a secret: then it is for batchd's user alone.
    withheld: bool = False
    #: What else it lacks, in words: files that could not be read,
    #: repositories within; empty: nothing.
    lacks: str = ""
    #: Why it could not be made; empty: it could.
    problem: str = ""


class Pack(Struct, frozen=True, kw_only=True):
    """Files of a directory in one file, as ``workspace.packfile`` writes it."""

    #: Its name: SHA-256 over what is in it, in hexadecimal digits.
    digest: str
    #: Its bytes.
    size: int
    #: The bytes that it holds once they are decompressed.
    plain: int


class Chain(Struct, frozen=True, kw_only=True):
    """What a task's directory is made of, on a machine that does not have it: in this order."""

    #: What lies read-only beside it, and what it begins
    #: as where that is a clone or a copy; None: nothing.
    base: Pack | None = None
    #: The directory as it was when the task first left the daemon's machine;
    #: None: it was empty, or was not there.
    first: Pack | None = None
    #: What the task has changed since.
    changes: tuple[Pack, ...] = ()

    @property
    def packs(self) -> tuple[Pack, ...]:
        """All of them."""
        return (*filter(None, (self.base, self.first)), *self.changes)
