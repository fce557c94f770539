"""Finds the sockets below what commands see, at each task's start: a read-only mount keeps nobody from connecting.

The kernel lists the sockets that live, with the device of their files and the names by which they were made. Where
such a name leads to the file, that is where it lies. Only for those on a device of ours whose names do not (relative
ones, one that was renamed) the folders themselves are searched, once for each such socket.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence

from batchd.errors import SandboxError
from batchd.sandbox.listed import Listed, listed
from batchd.sandbox.shown import Shown

#: More cannot be hidden: each takes every command some 20 µs.
MOST = 250
#: How long a search may take (seconds); it takes a tenth of one for 50,000 files.
_PATIENCE_S = 60.0
#: What the kernel lists of an inode.
_INODE = 0xFFFFFFFF
_HIDE = "hide their folder with [sandbox] hide"


class Sockets:
    """Finds them; what was searched for once is remembered."""

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self._roots = tuple(shown.roots())
        #: Where a search has found some, with the inodes.
        self._searched: Mapping[str, int] = {}
        #: What was searched for.
        self._settled: frozenset[Listed] = frozenset()
        self._searching = asyncio.Lock()

    async def found(self) -> tuple[str, ...]:
        """Return their real paths, those that the kernel lists first; no more than can be hidden.

        Raises ``SandboxError``: it lists more, or there is no end of folders.
        """
        named, unknown = self._look()
        if self._is_new(unknown):
            async with self._searching:
                named, unknown = self._look()
                if self._is_new(unknown):
                    self._searched = await asyncio.to_thread(search, self.shown)
        self._settled = unknown or frozenset()
        live = named | {path for path in self._searched if self._listed(path, unknown)}
        if len(live) > MOST:
            raise SandboxError(
                f"{len(live):,} sockets lie below what commands see, {min(live)} among them, and only"
                f" {MOST} can be hidden: {_HIDE}"
            )
        left = sorted(filter(is_socket, {*self._searched} - live))
        return (*sorted(live), *left)[:MOST]

    def _is_new(self, unknown: frozenset[Listed] | None) -> bool:
        """Return whether a search may find what the last one has not: another socket, or one that has moved since."""
        new = unknown is None or bool(unknown - self._settled)
        return new or not all(map(is_socket, self._searched))

    def _listed(self, path: str, unknown: frozenset[Listed] | None) -> bool:
        """Return whether somebody may listen where a search has found a socket: the kernel lists its inode, or nothing at all."""
        inode = self._searched[path]
        here = unknown is None or any(one.inode == inode & _INODE for one in unknown)
        return here and is_socket(path)

    def _look(self) -> tuple[set[str], frozenset[Listed] | None]:
        """Return where their names say that some lie, and those of which no name says where. None: the kernel tells nothing."""
        try:
            sockets, devices = listed(), _devices(self._roots)
        except OSError:
            return set(), None
        named, unknown = set(), set()
        for one in sockets:
            if one.device not in devices:
                continue
            place = _place(one)
            if not place:
                unknown.add(one)
            elif self.shown.within(place):
                named.add(place)
        return named, frozenset(unknown)


def search(shown: Shown) -> Mapping[str, int]:
    """Return the real paths of all sockets below what commands see, whoever made them, with their inodes.

    Raises ``SandboxError``.
    """
    deadline = time.monotonic() + _PATIENCE_S
    waiting = [*shown.roots()]
    found: dict[str, int] = {}
    while waiting:
        folder = waiting.pop()
        if shown.hides(folder):
            continue
        if time.monotonic() > deadline:
            raise SandboxError(
                f"what commands see cannot be searched for sockets within {_PATIENCE_S:g} s: take"
                " from it what they do not need, with [sandbox] hide"
            )
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif not entry.is_file(follow_symlinks=False) and is_socket(entry.path):
                        found[entry.path] = entry.inode()
        except OSError:
            # Gone, or no folder: of what is closed to us, no command can do more, but by a name that the kernel lists.
            continue
    return found


def _place(one: Listed) -> str:
    """Return the real path to which a socket's name leads; empty: not to its file."""
    if not one.name.startswith("/"):
        return ""
    try:
        descriptor = os.open(one.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISSOCK(status.st_mode) and status.st_ino & _INODE == one.inode:
            return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 (as the kernel tells it)
        return ""
    finally:
        os.close(descriptor)


def _devices(roots: Sequence[str]) -> set[str]:
    """Return the devices of the file systems on which these lie, or something below them. Raises ``OSError``."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 (each microsecond counts)
        mounts = [(_path(words[4]), words[2]) for words in map(str.split, file)]
    below = {device for path, device in mounts if any(_holds(root, path) for root in roots)}
    return below | {device for root in roots for device in _last(root, mounts)}


def _last(root: str, mounts: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the device on which a path lies: of what is mounted there or above it, the nearest, and the last."""
    above = [(len(path), n) for n, (path, _) in enumerate(mounts) if _holds(path, root)]
    if above:
        yield mounts[max(above)[1]][1]


def _holds(top: str, path: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")


def _path(word: str) -> str:
    """Return a path of mountinfo as it is: blanks and the like are octal there."""
    if "\\" not in word:
        return word
    raw = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), os.fsencode(word))
    return os.fsdecode(raw)


def is_socket(path: str) -> bool:
    """Return whether a socket lies there now."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
