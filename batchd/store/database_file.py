"""The database file: how it is made, migrated and opened, and what its errors mean; its copies, as
backups and drafts, and the exchange of one for it.
"""

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
    UsageError,
)
from batchd.store import side_files
from batchd.store.migrations import BACKFILLS, MIGRATIONS
from batchd.store.rows import unpack_task

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
        side_files.check_held(path, reading(path))
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
        with side_files.log_of(path).open("rb") as log:
            head = log.read(side_files.LOG_HEADER_BYTES)
    except FileNotFoundError:
        return
    # All zeros are what a power cut may leave of a log to which nothing had been committed.
    if (
        len(head) == side_files.LOG_HEADER_BYTES
        and int.from_bytes(head[:4]) & ~1 != side_files.LOG_MAGIC
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
    log = side_files.log_of(path)
    if log.exists() and log.stat().st_size:
        raise DamagedStoreError(
            f"{path} is gone, but its log {log.name} is here, and may hold what is not in any backup; "
            "put the file back, or move the log away as well"
        )
    side_files.check_there(path)
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
    return f"{address}&immutable=1" if still and not side_files.log_of(path).exists() else address


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read. Raises ``StoreError``, ``NewerStoreError``."""
    if not path.exists():
        raise StoreError(f"{path} does not exist; no batchd has worked here yet")
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
_PARTS = ("", side_files.LOG, "-shm", "-journal", side_files.WITNESS)


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
    kept = (*_PARTS, side_files.BALLAST)
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
    side_files.ballast_of(path).unlink(missing_ok=True)  # the next daemon lays its own
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


#: What to do about a backup that is of no use.
_NO_BACKUP = "nothing was changed: name another backup"


def draft(source: Path, path: Path) -> Path:
    """Return a migrated copy of the database ``source``,
    beside ``path``, whose place it is to take.

    Raises ``StoreError``: it is no database of batchd, it is damaged, a newer batchd's, it names
    what lies elsewhere, or there is no room.
    """
    settle(path)
    fix = "" if _same(source, path) else _NO_BACKUP
    made = path.with_name(f".{path.name}.draft")
    discard(made)
    try:
        with contextlib.closing(_opened(source, fix)) as db:
            copy(db, made)
        with contextlib.closing(connect(made)) as db:
            apply_migrations(db, version_of(db, made))
            _check_names(db, source)
    except (sqlite3.Error, *NONSENSE, OSError) as error:
        discard(made)
        raise explain(error, source, fix) from error
    return made


def fresh(path: Path) -> Path:
    """Return a new store without a task, beside ``path``, whose place it is to take.

    Raises ``StoreError``.
    """
    settle(path)
    made = path.with_name(f".{path.name}.draft")
    discard(made)
    open_writer(made).close()
    return made


def put_in_place(made: Path, path: Path) -> Path | None:
    """Put a draft that no process has open in the store's place;
    return where the former one lies, if there was one.

    Only who holds the spool's lock may call it. Raises ``OSError``.
    """
    trees.sync(made)
    made.replace(staged(path))
    trees.sync(path.parent)
    former = settle(path)
    return former if former and former.exists() else None


def discard(made: Path) -> None:
    """Take a draft away."""
    for part in (*parts(made), made.with_name(f".{made.name}.tmp")):
        part.unlink(missing_ok=True)


def back_up(path: Path, target: Path) -> int:
    """Copy the store, beside its daemon or without one, to ``target``; return its bytes.

    Raises ``UsageError`` for a target that is the store itself, or no file, ``StoreError``.
    """
    for part in parts(path):
        # By its name too:
        # a log that is not there now would be taken for the store's at the next start.
        if _same(target, part):
            raise UsageError(f"{target} is {part}, a part of the store itself: name another file")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is not a file, so a backup cannot replace it")
    try:
        with contextlib.closing(_opened(path)) as db:
            copy(db, target)
        return target.stat().st_size
    except (sqlite3.Error, *NONSENSE, OSError) as error:
        raise explain(error, path) from error


def _same(path: Path, other: Path) -> bool:
    """Whether two paths mean the same file, be it there or not."""
    if path.exists() and other.exists() and path.samefile(other):
        return True
    return path.resolve() == other.resolve()


def _opened(source: Path, fix: str = "") -> sqlite3.Connection:
    """Open a database of batchd, sound and of no later version, to be read.

    Raises ``StoreError``.
    """
    if not source.is_file():
        raise StoreError(f"{source} does not exist, or is not a file")
    refuse_empty(source, fix)
    db = sqlite3.connect(reading(source), uri=True, isolation_level=None)
    try:
        version_of(db, source, fix)
        check(db, source, fix)
    except BaseException:
        db.close()
        raise
    return db


def _check_names(db: sqlite3.Connection, source: Path) -> None:
    """Raise ``StoreError`` for a name that is more than a name, as no batchd writes one."""
    for what, name in _names(db):
        if not isinstance(name, str) or name in {"", ".", ".."} or "/" in name or "\0" in name:
            raise StoreError(
                f"{source}: {what} has the name {name!r}, which is a path; {_NO_BACKUP}"
            )
    for (outbox,) in db.execute("SELECT DISTINCT outbox FROM batches"):
        if not str(outbox).startswith("/"):
            raise StoreError(
                f"{source}: the outbox {outbox!r} is not an absolute path; {_NO_BACKUP}"
            )


def _names(db: sqlite3.Connection) -> Iterator[tuple[str, object]]:
    for batch, claim, request in db.execute("SELECT name, claim, request FROM batches"):
        yield from (("a batch", batch), ("a claim", claim), ("the file of a batch", request))
    for (task,) in db.execute("SELECT name FROM tasks"):
        yield "a task", task
    # What is published needs no directory any more.
    waiting = "SELECT s.body FROM tasks t JOIN specs s ON s.task = t.id WHERE t.published = 0"
    for (body,) in db.execute(waiting):
        task = unpack_task(body)
        yield "a task", task.id
        if task.dir and not task.dir.startswith("/"):
            yield "the directory of a task", task.dir  # no batchd stores one that is not whole
        if task.origin and task.origin.kind == "copy" and task.origin.remote:
            yield "the directory that a task gets a copy of", task.origin.source
