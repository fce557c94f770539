"""The witness, what a store has acknowledged, noted beside it; and what the files beside a database
are called.

A store that is behind its witness has lost something. SQLite reads a write-ahead log up to its
first bad frame, and takes that for the end, in silence. The note is written before each
acknowledgement, and never synced then: a kill does not lose it, and after a power cut it is behind
the store, which does no harm.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from batchd import trees
from batchd.errors import DamagedStoreError

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
