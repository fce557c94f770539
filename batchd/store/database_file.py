"""The database file: how it is made, migrated and opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from batchd import trees
from batchd.errors import (
    DamagedStoreError,
    NewerStoreError,
    OlderStoreError,
    StoreError,
)
from batchd.store import witness
from batchd.store.migrations import BACKFILLS, MIGRATIONS

#: Marks the file as batchd's: "btch".
APPLICATION_ID = 0x62746368

#: What to do about a store that is damaged; a backup that is has its own.
_FIX = (
    "stop batchd, move it away together with its -wal and -shm, and put a backup in its place with "
    "`batchd restore BACKUP` (a .bak beside it, or what `sqlite3 FILE .recover` saves of it)"
)
#: A file of up to so many bytes is checked whole at each start, at about 2 ms a megabyte.
_CHECKED = 256 << 20


def open_writer(path: Path) -> sqlite3.Connection:
    """Return the one writing connection; create or migrate the file where that is needed.

    Raises ``NewerStoreError`` for a file of a later version,
    ``StoreError`` for one that cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        settle(path)
        if os.path.lexists(path):
            _look_at(path)
        else:
            _create(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be opened for writing: {error.strerror}; check owner and mode of it and its directory"
        ) from error
    db: sqlite3.Connection | None = None
    try:
        # Before a writer opens it: that one would do away with a log it cannot read.
        witness.check_held(path, reading(path))
        db = connect(path)
        version = version_of(db, path)
        if path.stat().st_size <= _CHECKED:
            check(db, path)
        _migrate(db, path, version)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # What is deleted is gone from the file, the secrets of ended tasks above all.
        db.execute("PRAGMA secure_delete = ON")
    except (sqlite3.Error, *NONSENSE, StoreError, OSError) as error:
        if db:
            db.close()
        raise explain(error, path) from error
    return db


def connect(path: Path) -> sqlite3.Connection:
    """Return a plain connection to a file."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)


def _look_at(path: Path) -> None:
    """Refuse what SQLite would take for a new database, or silently throw away."""
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    refuse_empty(path)
    try:
        with witness.log_of(path).open("rb") as log:
            head = log.read(witness.LOG_HEADER_BYTES)
    except FileNotFoundError:
        return
    # All zeros are what a power cut may leave of a log to which nothing had been committed.
    if (
        len(head) == witness.LOG_HEADER_BYTES
        and int.from_bytes(head[:4]) & ~1 != witness.LOG_MAGIC
        and any(head)
    ):
        raise DamagedStoreError(f"{path}-wal is not a log of SQLite: it is damaged; {_FIX}")


def refuse_empty(path: Path, fix: str = "") -> None:
    """Refuse a file without a byte, which SQLite takes for a new database.

    Raises ``DamagedStoreError``.
    """
    if not path.stat().st_size:
        fix = fix or (
            "no tasks can be recovered from it: stop batchd, move it away together with its "
            "-wal and -shm, and put a "
            "backup in its place with `batchd restore BACKUP` (a .bak beside it); without one, "
            "`batchd restore --new` begins a new store"
        )
        raise DamagedStoreError(f"{path} is empty: it was cut off, or never written; {fix}")


def _create(path: Path) -> None:
    """Make the file, so that it appears whole: an empty one is never ours."""
    log = witness.log_of(path)
    if log.exists() and log.stat().st_size:
        raise DamagedStoreError(
            f"{path} is gone, but its log {log.name} is here, and may hold what is not in any backup; "
            "put the file back, or move the log away as well"
        )
    witness.check_there(path)
    draft = path.with_name(f".{path.name}.new")
    for name in (draft, draft.with_name(f"{draft.name}-journal")):
        name.unlink(missing_ok=True)
    # Prompts and answers are private to this user; SQLite gives its side files the same mode.
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(connect(draft)) as db:
            # Lets `prune` give room back to the file system; only possible before the first table.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            apply_migrations(db, 0)
    except sqlite3.Error as error:
        draft.unlink(missing_ok=True)
        raise explain(error, path) from error
    trees.sync(draft)
    draft.replace(path)
    trees.sync(path.parent)


def reading(path: Path) -> str:
    """Return the address under which SQLite opens a file to read it alone. Raises ``OSError``."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    # On a disk that is read-only it is not written,
    # and no log can be made, which SQLite would want otherwise.
    still = os.statvfs(path).f_flag & os.ST_RDONLY
    return f"{address}&immutable=1" if still and not witness.log_of(path).exists() else address


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read. Raises ``StoreError``, ``NewerStoreError``."""
    if not path.exists():
        raise StoreError(
            f"{path} is not there: nothing has run on this spool yet; `batchd run FILE` begins"
        )
    refuse_empty(path)
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            reading(path),
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=5,
        )
        version = version_of(db, path)
    except (sqlite3.Error, *NONSENSE, StoreError) as error:
        if db:
            db.close()
        raise explain(error, path) from error
    if version < len(MIGRATIONS):
        db.close()
        raise OlderStoreError(
            f"{path} is of an older version; `batchd serve` migrates it: where a daemon of that version still runs, restart it"
        )
    return db


def version_of(db: sqlite3.Connection, path: Path, fix: str = "") -> int:
    """Return a file's version. Raises ``StoreError`` for another program's, ``NewerStoreError``."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (owner,) = db.execute("PRAGMA application_id").fetchone()
    db.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # fails where they make no sense
    if owner != APPLICATION_ID:
        fix = fix or "configure another [paths] state"
        raise StoreError(f"{path} is a database of another program; {fix}")
    if version > len(MIGRATIONS):
        raise NewerStoreError(
            f"{path} was written by a newer batchd (its version is {version}, this program knows "
            f"{len(MIGRATIONS)}); install that one again"
        )
    return int(version)


