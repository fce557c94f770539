"""Directories that are taken, and the lanes of tasks that wait for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from batchd.records import Ref

#: Sorts the best task first: minus its priority, its order, its name.
Rank: TypeAlias = tuple[int, int, Ref]
_Member = TypeVar("_Member")


@dataclass(slots=True, eq=False)
class Taken:
    """A directory that is taken: by a task that has begun, or by a lane that waits for it."""

    directory: str
    #: The waiting lane's head, which only blocks worse ones; None: blocks all.
    claim: Rank | None = None
    #: The lanes that stand aside because of it, as an ordered set.
    waiters: dict[Lane, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Lane:
    """The ready tasks of one model that work in one directory."""

    #: The model's name, ``PROVIDER/MODEL``.
    source: str
    directory: str
    heap: list[Rank] = field(default_factory=list)
    #: While it stands aside: what it waits for, and its own claim on the directory.
    blocker: Taken | None = None
    claim: Taken | None = None


class DirectoryLocks:
    """The directories that are taken, found by their own path, from above and from below."""

    def __init__(self) -> None:
        self._at: dict[str, dict[Taken, None]] = {}
        self._below: dict[str, dict[Taken, None]] = {}

    def add(self, taken: Taken) -> None:
        """Take a directory."""
        self._at.setdefault(taken.directory, {})[taken] = None
        for path in _parents(taken.directory):
            self._below.setdefault(path, {})[taken] = None

    def remove(self, taken: Taken) -> None:
        """Give it back; who waited for it is the caller's business."""
        discard(self._at, taken.directory, taken)
        for path in _parents(taken.directory):
            discard(self._below, path, taken)

    def blocker(self, directory: str, rank: Rank) -> Taken | None:
        """Return what keeps ``rank`` out of ``directory``, if anything does."""
        near = [self._below.get(directory), self._at.get(directory)]
        near += [self._at.get(path) for path in _parents(directory)]
        for found in near:
            for taken in found or ():
                if taken.claim is None or taken.claim < rank:
                    return taken
        return None


def _parents(path: str) -> Iterator[str]:
    """Yield the directories above an absolute path, nearest first."""
    end = len(path)
    while (end := path.rfind("/", 0, end)) > 0:
        yield path[:end]
    if path != "/":
        yield "/"


def discard(index: dict[str, dict[_Member, None]], key: str, member: _Member) -> None:
    """Take ``member`` out of a set in ``index``; keep no empty set."""
    members = index.get(key)
    if members is not None:
        members.pop(member, None)
        if not members:
            del index[key]
