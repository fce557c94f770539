"""``Store``: the durable state, as the daemon uses it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from batchd import events as vocabulary
from batchd import free_room
from batchd.errors import Problem, StoreError
from batchd.events import CallStarted, Event, TaskFinished
from batchd.free_room import NeededRoom
from batchd.records import Batch, Parking, Ref, Scope, Task, TaskStatus
from batchd.store import copies, lookups, mass, operations
from batchd.store.database_file import NONSENSE, explain, open_writer
from batchd.store.reader import ReadConnection, StoreReader
from batchd.store.rows import (
    BatchTask,
    DispatchedTask,
    LearntRefusal,
    PrunableBatch,
    SpentMoney,
    StoredWork,
    WaitingNotice,
)
from batchd.store.task_transaction import TaskTransaction
from batchd.store.writer import StoreWriter

T = TypeVar("T")

_DAY_S = 86400


class Store:
    """Batches, tasks, events and money, in one SQLite file.

    What is awaited is durable when it returns; any number of calls share a sync of the disk.
    Each raises ``StoreError`` where the disk is full or broken: nothing of the call is stored
    then, and it can be made again; ``ValueError`` for what no correct caller asks for, as for a
    task that does not exist. What is not awaited reads what is durable.

    Only who holds the spool's lock may open one.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._path = path
        db = open_writer(path)
        try:
            operations.interrupted(db)
            self._source = ReadConnection(path)
            #: Counts commits and operations.
            self.writer = StoreWriter(db, path)
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

    async def dispatch(self, ref: Ref, worker: str = "") -> DispatchedTask:
        """Give a task to a worker: from now on only the attempt that this returns may record.

        Raises ``StaleAttemptError`` for a task that has ended.
        """
        return await self._do(
            partial(operations.dispatch, ref=ref, worker=worker, now=self._clock())
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

    async def finish(self, ref: Ref, event: TaskFinished, *, attempt: int | None) -> bool:
        """Store a task's end; return False, and store nothing, if it has one.

        ``attempt`` None: the daemon itself ends it, whatever worker has it.
        Raises ``StaleAttemptError`` where the attempt is not the current one.
        """
        return await self._do(lambda journal: journal.finish(ref, event, attempt), urgent=True)

    async def finish_all(
        self,
        ends: Sequence[tuple[Ref, TaskFinished]],
        *,
        check: operations.Check = operations.wanted,
    ) -> list[bool]:
        """Do what ``finish`` does with ``attempt`` None, for many tasks in one transaction."""
        work = operations.checked(check, partial(mass.finish, found=ends))
        return await self._do(work, urgent=True)

    async def suspend(
        self,
        ref: Ref,
        attempt: int | None,
        status: TaskStatus,
        message: str = "",
        *,
        left: bool = False,
    ) -> None:
        """Note that a task waits, as ``queued`` or ``parked``, and why.

        ``left``: a worker of another machine may still be at it, which the next daemon has to know.
        ``attempt`` None: the daemon's own word, also on a task that no worker has.
        Raises ``StaleAttemptError`` where the attempt is not the current one,
        or the task has ended.
        """
        await self._do(
            partial(
                operations.suspend,
                ref=ref,
                attempt=attempt,
                status=status,
                message=message,
                left=left,
                now=self._clock(),
            ),
            urgent=True,
        )

    async def requeue(self, refs: Sequence[Ref]) -> None:
        """Show tasks as queued that were parked;
        those that are not, any more, stay what they are.
        """
        work = partial(operations.requeue, refs=tuple(refs), now=self._clock())
        await self._do(work, urgent=True)

    async def worker_lost(self, ref: Ref, attempt: int, *, alone: bool) -> int:
        """Queue a task again whose worker died; return how many workers died of it so far.

        ``alone``: nothing else was at work in it. Of deaths that others may have caused only the
        first counts, which makes it a suspect.
        """
        return await self._do(
            partial(
                operations.worker_lost, ref=ref, attempt=attempt, alone=alone, now=self._clock()
            )
        )

    async def park(self, parking: Parking, *, check: operations.Check = operations.wanted) -> None:
        """Note that something waits;
        one that does so already for that cause keeps its beginning.
        """
        work = operations.checked(check, partial(operations.park, parking=parking))
        await self._do(work, urgent=True)

    async def refuse(self, refused: LearntRefusal) -> None:
        """Note what a model refuses."""
        await self._do(partial(operations.refuse, refused=refused))

    async def keep_notices(self, notices: Sequence[WaitingNotice]) -> None:
        """Note what is to reach receivers."""
        await self._do(partial(operations.keep_notices, notices=notices))

    async def try_notices(self, receiver: str, ids: Sequence[str], message: str) -> None:
        """Note in which message it is tried."""
        work = partial(operations.try_notices, receiver=receiver, ids=ids, message=message)
        await self._do(work)

    async def drop_notices(self, receiver: str, message: str) -> None:
        """Forget what a message held."""
        await self._do(partial(operations.drop_notices, receiver=receiver, message=message))

    async def drop_others(self, receivers: Sequence[str]) -> dict[str, int]:
        """Forget what waits for others than these; return how much that was, by name."""
        return await self._do(partial(operations.drop_others, receivers=receivers))

    def notices(self, receiver: str) -> list[WaitingNotice]:
        """Return what waits for a receiver, what was tried first."""
        return self._source.read(lookups.notices, receiver)

    async def unpark(self, scope: Scope, name: str) -> None:
        """Note that something waits no longer, for whatever cause."""
        await self._do(partial(operations.unpark, scope=scope, name=name), urgent=True)

    async def prioritise(
        self, refs: Sequence[Ref], priority: int, *, check: operations.Check = operations.wanted
    ) -> None:
        """Give tasks another priority."""
        work = partial(operations.prioritise, refs=tuple(refs), priority=priority)
        await self._do(operations.checked(check, work), urgent=True)

    async def published(self, ref: Ref) -> None:
        """Note that a task's result lies in the outbox."""
        await self._do(partial(operations.published, ref=ref))

    async def published_all(self, batch: str, names: Sequence[str]) -> None:
        """Note that results of many tasks of a batch lie in the outbox."""
        await self._do(partial(mass.published, batch=batch, names=names))

    async def batch_published(self, name: str) -> None:
        """Note that a batch's summary lies in the outbox, the last of its files."""
        await self._do(partial(operations.batch_published, name=name, now=self._clock()))

    async def prune_before(self, before: float) -> None:
        """Drop events and task texts of batches published at ``before`` or earlier.

        Statuses, tokens and money stay.
        It goes in small steps, between which others get their turn.
        """
        while await self._do(partial(operations.prune, before=before)):
            pass

    def prunable(self, before: float) -> tuple[PrunableBatch, ...]:
        """Return the batches published at ``before`` or earlier, and what is kept of them."""
        return self._source.read(lookups.prunable, before)

    def restore(self) -> StoredWork:
        """Return everything that a daemon that starts must know."""
        return self._source.read(lookups.restore)

    def used(self, name: str) -> bool:
        """Return whether a batch ever had this name."""
        return self._source.read(lookups.used, name)

    def tasks(self, batch: str) -> Mapping[str, BatchTask]:
        """Return all tasks of a batch by their ids, those that have ended too, in order."""
        return self._source.read(lookups.tasks, batch)

    def unfinished(self, batch: str) -> int:
        """Return how many tasks of a batch have not ended."""
        return self._source.read(lookups.unfinished, batch)

    def claimed(self, claim: str) -> Batch | None:
        """Return the batch of a claim; None for a claim that was never stored."""
        return self._source.read(lookups.claimed, claim)

    def batch(self, name: str) -> Batch:
        """Return a batch."""
        return self._source.read(lookups.find_batch, name)

    def problems(self, name: str) -> tuple[Problem, ...]:
        """Return why the file of a batch was refused; empty where it was not."""
        return self._source.read(lookups.problems, name)

    def task(self, ref: Ref) -> Task:
        """Return a task as its file asked for it; not once it was pruned."""
        return self._source.read(lookups.find_task, ref)

    def unbegun(self, batch: str, names: Sequence[str]) -> list[Task]:
        """Return those of some tasks of a batch that have no event yet,
        without their secrets' values.
        """
        return self._source.read(mass.unbegun, batch, names)

    def ends(self, batch: str, names: Sequence[str]) -> list[tuple[Ref, TaskFinished]]:
        """Return the ends of those of some tasks of a batch that have ended."""
        return self._source.read(mass.ends, batch, names)

    def events(self, ref: Ref, start: int = 0) -> list[Event]:
        """Return a task's events from number ``start`` on; none once it was pruned."""
        return self._source.read(lookups.events, ref, start)

    def refused(self) -> tuple[LearntRefusal, ...]:
        """Return what models were seen to refuse."""
        return self._source.read(lookups.refused)

    def reading(self) -> StoreReader:
        """Return a reader for another thread, which closes it."""
        return StoreReader(self._path)

    def left_at(self) -> dict[Ref, str]:
        """Return the workers of other machines that an earlier daemon left tasks at."""
        return self._source.read(lookups.left_at)

    def task_money(self, ref: Ref) -> SpentMoney:
        """Return what one task has spent."""
        return self._source.read(lookups.task_money, ref)

    def batch_money(self, name: str) -> SpentMoney:
        """Return what one batch has spent."""
        return self._source.read(lookups.batch_money, name)

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
