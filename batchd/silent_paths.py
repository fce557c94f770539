"""Paths that may not answer, as on a disk over a lost network: who asks waits a few seconds,
and a thread for what hangs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import NotPossibleError

_MINOR_BITS = 20


@dataclass(frozen=True, slots=True)
class Mount:
    """One that is mounted."""

    #: The kernel's number of the file system.
    device: int
    #: The folder, or file, of that file system that is mounted, and where.
    root: str
    place: str


def mounts() -> tuple[Mount, ...]:
    """Return the mount table as it is now. Raises ``OSError``."""
    lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n")
    return tuple(map(_mount, lines))


def within(path: str, top: str) -> bool:
    """Return whether a path is another one, or lies below it."""
    return path == top or path.startswith(top if top.endswith("/") else f"{top}/")


def moved(path: str, top: str, to: str) -> str:
    """Return a path, which lies within ``top``, as it is where that is ``to``."""
    return f"{to.rstrip('/')}{path[len(top.rstrip('/')) :]}" or "/"


def holding(mounts: Sequence[Mount], path: str) -> Mount | None:
    """Return the one on which a real path lies:
    of those at it or above it the nearest, and the last.
    """
    above = [(len(mount.place), n) for n, mount in enumerate(mounts) if within(path, mount.place)]
    return mounts[max(above)[1]] if above else None


def _mount(line: str) -> Mount:
    _, _, device, root, place, *_ = line.split(" ", 5)
    major, _, minor = device.partition(":")
    return Mount(int(major) << _MINOR_BITS | int(minor), _path(root), _path(place))


def _path(word: str) -> str:
    """Return a path as it is: blanks and the like are octal in the table."""
    if "\\" not in word:
        return word
    raw = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), os.fsencode(word))
    return os.fsdecode(raw)


#: A disk under load may take seconds.
_PATIENCE_S = 3.0
#: One that has to wake up takes longer; what fails for it would have worked.
_REFUSED_S = 10.0

#: What a user can do about a folder that does not answer.
FIX = "check the server of its disk, or unmount that (`umount --lazy`)"

#: What a disk says that has lost its server.
_LOST = {errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EIO}
#: As many links as the kernel follows on one way.
_LINKS = 40


class SilentPathError(NotPossibleError):
    """The path does not answer."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} does not answer: {FIX}")
        self.path = path


class _Question(threading.Thread):
    """A question to a path. The kernel ends one that hangs, with the process."""

    def __init__(self, path: str) -> None:
        super().__init__(name="answers", daemon=True)
        self.path = path
        self._begun = time.monotonic()
        # Another thread may wait before this one has started, which `join` refuses.
        self._answered = threading.Event()

    def run(self) -> None:
        """Ask what no file system answers from memory; any answer will do."""
        with contextlib.suppress(OSError):
            os.statvfs(self.path)
        self._answered.set()

    def hangs(self, patience_s: float) -> bool:
        """Wait for the answer until so long after the question."""
        return not self._answered.wait(max(0.0, self._begun + patience_s - time.monotonic()))


def refuse(*paths: str, patience_s: float = _REFUSED_S) -> None:
    """Return if all of these paths answer. Blocks for seconds at most.

    Raises ``SilentPathError``, with the fix, for one that does not.
    """
    for path in among(paths, patience_s):
        raise SilentPathError(path)


def answered(path: str, patience_s: float = _REFUSED_S) -> None:
    """Return if a path answers in time, and its disk has not lost its server. Blocks.

    Raises ``SilentPathError``.
    """
    refuse(path, patience_s=patience_s)
    try:
        os.statvfs(path)
    except OSError as error:
        if error.errno in _LOST:
            raise SilentPathError(path) from error


def disks() -> set[str]:
    """Return where something is mounted, the root apart: who lives there has its answer."""
    return {mount.place for mount in mounts()} - {"/"}


def disk(path: str) -> str:
    """Return where the disk of a path is mounted; no link of it is followed."""
    mount = holding(mounts(), os.path.normpath(path))
    return mount.place if mount else "/"


def insist(path: str, unasked: set[str]) -> None:
    """Return if each disk on the way to a path answers, where its links lead too; it is asked
    before anything on it is looked at, so that no look hangs.

    ``unasked``: of ``disks``, those that are not known to answer. Raises ``SilentPathError``.
    """
    here, ahead, links = "/", path.split("/")[::-1], 0
    while ahead and links < _LINKS:
        name = ahead.pop()
        there = os.path.normpath(os.path.join(here, name))
        if there in unasked:
            answered(there)
            unasked.discard(there)
        try:
            target = os.readlink(there)  # for each part of a path
        except OSError:  # it is no link, or not there
            here = there
            continue
        links += 1
        ahead += target.split("/")[::-1]
        here = "/" if target.startswith("/") else here


def among(paths: Iterable[str], patience_s: float = _PATIENCE_S) -> list[str]:
    """Return which of these paths do not answer in time. Blocks.

    One that was asked before, and still has not answered, is not asked again:
    it costs one thread, however often somebody wants to know.
    """
    known = {each.path: each for each in threading.enumerate() if isinstance(each, _Question)}
    asked: list[_Question] = []
    for path in dict.fromkeys(paths):
        question = known.get(path)
        if question is None:
            question = _Question(path)
            try:
                question.start()
            except RuntimeError:  # the system has no thread to give: then it is not known
                continue
        asked.append(question)
    return [question.path for question in asked if question.hangs(patience_s)]
