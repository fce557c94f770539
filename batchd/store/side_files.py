"""The files that the store keeps beside its database: SQLite's log; the witness, a note of what was
acknowledged; and the ballast, room on the disk for what is urgent.

A store that is behind its witness has lost something. SQLite reads a write-ahead log up to its
first bad frame, and takes that for the end, in silence. The note is written before each
acknowledgement, and never synced then: a kill does not lose it, and after a power cut it is behind
the store, which does no harm.

The ballast is a file that holds nothing, for orders and ends of tasks once there is no other room.
It is given up piece by piece, each at once made room for the log, so that what fills the disk does
not get it first; and laid again where there is plenty of room.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from batchd import trees
from batchd.errors import DamagedStoreError
from batchd.log import Action, get_logger

#: What each is called, behind the database's own name.
LOG, WITNESS, BALLAST = "-wal", "-acked", "-ballast"
#: How a log begins, but for its last bit, which gives the order of bytes in its checksums.
LOG_MAGIC = 0x377F0682
LOG_HEADER_BYTES = 32


def log_of(path: Path) -> Path:
    """Return the log of the database at ``path``."""
    return path.with_name(path.name + LOG)


def witness_of(path: Path) -> Path:
    """Return where it is noted what the database at ``path`` has acknowledged."""
    return path.with_name(path.name + WITNESS)


def ballast_of(path: Path) -> Path:
    """Return the file that keeps room for what the database at ``path`` must be able to write."""
    return path.with_name(path.name + BALLAST)


#: Earlier versions noted here when the store began.
_TEXT = re.compile(rb"batches (\d+) events (\d+) since \d+\n")
#: Without a change of length, so that one write takes the place of the other.
_FORMAT = "batches {:012d} events {:016d} since 000000000000000\n"


@dataclass(frozen=True, slots=True)
class AcknowledgedState:
    """The state that a store has acknowledged: both numbers only grow, whatever is pruned."""

    batches: int = 0
    events: int = 0

    def covers(self, other: AcknowledgedState) -> bool:
        """Whether nothing of ``other`` is missing."""
        return self.batches >= other.batches and self.events >= other.events

    def __str__(self) -> str:
        return f"{self.batches:,} batches and {self.events:,} events"


def known(db: sqlite3.Connection) -> AcknowledgedState:
    """Return what a store knows."""
    batches, events = db.execute(
        "SELECT (SELECT count(*) FROM batches), (SELECT coalesce(sum(seq), 0) FROM tasks)"
    ).fetchone()
    return AcknowledgedState(batches, events)


def noted(path: Path) -> AcknowledgedState | None:
    """Return what the store at ``path`` has acknowledged; None: nothing is noted,
    or nothing of it came to the disk before a power cut.

    Raises ``DamagedStoreError`` where something else stands there.
    """
    file = witness_of(path)
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _useless(file, str(error.strerror)) from None
    if not text.strip(b"\0"):
        return None
    found = _TEXT.match(text)
    if found is None:
        raise _useless(file, "it is something else")
    return AcknowledgedState(*map(int, found.groups()))


def check_there(path: Path) -> None:
    """Raise ``DamagedStoreError`` where there is no store,
    and something says that there was one.
    """
    held = noted(path)
    if held and held.batches and not os.path.lexists(path):
        raise DamagedStoreError(
            f"{path} is gone, which held {held}: put it back, or a backup with `batchd restore BACKUP --yes`; "
            "with neither, `batchd restore --new --yes` begins a new store"
        )


def check_held(path: Path, address: str) -> None:
    """Raise ``DamagedStoreError`` where a store lacks what it has acknowledged.

    Nothing may be writing to it.

    ``address``: opens it read-only, which leaves its log as it is; a writer would empty it.
    """
    held = noted(path)
    with contextlib.closing(sqlite3.connect(address, uri=True, isolation_level=None)) as db:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        found = known(db) if held else AcknowledgedState()
    if held and not found.covers(held):
        raise DamagedStoreError(
            f"{path} is behind what it has acknowledged: it holds {found}, of {held}; its log is damaged or gone, "
            "or an older file was put in its place; `batchd restore` shows what the outbox has of the rest, and "
            "with --yes takes that over and parks what may have run; a newer backup of "
            f"{path.name} is better: `batchd restore BACKUP`"
        )


class Witness:
    """The witness of what the store acknowledges.

    A note that cannot be written is left out: it is behind then.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        """Raise ``OSError`` where there is none and none can be made."""
        self.known = known(db)
        noted(path)
        file = witness_of(path)
        new = not file.exists()
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if new:
            trees.sync(file.parent)
        self._write()

    def note(self, batches: int, events: int) -> None:
        """Note what is acknowledged next, which is durable."""
        if batches or events:
            self.known = AcknowledgedState(self.known.batches + batches, self.known.events + events)
            self._write()

    def close(self) -> None:
        """Make the note durable, and let go of the file."""
        with contextlib.suppress(OSError):
            os.fsync(self._file)
        os.close(self._file)

    def _write(self) -> None:
        text = _FORMAT.format(self.known.batches, self.known.events)
        with contextlib.suppress(OSError):
            os.pwrite(self._file, text.encode(), 0)


def _useless(file: Path, why: str) -> DamagedStoreError:
    return DamagedStoreError(
        f"{file} notes what the store has acknowledged, and cannot be read: {why}; if nothing happened to the "
        "store itself, remove it"
    )


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
        try:
            end = os.fstat(log).st_size
            while (missing := _allocated(log, end, size)) in _NO_ROOM:
                if not self._give_up():
                    return False
            return not missing or (missing in _UNKNOWN and self._give_up())
        finally:
            os.close(log)

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
    return 0 if _libc().fallocate(*arguments) == 0 else ctypes.get_errno()


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
