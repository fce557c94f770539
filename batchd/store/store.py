"""``Store``: the durable state, as the daemon uses it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from batchd import events as vocabulary, free_room
from batchd.errors import StoreError
from batchd.events import CallStarted, Event, TaskFinished
from batchd.free_room import NeededRoom
from batchd.records import Ref
from batchd.store import copies, operations
from batchd.store.database_file import NONSENSE, explain, open_writer
from batchd.store.reader import StoreReader
from batchd.store.task_transaction import TaskTransaction
from batchd.store.writer import StoreWriter

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
            await asyncio.to_thread(copies.reserve, folder, needed.size)
        except OSError as error:
            raise StoreError(f"{self.path}: there is no room beside it ({error})") from error
        await self.write(operations.touch)
