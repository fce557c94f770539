"""The database file: its tables, its migrations, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from batchd.errors import NewerStoreError, StoreError

#: Marks the file as batchd's: "btch".
APPLICATION_ID = 0x62746368

#: Statements by version: the file's ``user_version`` says how many of these it has seen. Append only.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE batches (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        claim TEXT NOT NULL UNIQUE,
        outbox TEXT NOT NULL,
        request TEXT NOT NULL,
        received_at REAL NOT NULL,
        budget_usd REAL NOT NULL,
        retry_of TEXT,
        problems TEXT,                      -- of a refused file, as JSON
        first_task INTEGER NOT NULL,        -- the ids of a batch's tasks are consecutive
        tasks INTEGER NOT NULL,
        unfinished INTEGER NOT NULL,
        completed INTEGER NOT NULL DEFAULT 0,
        timeout INTEGER NOT NULL DEFAULT 0,
        error INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        finished_at REAL,
        published_at REAL,
        prune_from REAL,                    -- published_at, as long as there is something to prune
        pruned INTEGER NOT NULL DEFAULT 0   -- tasks whose bodies are gone
    );
    CREATE INDEX batches_open ON batches(id) WHERE published_at IS NULL;
    CREATE INDEX batches_to_prune ON batches(prune_from) WHERE prune_from IS NOT NULL;

    -- What changes with every event is kept apart from what is large (specs) and from what is
    -- indexed (status, published): an UPDATE rewrites the row, and the index of each column it names.
    CREATE TABLE tasks (
        id INTEGER PRIMARY KEY,             -- also the order in which they were queued
        batch INTEGER NOT NULL REFERENCES batches,
        name TEXT NOT NULL,
        model TEXT NOT NULL,
        dir TEXT NOT NULL,
        priority INTEGER NOT NULL,
        after TEXT NOT NULL,                -- names, separated by blanks
        status TEXT NOT NULL DEFAULT 'queued',
        reason TEXT,
        message TEXT NOT NULL DEFAULT '',
        since REAL NOT NULL,                -- when it came into this status
        attempt INTEGER NOT NULL DEFAULT 0,
        crashes INTEGER NOT NULL DEFAULT 0,
        worker TEXT NOT NULL DEFAULT '',
        finished_at REAL,
        published INTEGER NOT NULL DEFAULT 0,
        seq INTEGER NOT NULL DEFAULT 0,     -- of the next event
        barren INTEGER NOT NULL DEFAULT 0,  -- dispatches since the last event that shows progress
        rounds INTEGER NOT NULL DEFAULT 0,
        round_open INTEGER NOT NULL DEFAULT 0,
        calls INTEGER NOT NULL DEFAULT 0,
        input_tokens INTEGER NOT NULL DEFAULT 0,
        cached_input_tokens INTEGER NOT NULL DEFAULT 0,
        cache_write_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0,
        reasoning_tokens INTEGER NOT NULL DEFAULT 0,
        estimated INTEGER NOT NULL DEFAULT 0,
        cost_usd REAL DEFAULT 0,            -- NULL: a price is missing
        unsettled_calls INTEGER NOT NULL DEFAULT 0,
        unsettled_usd REAL NOT NULL DEFAULT 0,
        call_at REAL,                       -- of the request whose outcome is not recorded
        call_purpose TEXT,
        reserved_usd REAL,                  -- by that request
        step TEXT NOT NULL DEFAULT '',      -- the kind of the last event
        started_at REAL,
        last_at REAL,
        UNIQUE (batch, name)
    );
    CREATE INDEX tasks_open ON tasks(batch, status) WHERE published = 0;

    CREATE TABLE specs (task INTEGER PRIMARY KEY REFERENCES tasks, body BLOB NOT NULL);

    -- Rows are appended at the end and found by the index: many tasks that grow at once
    -- then dirty few pages a commit.
    CREATE TABLE events (
        task INTEGER NOT NULL REFERENCES tasks,
        seq INTEGER NOT NULL,
        body BLOB NOT NULL
    );
    CREATE UNIQUE INDEX events_of_task ON events(task, seq);

    CREATE TABLE spend (
        batch INTEGER NOT NULL REFERENCES batches,
        day INTEGER NOT NULL,               -- since 1970-01-01, UTC
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        purpose TEXT NOT NULL,
        calls INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        cached_input_tokens INTEGER NOT NULL,
        cache_write_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        estimated_calls INTEGER NOT NULL,
        unpriced_calls INTEGER NOT NULL,
        input_usd REAL NOT NULL,
        output_usd REAL NOT NULL,
        unsettled_calls INTEGER NOT NULL,
        unsettled_usd REAL NOT NULL,
        PRIMARY KEY (batch, day, provider, model, purpose)
    ) WITHOUT ROWID;
    CREATE INDEX spend_by_day ON spend(day);
    """,
    """
    CREATE TABLE parked (
        scope TEXT NOT NULL,
        name TEXT NOT NULL,
        cause TEXT NOT NULL,
        message TEXT NOT NULL,
        since REAL NOT NULL,
        PRIMARY KEY (scope, name, cause)
    ) WITHOUT ROWID;
    """,
)


