"""Settling of dropped files.

Moved in: whole at once. Else when a file says so itself, or held still. Never while it is written.
"""

from __future__ import annotations

import enum
import fcntl
import os
import signal
import time
from dataclasses import dataclass

import msgspec

from batchd import decoders

#: Left alone: programs that write such a name rename it when done.
_UNFINISHED = ("~", ".tmp", ".part", ".swp")
#: A larger JSON file is not parsed when it is closed, but settles.
_PEEK_BYTES = 4 << 20
#: Files that are watched for stillness at a time; the others' turn comes.
_MAX_WATCHED = 10_000

#: What changes with a file: its inode, size, and times of data and status.
Signature = tuple[int, int, int, int]


class FileSign(enum.IntEnum):
    """A sign: what an event says of a file; a greater one says more."""

    #: It is there: just begun, or a link.
    CREATED = 1
    #: A writer closed it.
    CLOSED = 2
    #: It was moved here, so it is whole.
    MOVED = 3
    #: The folder itself is gone.
    GONE = 4


def ignorable(name: str) -> bool:
    """Whether a name says that it is none of our business."""
    return name.startswith(".") or name.endswith(_UNFINISHED)


def signature(status: os.stat_result) -> Signature:
    """Return what is different once a file has been touched or replaced."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class _Seen:
    signature: Signature
    since: float


class Settling:
    """The files that are not known to be whole, until they held still for long enough."""

    def __init__(self, settle_s: float, *, local_clock: bool) -> None:
        self._settle_s = settle_s
        #: Whether the file system's clock is ours: it is not on NFS.
        self._local_clock = local_clock
        self._seen: dict[str, _Seen] = {}

    def ready(self, folder: int, name: str, status: os.stat_result, sign: FileSign | None) -> bool:
        """Whether a file of an open folder may be taken now,
        after what the event said, or the scan (None).
        """
        # An event tells of a name: what was moved in may be gone, and a file begun in its place.
        whole = (
            sign is FileSign.MOVED
            or (sign is FileSign.CLOSED and self._complete(folder, name, status.st_size))
            or self._quiet(name, status)
        ) and not self._being_written(folder, name)
        if whole:
            self._seen.pop(name, None)
        elif name not in self._seen and len(self._seen) < _MAX_WATCHED:
            self._seen[name] = _Seen(signature(status), time.monotonic())
        return whole

    def due(self) -> list[str]:
        """Return the names that may have settled by now; who asks looks at each with ``ready``."""
        latest = time.monotonic() - self._settle_s
        return [name for name, seen in self._seen.items() if seen.since <= latest]

    def next_due_s(self) -> float | None:
        """Return in how many seconds ``due`` will have a name; None where nothing is watched."""
        first = min((seen.since for seen in self._seen.values()), default=None)
        return None if first is None else max(0.0, first + self._settle_s - time.monotonic())

    def forget(self, name: str) -> None:
        """Note that a file is gone."""
        self._seen.pop(name, None)

    def _quiet(self, name: str, status: os.stat_result) -> bool:
        now = time.monotonic()
        # Nothing that a program can set moves ctime back:
        # an old one is stillness that was seen already.
        if self._local_clock and time.time() - status.st_ctime >= self._settle_s:
            return True
        seen = self._seen.get(name)
        if seen and seen.signature == signature(status):
            return now - seen.since >= self._settle_s
        if seen:
            self._seen[name] = _Seen(signature(status), now)
        return self._settle_s == 0

    def _complete(self, folder: int, name: str, size: int) -> bool:
        """Whether a closed file is whole JSON. No other form shows whether more is to come."""
        if not name.lower().endswith(".json") or size > _PEEK_BYTES:
            return False
        try:
            descriptor = self._open(folder, name)
            with open(descriptor, "rb") as file:
                decoders.decode(file.read(_PEEK_BYTES + 1), msgspec.Raw)
        except (OSError, ValueError, RecursionError):
            return False
        return True

    def _being_written(self, folder: int, name: str) -> bool:
        """Whether somebody has the file open for writing: a slow writer may rest for any time.

        The kernel grants a read lease only where no process has. Where it does not say (another
        owner's file, some file systems), stillness has to do.
        """
        try:
            descriptor = self._open(folder, name)
        except OSError:
            return False
        try:
            # The signal for a writer who comes in this instant:
            # SIGURG is ignored, SIGIO would kill us.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            self._seen[name] = _Seen(signature(os.fstat(descriptor)), time.monotonic())
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return False

    @staticmethod
    def _open(folder: int, name: str) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=folder)
