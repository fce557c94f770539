"""``Store``: the durable state, as the daemon uses it; and its writing thread: one connection, and
group commit.

Whatever waits is committed in one transaction and acknowledged in one go, so that a sync of
the disk serves many. While one group is committed, the next one gathers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import msgspec

from batchd import events as vocabulary, free_room, trees
from batchd.errors import BatchdError, DamagedStoreError, StoreError
from batchd.events import CallStarted, Event, TaskFinished
from batchd.free_room import NeededRoom
from batchd.records import Ref
from batchd.store import ballast, database_file, operations, witness
from batchd.store.ballast import Ballast
from batchd.store.database_file import NONSENSE, UNREADABLE, explain, open_writer
from batchd.store.queries import StoreReader
from batchd.store.task_transaction import TaskTransaction
from batchd.store.witness import Witness

P = ParamSpec("P")
T = TypeVar("T")


#: For these the ballast is given up where the disk is full.
_URGENT: frozenset[Callable[..., Any]] = frozenset(
    {
        TaskTransaction.finish,
        operations.finish_all,
        operations.suspend,
        operations.requeue,
        operations.park,
        operations.unpark,
        operations.prioritise,
    }
)


class Store:
    """Batches, tasks, events and money, in one SQLite file.

    Only who holds the spool's lock may open one: it creates the file, or migrates it after a
    backup, where that is needed.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Raise ``NewerStoreError`` for a file of a newer batchd,
        ``StoreError`` for one that is no use.
        """
        self.path = path
        db = open_writer(path)
        try:
            operations.interrupted(db)
            self._reader = StoreReader(path)
            #: Counts commits and operations.
            self.writer = StoreWriter(db, path, clock)
        except (sqlite3.Error, *NONSENSE, StoreError, OSError) as error:
            db.close()
            raise explain(error, path) from error

    def close(self) -> None:
        """Make durable what waits, and let go of the file. What is called later is refused."""
        self._reader.close()
        self.writer.close()

    def read(
        self,
        query: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what a query says of what is durable. Raises ``StoreError``."""
        return self._reader.read(query, *args, **kwargs)

    async def write(
        self,
        work: Callable[Concatenate[TaskTransaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Carry out an operation, and return what it returns: that is durable; any number of
        operations share a sync of the disk.

        Raises what the operation does, and ``StoreError`` where the disk is full or broken: nothing
        of it is stored then, and it can be made again; ``ValueError`` for what no correct caller
        asks for, as for a task that does not exist.
        """
        urgent = work in _URGENT
        return await self.writer.submit(lambda j: work(j, *args, **kwargs), urgent=urgent)

    async def record(
        self,
        ref: Ref,
        attempt: int,
        seq: int,
        events: Sequence[msgspec.Raw],
        call: CallStarted | None = None,
        *,
        urgent: bool = False,
    ) -> list[Event]:
        """Append events, the first numbered ``seq``, and ``call`` behind them; return the events,
        decoded.

        ``urgent``: the task is to end; one that ends always is. Events that are stored already, as
        they are, are passed over. Raises ``StaleAttemptError`` where the attempt is not the current
        one, numbers are missing, the task has ended, or other events have these numbers;
        ``ValueError`` for what is no event.
        """
        bodies = [bytes(event) for event in events]
        try:
            decoded = [vocabulary.decode(body) for body in bodies]
        except (msgspec.MsgspecError, KeyError) as error:
            raise ValueError(f"not an event: {error}") from error
        urgent = urgent or any(isinstance(event, TaskFinished) for event in decoded)
        added = [call] if call else []
        every = [*bodies, *map(vocabulary.encode, added)]
        await self.writer.submit(
            lambda j: j.append(ref, attempt, seq, every, [*decoded, *added]), urgent=urgent
        )
        return decoded

    async def look(self) -> None:
        """Raise ``DamagedStoreError`` where the file was deleted,
        moved or exchanged since it was opened.
        """
        if not self.writer.presence.holds():
            # The writing thread finds the same, and saves what can be saved.
            await self.writer.submit(lambda _journal: None)

    async def ready(self, needed: NeededRoom | None = free_room.STATE) -> None:
        """Return if what is written now can be expected to become durable.

        ``needed``: the room that the disk must have; None: what is urgent needs none,
        for there may be ballast.

        Raises ``StoreError``, and ``OSError``, ``NoRoomError`` with the fix, where it has not.
        """
        if needed is None:
            await self.writer.submit(operations.touch, urgent=True)
            return
        folder = self.path.parent
        await asyncio.to_thread(free_room.insist, str(folder), needed)
        try:
            # A quota shows in a trial alone; a single page may find a place where no more does.
            await asyncio.to_thread(database_file.reserve, folder, needed.size)
        except OSError as error:
            raise StoreError(f"{self.path}: there is no room beside it ({error})") from error
        await self.write(operations.touch)


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
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Job(work, future, urgent))
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
        return None if self._ballast.whole else ballast.LAY_AGAIN_S

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
                room += ballast.PIECE_BYTES
                urgent = group[0].urgent and ballast.lacks_room(error)
                if urgent and room <= ballast.BALLAST_BYTES and self._ballast.make_room(room):
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
    """Wake all who wait, on the one loop that they wait on, with one call: waking a loop costs more
    than a future.
    """
    with contextlib.suppress(RuntimeError):  # It is closed: no caller waits any more.
        outcomes[0][0].future.get_loop().call_soon_threadsafe(_resolve, outcomes)


def _resolve(outcomes: Sequence[_Outcome]) -> None:
    for job, value, error in outcomes:
        if job.future.done():
            continue  # Cancelled: it is durable all the same.
        if error is None:
            job.future.set_result(value)
        else:
            job.future.set_exception(error)


#: How the kernel marks the path of an open file that was deleted.
_DELETED = " (deleted)"


class Presence:
    """The files of an open store, known by their inodes,
    which no other file can get while they are open.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._log = witness.log_of(path)
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
            database_file.copy(self._db, saved)
            if os.path.lexists(self._path):
                if trees.identity(self._log) == self._log_was:
                    self._log.unlink()  # the next start would read it into that other file
                return f"another file is in its place; `batchd restore {saved}` puts what it held there"
            saved.replace(database_file.staged(self._path))
            trees.sync(saved.parent)
        except (sqlite3.Error, OSError) as error:
            return f"what it held could not be saved ({error}): put a backup in its place with `batchd restore BACKUP`"
        return "what it held is saved, and put back at the next start: start batchd again"
