"""The mount table, as this process sees it: which file of a file system is found at which places.

The kernel reports whether anything was mounted or unmounted since,
in two microseconds; only then is the table read again.
"""

from __future__ import annotations

import functools
import os
import re
import select
import threading
from collections.abc import Sequence
from dataclasses import dataclass

_TABLE = "/proc/self/mountinfo"
_PIECE = 1 << 16
_MINOR_BITS = 20


@dataclass(frozen=True, slots=True)
class Mount:
    """One that is mounted."""

    #: The kernel's number of the file system.
    device: int
    #: The folder, or file, of that file system that is mounted, and where.
    root: str
    place: str


class Mounts:
    """The mount table; any thread may ask."""

    def __init__(self) -> None:
        """Raise ``OSError``."""
        self._lock = threading.Lock()
        self._file = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        # The kernel says it once for each who has the file open: so one of us must read it for all.
        self._poll.register(self._file, select.POLLPRI)
        self._table: tuple[Mount, ...] | None = None

    def table(self) -> tuple[Mount, ...]:
        """Return how it is now; the same one, unless anything has changed. Raises ``OSError``."""
        with self._lock:
            changed = self._poll.poll(0)
            if changed or self._table is None:
                self._table = None  # what cannot be read now is read at the next look
                self._table = tuple(map(_mount, self._lines()))
            return self._table

    def _lines(self) -> list[str]:
        os.lseek(self._file, 0, os.SEEK_SET)
        pieces = iter(lambda: os.read(self._file, _PIECE), b"")
        return os.fsdecode(b"".join(pieces)).rstrip("\n").split("\n")


def mounts() -> Mounts:
    """Return those of this process. Raises ``OSError``."""
    return _of(os.getpid())


@functools.cache
def _of(_pid: int) -> Mounts:
    return Mounts()


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
