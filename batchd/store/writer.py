"""The writing thread: one connection, and group commit.

Whatever waits is committed in one transaction and acknowledged in one go, so that a sync of
the disk serves many. While one group is committed, the next one gathers.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from batchd.errors import BatchdError, StoreError
from batchd.store import ballast
from batchd.store.ballast import Ballast
from batchd.store.database_file import UNREADABLE, explain
from batchd.store.task_transaction import TaskTransaction
from batchd.store.witness import Presence, Witness

T = TypeVar("T")

#: Operations in one transaction at most: a bound on how long the first one waits for the last.
_GROUP = 1000
#: After this long without work, the write-ahead log is emptied.
_IDLE_S = 1.0
#: Transactions between two looks at the ballast.
_LOOK = 64


@dataclass(frozen=True, slots=True)
class _Job:
    """An operation that waits, and who waits for it."""

    work: Callable[[TaskTransaction], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    #: Whether it may use up the room that is kept.
    urgent: bool


#: A job, what it returned, what it raised.
_Outcome: TypeAlias = tuple[_Job, Any, Exception | None]


class StoreWriter:
    """The writer: runs operations on the store's only writing connection, in a thread of its own.

    That connection also makes all checkpoints: SQLite before 3.51.3 can lose commits where two do.
    """

    def __init__(self, db: sqlite3.Connection, path: Path, clock: Callable[[], float]) -> None:
        """Raise ``OSError``."""
        self._db = db
        self._path = path
        self._journal = TaskTransaction(db, clock)
        #: Whether the file is still there:
        #: who deletes it must not do away with what is written after that.
        self.presence = Presence(db, path)
        self._witness = Witness(db, path)
        self._ballast = Ballast(path)
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._ended = False
        #: Whether the write-ahead log may hold something.
        self._logged = True
        #: Transactions, and operations, committed so far.
        self.commits = 0
        self.operations = 0
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[TaskTransaction], T], *, urgent: bool = False
    ) -> asyncio.Future[T]:
        """Queue an operation; the future is done once its transaction is durable, or refused.

        ``urgent``: where the disk is full, the ballast is given up for it. ``work`` must be ready
        to be called twice, the second time on what was before the first. What it raises as
        ``BatchdError`` or ``OSError`` concerns it alone, and it must have written nothing then.
        Raises ``StoreError`` after ``close``.
        """
        if self._closed:
            raise StoreError("the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Job(work, future, loop, urgent))
        return future

    def close(self) -> None:
        """Commit what waits, empty the write-ahead log, and end the thread."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            if group := self._gather():
                _acknowledge(self._commit(group))
            else:
                self._rest()
        self._db.close()
        self.presence.close()
        self._witness.close()

    def _gather(self) -> list[_Job]:
        """Wait for work; return all there is,
        or nothing at the end or after a while without any.
        """
        group: list[_Job] = []
        with contextlib.suppress(Empty):
            job = self._queue.get(timeout=self._pause_s())
            while job is not None:
                group.append(job)
                if len(group) == _GROUP:
                    return group
                job = self._queue.get_nowait()
            self._ended = True
        return group

    def _pause_s(self) -> float | None:
        """Return how long to wait for work at most; None: there is nothing else to do."""
        if self._logged:
            return _IDLE_S
        return None if self._ballast.whole else ballast.AGAIN_S

    def _commit(self, group: Sequence[_Job]) -> list[_Outcome]:
        """Run a group as one transaction; where that fails,
        each of it alone, what is urgent again with more room.

        So an operation that cannot be written, because it is bad or too large for the room left,
        takes no other with it.
        """
        room = 0
        while True:
            try:
                return self._transact(group)
            except Exception as error:  # noqa: BLE001 (the thread's outer edge: whatever it is, the caller gets it, and the thread lives on)
                self._roll_back()
                if len(group) > 1:
                    return [outcome for job in group for outcome in self._commit([job])]
                room += ballast.PIECE
                urgent = group[0].urgent and ballast.refused(error)
                if urgent and room <= ballast.SIZE and self._ballast.make_room(room):
                    continue
                known = isinstance(error, (sqlite3.Error, *UNREADABLE))
                return [(group[0], None, explain(error, self._path) if known else error)]

    def _transact(self, group: Sequence[_Job]) -> list[_Outcome]:
        """Run a group as one transaction, to its commit. Raises what stops it."""
        outcomes: list[_Outcome] = []
        self.presence.check()
        self._db.execute("BEGIN IMMEDIATE")
        for job in group:
            try:
                outcomes.append((job, job.work(self._journal), None))
            except (BatchdError, OSError) as refusal:
                outcomes.append((job, None, refusal))
        self._journal.flush()
        self._db.execute("COMMIT")
        # Before it is acknowledged: after a kill, no more was acknowledged than is noted.
        self._witness.note(self._journal.batches, self._journal.events)
        self._journal.committed()
        self._logged = True
        self.commits += 1
        self.operations += len(group)
        if self.commits % _LOOK == 0:
            self._ballast.lay()
        return outcomes

    def _roll_back(self) -> None:
        self._journal.rolled_back()
        # A full disk may have rolled it back already.
        if self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                # BEGIN will fail from now on, and say why to every caller.
                return

    def _rest(self) -> None:
        """Do what can wait until there is nothing else to do."""
        if self._logged:
            self._checkpoint()
        if not self._ended and self.presence.holds():
            self._ballast.lay()

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the database and cut it to nothing,
        unless a reader is at it.

        SQLite itself does so every 1,000 pages, without cutting.
        """
        if not self.presence.holds():
            return  # The log of a file that is gone may be all that is left.
        try:
            self._db.execute("PRAGMA busy_timeout = 0")
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._logged = bool(busy)
        except sqlite3.Error:
            self._logged = True  # A full disk: nothing is lost, the log stays.
        finally:
            self._db.execute("PRAGMA busy_timeout = 5000")


def _acknowledge(outcomes: Sequence[_Outcome]) -> None:
    """Wake all who wait, with one call for each loop: waking a loop costs more than a future."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, theirs)
        except RuntimeError:
            continue  # The loop is closed: no caller waits any more.


def _resolve(outcomes: Sequence[_Outcome]) -> None:
    for job, value, error in outcomes:
        if job.future.done():
            continue  # Cancelled: it is durable all the same.
        if error is None:
            job.future.set_result(value)
        else:
            job.future.set_exception(error)
