"""``Store``: the durable state, as the daemon uses it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from batchd import events as vocabulary, free_room
from batchd.errors import Problem, StoreError
from batchd.events import CallStarted, Event, TaskFinished
from batchd.free_room import NeededRoom
from batchd.records import Batch, Parking, Ref, Task
from batchd.store import copies, lookups, operations
from batchd.store.database_file import NONSENSE, explain, open_writer
from batchd.store.reader import OfSource, ReadConnection, StoreReader, asks
from batchd.store.rows import (
    SpentMoney,
)
from batchd.store.task_transaction import TaskTransaction
from batchd.store.writer import StoreWriter

P = ParamSpec("P")
T = TypeVar("T")

_DAY_S = 86400


def writes(
    work: Callable[Concatenate[TaskTransaction, P], T], *, urgent: bool = False
) -> Callable[Concatenate[Store, P], Coroutine[None, None, T]]:
    """Return an operation as a method.

    ``urgent``: where the disk is full, the ballast is given up for it.
    """

    async def method(self: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.writer.submit(lambda j: work(j, *args, **kwargs), urgent=urgent)

    return method


class Store(OfSource):
    """Batches, tasks, events and money, in one SQLite file.

    What is awaited is durable when it returns; any number of calls share a sync of the disk.
    Each raises ``StoreError`` where the disk is full or broken: nothing of the call is stored
    then, and it can be made again; ``ValueError`` for what no correct caller asks for, as for a
    task that does not exist. What is not awaited reads what is durable.

    Only who holds the spool's lock may open one.
    """

    #: Each raises ``StoreError``.
    prunable = asks(lookups.prunable)
    restore = asks(lookups.restore)
    used = asks(lookups.used)
    tasks = asks(lookups.tasks)
    unfinished = asks(lookups.unfinished)
    claimed = asks(lookups.claimed)
    unended_run = asks(lookups.unended_run)
    batch = asks(lookups.find_batch)
    problems = asks(lookups.problems)
    task = asks(lookups.find_task)
    unbegun = asks(operations.unbegun)
    ends = asks(operations.ends)
    events = asks(lookups.events)
    refused = asks(lookups.refused)
    left_at = asks(lookups.left_at)
    task_money = asks(lookups.task_money)
    batch_money = asks(lookups.batch_money)
    notices = asks(lookups.notices)

    #: Each makes its change durable before it returns, and raises what its operation does.
    dispatch = writes(operations.dispatch)
    finish = writes(TaskTransaction.finish, urgent=True)
    suspend = writes(operations.suspend, urgent=True)
    requeue = writes(operations.requeue, urgent=True)
    worker_lost = writes(operations.worker_lost)
    refuse = writes(operations.refuse)
    unpark = writes(operations.unpark, urgent=True)
    published = writes(operations.published)
    published_all = writes(operations.published_all)
    batch_published = writes(operations.batch_published)
    keep_notices = writes(operations.keep_notices)
    try_notices = writes(operations.try_notices)
    drop_notices = writes(operations.drop_notices)
    drop_others = writes(operations.drop_others)

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        db = open_writer(path)
        try:
            operations.interrupted(db)
            self._source = ReadConnection(path)
            #: Counts commits and operations.
            self.writer = StoreWriter(db, path, clock)
        except (sqlite3.Error, *NONSENSE, StoreError, OSError) as error:
            db.close()
            raise explain(error, path) from error

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Store:
        """Open the store; create the file, or migrate it after a backup, where that is needed.

        Raises ``NewerStoreError`` for a file of a newer batchd,
        ``StoreError`` for one that is no use.
        """
        return cls(path, clock=clock)

    def close(self) -> None:
        """Make durable what waits, and let go of the file. What is called later is refused."""
        self._source.close()
        self.writer.close()

    async def look(self) -> None:
        """Raise ``DamagedStoreError`` where the file was deleted,
        moved or exchanged since it was opened.
        """
        if not self.writer.presence.holds():
            # The writing thread finds the same, and saves what can be saved.
            await self._do(lambda _journal: None)

    async def ready(self, needed: NeededRoom | None = free_room.STATE) -> None:
        """Return if what is written now can be expected to become durable.

        ``needed``: the room that the disk must have; None: what is urgent needs none,
        for there may be ballast.

        Raises ``StoreError``, and ``OSError``, ``NoRoomError`` with the fix, where it has not.
        """
        if needed is None:
            await self._do(operations.touch, urgent=True)
            return
        folder = self._path.parent
        await asyncio.to_thread(free_room.insist, str(folder), needed)
        try:
            # A quota shows in a trial alone; a single page may find a place where no more does.
            await asyncio.to_thread(copies.reserve, folder, needed.size)
        except OSError as error:
            raise StoreError(f"{self._path}: there is no room beside it ({error})") from error
        await self._do(operations.touch)

    async def add_batch(
        self, batch: Batch, tasks: Sequence[Task], *, check: operations.Check = operations.wanted
    ) -> Batch:
        """Store a batch; return it as it is stored.

        A claim that is known already, from an earlier try, changes nothing and returns what is
        stored. Raises ``UsedNameError`` where another batch has its name.
        """
        work = partial(operations.add_batch, batch=batch, tasks=tuple(tasks))
        return await self._do(operations.checked(check, work))

    async def reject(self, batch: Batch, problems: Sequence[Problem]) -> Batch:
        """Store a refused file as a finished batch without tasks;
        claims and errors as in ``add_batch``.
        """
        return await self._do(
            partial(
                operations.add_batch,
                batch=batch,
                tasks=(),
                problems=tuple(problems),
            )
        )

    async def record(
        self,
        ref: Ref,
        attempt: int,
        seq: int,
        events: Sequence[msgspec.Raw],
        *,
        urgent: bool = False,
    ) -> list[Event]:
        """Append events, the first numbered ``seq``; return them decoded.

        ``urgent``: the task is to end; one that ends always is. Events that are stored already, as
        they are, are passed over. Raises ``StaleAttemptError`` where the attempt is not the current
        one, numbers are missing, the task has ended, or other events have these numbers;
        ``ValueError`` for what is no event.
        """
        bodies, decoded = _decode(events)
        urgent = urgent or any(isinstance(event, TaskFinished) for event in decoded)
        await self._append(ref, attempt, seq, bodies, decoded, urgent=urgent)
        return decoded

    async def ask(
        self, ref: Ref, attempt: int, seq: int, events: Sequence[msgspec.Raw], call: CallStarted
    ) -> list[Event]:
        """``record``, and ``call`` behind it, in one; return the events without the call."""
        bodies, decoded = _decode(events)
        await self._append(ref, attempt, seq, [*bodies, vocabulary.encode(call)], [*decoded, call])
        return decoded

    async def finish_all(
        self,
        ends: Sequence[tuple[Ref, TaskFinished]],
        *,
        check: operations.Check = operations.wanted,
    ) -> list[bool]:
        """Do what ``finish`` does with ``attempt`` None, for many tasks in one transaction."""
        work = operations.checked(check, partial(operations.finish_all, found=ends))
        return await self._do(work, urgent=True)

    async def park(self, parking: Parking, *, check: operations.Check = operations.wanted) -> None:
        """Note that something waits;
        one that does so already for that cause keeps its beginning.
        """
        work = operations.checked(check, partial(operations.park, parking=parking))
        await self._do(work, urgent=True)

    async def prioritise(
        self,
        refs: Sequence[Ref],
        new: Callable[[int], int],
        *,
        check: operations.Check = operations.wanted,
    ) -> list[int]:
        """Give tasks another priority, made of their own; return it of each."""
        work = partial(operations.prioritise, refs=tuple(refs), new=new)
        return await self._do(operations.checked(check, work), urgent=True)

    async def prune_before(self, before: float) -> None:
        """Drop events and task texts of batches published at ``before`` or earlier.

        Statuses, tokens and money stay.
        It goes in small steps, between which others get their turn.
        """
        while await self._do(partial(operations.prune, before=before)):
            pass

    def reading(self) -> StoreReader:
        """Return a reader for another thread, which closes it."""
        return StoreReader(self._path)

    def day_money(self, at: float) -> SpentMoney:
        """Return what was spent on the day, in UTC, of the time ``at``."""
        return self._source.read(lookups.day_money, int(at // _DAY_S))

    def spent_on(self, day: int) -> float:
        """Return what was spent on a day, in days since 1970-01-01 in UTC;
        what may have been paid counts.
        """
        return self._source.read(lookups.day_money, day).total

    async def _append(
        self,
        ref: Ref,
        attempt: int,
        seq: int,
        bodies: Sequence[bytes],
        events: Sequence[Event],
        *,
        urgent: bool = False,
    ) -> None:
        await self._do(
            lambda journal: journal.append(ref, attempt, seq, bodies, events), urgent=urgent
        )

    async def _do(self, work: Callable[[TaskTransaction], T], *, urgent: bool = False) -> T:
        return await self.writer.submit(work, urgent=urgent)


def _decode(events: Sequence[msgspec.Raw]) -> tuple[list[bytes], list[Event]]:
    bodies = [bytes(event) for event in events]
    try:
        return bodies, [vocabulary.decode(body) for body in bodies]
    except (msgspec.MsgspecError, KeyError) as error:
        raise ValueError(f"not an event: {error}") from error
