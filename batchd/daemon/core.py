"""What the daemon's parts share: the rooms below, and the running tasks of the loop."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from batchd.config import Config
from batchd.control import Trouble
from batchd.daemon.finisher import Finisher
from batchd.daemon.listener import Listeners
from batchd.daemon.troubles import Place, Troubles, refused
from batchd.errors import DamagedStoreError, NotPossibleError, StaleAttemptError, StoreError
from batchd.governor import Governor
from batchd.lifecycle import Input, Lifecycle
from batchd.log import Action, get_logger
from batchd.pool.disks import Disks, silent
from batchd.pricing import Prices
from batchd.records import Batch
from batchd.spool import outbox
from batchd.store import Refused, Store

T = TypeVar("T")

#: The pause after the disk refused something.
TROUBLE_S = 1.0
#: And where it goes on refusing it: a thousand files may wait for months.
_LONGEST_PAUSE_S = 15.0
#: What does not answer for so long is reported; a disk under load may take seconds.
HANGS_S = 20.0
#: How long an outbox that has answered counts as one that answers.
_REACHED_S = 1.0


@dataclass(slots=True, eq=False)
class Core:
    """The rooms that the daemon joins."""

    config: Config
    prices: Prices
    store: Store
    governor: Governor
    listeners: Listeners
    #: The threads of each outbox.
    disks: Disks
    #: They have their turn before a batch's summary is written.
    finishers: Sequence[Finisher] = ()
    #: Where each task stands.
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    log: Any = field(default_factory=get_logger)
    troubles: Troubles = field(init=False)
    #: What models were seen to refuse, by model and lesson.
    refused: dict[tuple[str, str], Refused] = field(default_factory=dict)
    #: Nothing new is begun.
    closing: bool = False
    #: Set where a slot or a task may have become free.
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    #: Done when a part broke: a bug, which ends the daemon.
    broken: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    #: When an outbox has answered.
    _reached: dict[str, float] = field(default_factory=dict)
    #: Which ones are asked whether they do.
    _reaching: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _endless: set[asyncio.Task[None]] = field(default_factory=set)
    #: Set when something that was spawned has ended.
    _one_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.troubles = Troubles(self.log, ended=self.wake)

    def wake(self) -> None:
        """Have it be looked at soon what can start."""
        self.woken.set()

    def note(self, given: Input) -> None:
        """Tell the lifecycle what has happened to a task."""
        self.lifecycle.take(given)

    def spawn(
        self, work: Coroutine[Any, Any, None], *, endless: bool = False
    ) -> asyncio.Task[None]:
        """Run ``work`` beside everything else. ``endless``: no one waits for its end."""
        task = asyncio.get_running_loop().create_task(work)
        (self._endless if endless else self._tasks).add(task)
        task.add_done_callback(self._ended)
        return task

    async def durable(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write to the store, again and again where it cannot: what waits is kept.

        Raises ``StaleAttemptError``, and ``DamagedStoreError``, which no waiting repairs.
        """
        with self.troubles.trying(Action.STORE_TROUBLE) as tries:
            while True:
                try:
                    return await write()
                except (StaleAttemptError, DamagedStoreError):
                    raise
                except StoreError as error:
                    tries.failed(error)
                    await asyncio.sleep(TROUBLE_S)

    async def ready(self, *, urgent: bool = False) -> None:
        """Return if an order can be carried out: one that waits for a disk would surprise who has given up on it.

        ``urgent``: on a full disk, too, as long as the store has kept room. Raises ``NotPossibleError``.
        """
        await self.ordered(partial(self.store.ready, urgent=urgent))

    async def ordered(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write what an order brings about, once: where a disk refuses it, so does this, at once.

        Raises ``NotPossibleError``, with the cause and the fix; ``StaleAttemptError`` and ``DamagedStoreError``
        as ``durable`` does.
        """
        try:
            return await write()
        except (StaleAttemptError, DamagedStoreError):
            raise
        except (StoreError, OSError) as error:
            raise NotPossibleError(f"the order is not carried out: {refused(error)}") from None

    async def on_disk(
        self,
        work: Callable[[], T],
        action: Action = Action.OUTBOX_TROUBLE,
        batch: Batch | None = None,
    ) -> T:
        """Write to the outbox, or read from the inbox, in a thread, again and again where it cannot.

        ``batch``: whose folder it is; others go on where that alone is the trouble.
        """
        if batch is None:
            return await self.patiently(lambda: asyncio.to_thread(work), action)
        return await self.patiently(
            lambda: self._answered(work, batch.outbox), action, lambda: batch
        )

    async def patiently(
        self,
        work: Callable[[], Awaitable[T]],
        action: Action,
        batch: Callable[[], Batch | None] = lambda: None,
    ) -> T:
        """Do what a disk, or the system, may refuse, again and again until it does not."""
        pause_s = TROUBLE_S
        with self.troubles.trying(action) as tries:
            while True:
                try:
                    return await work()
                except (OSError, NotPossibleError) as error:
                    tries.failed(error, await self._concerned(batch()))
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def reach(self, folder: str) -> None:
        """Return once an outbox answers at all: a look into one that hangs would hang with it.

        All who ask meanwhile wait for one answer, and go on in their order: files are taken up as they came.
        """
        if time.monotonic() - self._reached.get(folder, -math.inf) <= _REACHED_S:
            return
        if folder not in self._reaching:
            self._reaching[folder] = asyncio.ensure_future(self._reach(folder))
        await asyncio.shield(self._reaching[folder])

    async def _reach(self, folder: str) -> None:
        try:
            await self._answered(partial(os.path.lexists, folder), folder)
            self._reached[folder] = time.monotonic()
        finally:
            del self._reaching[folder]

    async def at_outbox(self, work: Callable[[], T], folder: str) -> T:
        """Do something at an outbox in a thread of that outbox's own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.disks.at(folder), work)

    async def promptly(self, work: Callable[[], T], folder: str) -> T:
        """Do so, or wait no longer than for a disk under load: then it may yet be done. Raises ``OSError``."""
        doing = self.at_outbox(work, folder)
        try:
            async with asyncio.timeout(HANGS_S):
                return await doing
        except TimeoutError:
            raise silent(folder) from None

    async def _answered(self, work: Callable[[], T], folder: str) -> T:
        """Do so, and say when there is no answer for long; what hangs is waited for, for it may yet be done."""
        doing = asyncio.ensure_future(self.at_outbox(work, folder))
        try:
            await asyncio.wait({doing}, timeout=HANGS_S)
            if not doing.done():
                with self.troubles.trying(Action.OUTBOX_TROUBLE) as tries:
                    tries.failed(silent(folder), Place(outbox=folder))
                    await asyncio.wait({doing})
            return await doing
        finally:
            doing.cancel()

    async def _concerned(self, batch: Batch | None) -> Place:
        """Return what it concerns that something of a batch's cannot be written."""
        if batch is None:
            return Place()
        folder = batch.outbox
        whole = await self._answered(partial(outbox.refuses, folder), folder)
        return Place(outbox=folder) if whole else Place(batch=batch.name)

    async def idle(self) -> tuple[Trouble, ...]:
        """Wait until all that was spawned has ended, or only trouble is left: return that. Raises what broke."""
        stuck: tuple[Trouble, ...] = ()
        while self._tasks and not self.broken.done() and not stuck:
            self._one_ended.clear()
            try:
                # Not for each by itself: there may be 100,000.
                async with asyncio.timeout(2 * TROUBLE_S):
                    await self._one_ended.wait()
            except TimeoutError:
                stuck = self.troubles.open
        if self.broken.done():
            self.broken.result()
        return stuck

    async def settle(self) -> None:
        """Wait for all that was spawned, at the end; what still tries is given up."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=TROUBLE_S)
        rest = self._tasks | self._endless
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._endless.discard(task)
        self._one_ended.set()
        if not task.cancelled() and (error := task.exception()) and not self.broken.done():
            self.broken.set_exception(error)
