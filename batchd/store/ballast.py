"""Ballast: room on the disk that the store keeps for what is urgent,
orders and ends of tasks, once there is no other.

A file beside the database that holds nothing. It is given up piece by piece, each at once made room
for the write-ahead log, so that what fills the disk does not get it first;
and laid again where there is plenty of room."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sqlite3
import time
from pathlib import Path

from batchd import trees
from batchd.log import Action, get_logger
from batchd.store.witness import ballast_of, log_of

#: What is kept (bytes).
BALLAST_BYTES = 8 << 20
#: What is given up at once: an order, or a task's end, mostly fits into it.
PIECE_BYTES = 128 << 10
#: What must be free beside it before it is laid:
#: on a disk that is nearly full it would be in the way.
SPARE_BYTES = 4 * BALLAST_BYTES
#: The time between two looks at whether it can be laid (seconds).
LAY_AGAIN_S = 2.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
#: SQLite calls a quota that is used up an error of the device.
_REFUSED = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE})
_UNKNOWN = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_FALLOC_FL_KEEP_SIZE = 0x01


class Ballast:
    """The ballast of the store at ``path``. Only the writing thread may use it."""

    def __init__(self, path: Path) -> None:
        self._file = ballast_of(path)
        self._log = log_of(path)
        self._due = 0.0
        #: Whether all of it is there, as far as is known.
        self.whole = self._laid()

    def lay(self) -> None:
        """Lay what is missing, if there is plenty of room;
        else, or where the disk refuses, later.
        """
        if self.whole or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + LAY_AGAIN_S
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._file.parent)
            if disk.f_bavail * disk.f_frsize >= BALLAST_BYTES + SPARE_BYTES:
                self._write()
                self.whole = self._file.lstat().st_size == BALLAST_BYTES

    def make_room(self, size: int) -> bool:
        """Return whether there is so much room at the end of the log,
        given up for it where need be.

        False also where room is not what is missing.
        """
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        with trees.held(log):
            end = os.fstat(log).st_size
            while (missing := _allocated(log, end, size)) in _NO_ROOM:
                if not self._give_up():
                    return False
            return not missing or (missing in _UNKNOWN and self._give_up())

    def _laid(self) -> bool:
        try:
            found = self._file.lstat()
        except OSError:
            return False
        return found.st_size == BALLAST_BYTES and found.st_blocks * 512 >= BALLAST_BYTES

    def _write(self) -> None:
        """Write all of it: bytes that no file system makes smaller.

        Raises ``OSError``, and leaves nothing then.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self._file, flags, 0o600), "wb", buffering=0) as file:
            try:
                for _ in range(BALLAST_BYTES // PIECE_BYTES):
                    file.write(os.urandom(PIECE_BYTES))
                os.fsync(file)
            except OSError:
                file.truncate(0)
                raise

    def _give_up(self) -> bool:
        """Give a piece of it back to the disk; return whether there was one."""
        try:
            left = self._file.lstat().st_size - PIECE_BYTES
            if left < 0:
                return False
            os.truncate(self._file, left)
        except OSError:
            return False
        if self.whole:
            self.whole = False
            message = f"the disk is full: what is kept in {self._file} is given up for orders and ends of tasks"
            get_logger().warning(Action.STORE_TROUBLE, message=message)
        return True


def lacks_room(error: Exception) -> bool:
    """Return whether a write may have failed for want of room."""
    return getattr(error, "sqlite_errorcode", None) in _REFUSED


def _allocated(file: int, start: int, size: int) -> int:
    """Allocate room behind a file's end, which stays where it is;
    return the kernel's number of what is in the way, or 0.
    """
    arguments = (file, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(start), ctypes.c_int64(size))
    return 0 if trees.libc().fallocate(*arguments) == 0 else ctypes.get_errno()