def open_writer(path: Path) -> sqlite3.Connection:
    """Return the one writing connection; create or migrate the file where that is needed.

    Raises ``NewerStoreError`` for a file of a later version, ``StoreError`` for one that cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Prompts and answers are nobody else's business; SQLite gives its side files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"{path} cannot be opened for writing: {error.strerror}") from error
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        _migrate(db, path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except (sqlite3.Error, StoreError) as error:
        if db:
            db.close()
        raise explain(error, path) from error
    return db


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that can only read. Raises ``StoreError``, ``NewerStoreError``."""
    if not path.exists():
        raise StoreError(f"{path} does not exist; no batchd has worked here yet")
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=5,
        )
        version = _version(db, path)
    except (sqlite3.Error, StoreError) as error:
        if db:
            db.close()
        raise explain(error, path) from error
    if version < len(MIGRATIONS):
        db.close()
        raise StoreError(f"{path} is of an older version; `batchd serve` migrates it")
    return db


def _version(db: sqlite3.Connection, path: Path) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (owner,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and owner != APPLICATION_ID:
        raise StoreError(
            f"{path} is a database of another program; configure another [paths] state"
        )
    if version > len(MIGRATIONS):
        raise NewerStoreError(
            f"{path} was written by a newer batchd (its version is {version}, this program knows "
            f"{len(MIGRATIONS)}); install that one again"
        )
    return int(version)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = _version(db, path)
    if version == len(MIGRATIONS):
        return
    if version:
        _back_up(db, path.with_name(f"{path.name}.v{version}.bak"))
    else:
        # Lets `prune` give room back to the file system; only possible before the first table.
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    steps = "".join(MIGRATIONS[version:])
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {len(MIGRATIONS)};"
    try:
        db.executescript(f"BEGIN IMMEDIATE; {steps} {marks} COMMIT;")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _back_up(db: sqlite3.Connection, target: Path) -> None:
    """Copy the database, whole and durable, to ``target``; an earlier backup is replaced."""
    draft = target.with_name(f".{target.name}.tmp")
    draft.unlink(missing_ok=True)
    copy = sqlite3.connect(draft, isolation_level=None)
    try:
        draft.chmod(0o600)
        db.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    finally:
        copy.close()
    _sync(draft)
    draft.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


#: By SQLite's primary result code: what it means for the user, and the mend.
_MEANING = {
    sqlite3.SQLITE_FULL: "the disk is full; what is written goes on once there is room again",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written; see the kernel's log",
    sqlite3.SQLITE_READONLY: "it cannot be written; check its owner, its mode and the mount",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the owner and mode of it and its directory",
    sqlite3.SQLITE_PERM: "it cannot be opened; check its owner and mode",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; close that one",
}
_DAMAGED = (
    "it is damaged; stop batchd, move it away together with its -wal and -shm, and put a backup in "
    "its place (a .bak beside it, or what `sqlite3 FILE .recover` saves of it)"
)


def explain(error: Exception, path: Path) -> StoreError:
    """Return SQLite's error as one that says what to do."""
    if isinstance(error, StoreError):
        return error
    code = getattr(error, "sqlite_errorcode", None)
    primary = (code or 0) & 0xFF
    if primary in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        meaning = _DAMAGED
    else:
        meaning = _MEANING.get(primary, "it cannot be used")
    return StoreError(f"{path}: {meaning} ({error})")
