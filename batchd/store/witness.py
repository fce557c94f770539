"""The witness, what a store has acknowledged, noted beside it; and the presence of its files.

A store that is behind the note has lost something. SQLite reads a write-ahead log up to its first
bad frame, and takes that for the end, in silence.

The note is written before each acknowledgement, and never synced then: a kill does not lose it,
and after a power cut it is behind the store, which does no harm.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from batchd import trees
from batchd.errors import DamagedStoreError
from batchd.store import copies

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
    file = copies.witness(path)
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


def check(path: Path, address: str) -> None:
    """Raise ``DamagedStoreError`` where a store lacks what it has acknowledged.

    Nothing may be writing to it.

    ``address``: opens it read-only, which leaves its log as it is; a writer would empty it.
    """
    held = noted(path)
    db = sqlite3.connect(address, uri=True, isolation_level=None)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        found = known(db) if held else AcknowledgedState()
    finally:
        db.close()
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
        file = copies.witness(path)
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


#: How a log begins, but for its last bit, which gives the order of bytes in its checksums.
MAGIC = 0x377F0682
HEADER = 32


def beside(path: Path) -> Path:
    """Return the log of the database at ``path``."""
    return path.with_name(f"{path.name}-wal")


#: How the kernel marks the path of an open file that was deleted.
_DELETED = " (deleted)"


class Presence:
    """The files of an open store, known by their inodes,
    which no other file can get while they are open.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        # O_PATH: closing any other descriptor would give up SQLite's locks on the file.
        self._file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self._log_was = trees.identity(self._log)
        self._loss: DamagedStoreError | None = None

    def holds(self) -> bool:
        """Return whether all is where it was."""
        found = os.fstat(self._file)
        return (
            self._loss is None
            and trees.identity(self._path) == (found.st_dev, found.st_ino)
            and (self._log_was is None or trees.identity(self._log) == self._log_was)
        )

    def check(self) -> None:
        """Raise ``DamagedStoreError`` where it is not; what was deleted is saved first.

        Only who may use the connection, between two transactions, may call it.
        """
        if not self.holds():
            self._loss = self._loss or DamagedStoreError(self._described())
            raise self._loss

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _described(self) -> str:
        """Return what became of the files, and how to go on."""
        now = os.readlink(f"/proc/self/fd/{self._file}")
        found = os.fstat(self._file)
        if trees.identity(self._path) == (found.st_dev, found.st_ino):
            what = f"{self._log} was deleted, moved or exchanged"
            how = f"what it held is moved into {self._path.name}: start batchd again"
        elif not now.endswith(_DELETED):
            what = f"{self._path} was moved away"
            how = f"it is {now} now: move it back, its -wal too if there is one, and start batchd again"
        else:
            what = f"{self._path} was deleted"
            how = self._save()
        return f"{what} while batchd worked on it; {how}"

    def _save(self) -> str:
        """Save what was deleted, which can still be read; return how to go on."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        saved = self._path.with_name(f"{self._path.name}.saved-{stamp}")
        try:
            saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            copies.copy(self._db, saved)
            if os.path.lexists(self._path):
                if trees.identity(self._log) == self._log_was:
                    self._log.unlink()  # the next start would read it into that other file
                return f"another file is in its place; `batchd restore {saved}` puts what it held there"
            saved.replace(copies.staged(self._path))
            trees.sync(saved.parent)
        except (sqlite3.Error, OSError) as error:
            return f"what it held could not be saved ({error}): put a backup in its place with `batchd restore BACKUP`"
        return "what it held is saved, and put back at the next start: start batchd again"