def check(db: sqlite3.Connection, path: Path, fix: str = "") -> None:
    """Look at every page and index: a store with a bad one is not to be worked on.

    Raises ``DamagedStoreError``.
    """
    (verdict,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise DamagedStoreError(
            f"{path}: it is damaged; {fix or _FIX} ({' '.join(verdict.split())})"
        )


def _migrate(db: sqlite3.Connection, path: Path, version: int) -> None:
    if version == len(MIGRATIONS):
        return
    backup = path.with_name(f"{path.name}.v{version}.bak")
    try:
        copy(db, backup)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path} must be migrated from version {version} to {len(MIGRATIONS)}, and could not be backed up "
            f"before: {error}; make room for a copy of {path.stat().st_size:,} bytes, and start again"
        ) from error
    apply_migrations(db, version)


def apply_migrations(db: sqlite3.Connection, version: int) -> None:
    """Bring the tables from ``version`` to today's, all in one transaction."""
    try:
        db.execute("BEGIN IMMEDIATE")
        for number, steps in enumerate(MIGRATIONS[version:], version + 1):
            for statement in _statements(steps):
                db.execute(statement)
            if backfill := BACKFILLS.get(number):
                backfill(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    finally:
        # Whatever ended it: a row that makes no sense, too.
        if db.in_transaction:
            db.execute("ROLLBACK")


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script one by one: ``executescript`` would commit what is open."""
    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


#: By SQLite's primary result code: what it means for the user, and the fix.
_MEANING = {
    sqlite3.SQLITE_FULL: "the disk is full; what is written goes on once there is room again",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written; see the kernel's log",
    sqlite3.SQLITE_READONLY: "it cannot be written; check its owner, its mode and the mount",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the owner and mode of it and its directory",
    sqlite3.SQLITE_PERM: "it cannot be opened; check its owner and mode",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; close that one",
}
#: What is raised where a body holds something that was never written.
UNREADABLE = (zlib.error, msgspec.DecodeError, UnicodeDecodeError, KeyError)
#: And where any column does: a status that there is none of, a number that is none.
NONSENSE = (
    *UNREADABLE,
    *(ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError),
)


def explain(error: Exception, path: Path, fix: str = "") -> StoreError:
    """Return SQLite's error, or the system's, as one that says what to do."""
    if isinstance(error, StoreError):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    primary = (code or 0) & 0xFF
    if primary == sqlite3.SQLITE_NOTADB:
        return DamagedStoreError(
            f"{path}: it is not a database, or its head is damaged; {fix or _FIX} ({error})"
        )
    if isinstance(error, NONSENSE) or primary == sqlite3.SQLITE_CORRUPT:
        return DamagedStoreError(f"{path}: it is damaged; {fix or _FIX} ({error})")
    return StoreError(f"{path}: {_MEANING.get(primary, 'it cannot be used')} ({error})")


#: What SQLite, and we, keep beside a database and with it.
_PARTS = ("", witness.LOG, "-shm", "-journal", witness.WITNESS)


def copy(db: sqlite3.Connection, target: Path) -> None:
    """Copy a database, what stands in its log included,
    to ``target``: whole and durable, or not at all.

    What is there is replaced. Raises ``sqlite3.Error``, ``OSError``.
    """
    draft = target.with_name(f".{target.name}.tmp")
    draft.unlink(missing_ok=True)
    try:
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as twin:
            db.backup(twin)
            # One file alone, which needs no log beside it.
            twin.execute("PRAGMA journal_mode = DELETE")
        trees.sync(draft)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)  # gives the room back, if that was the trouble
        raise
    trees.sync(target.parent)


def staged(path: Path) -> Path:
    """Return where a database waits that is to replace the one at ``path``.

    It appears there whole. From then on the exchange is decided, and every opening completes it: a
    crash can come between its steps.
    """
    return path.with_name(f"{path.name}.restored")


def parts(path: Path) -> list[Path]:
    """Return the files that the database at ``path`` may consist of,
    one that is to replace it included.
    """
    kept = (*_PARTS, witness.BALLAST)
    return [*(path.with_name(path.name + part) for part in kept), staged(path)]


def settle(path: Path) -> Path | None:
    """Complete the exchange that was decided, if one was;
    return where the former database lies now.
    """
    new = staged(path)
    if not new.exists():
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(new.stat().st_mtime))
    former = f"{path.name}.before-restore-{stamp}"
    # None of them may stay: the log of one database destroys another one.
    for part in _PARTS:
        old = path.with_name(path.name + part)
        if os.path.lexists(old):
            old.replace(path.with_name(former + part))
    witness.ballast_of(path).unlink(missing_ok=True)  # the next daemon lays its own
    trees.sync(path.parent)
    new.replace(path)
    trees.sync(path.parent)
    return path.with_name(former)


def reserve(folder: Path, size: int) -> None:
    """Take so many bytes of a folder's disk, and give them back.

    Raises ``OSError`` where they are not there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
