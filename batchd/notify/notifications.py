"""The listener for notifications. Its calls only put something into a queue: what happened is
stored for each receiver that wants it, and a courier for each brings it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import msgspec

from batchd import decoders
from batchd.config import Config
from batchd.daemon.listeners import Listener, StartReport, StatusDesk
from batchd.errors import DeliveryError, Problem, StoreError
from batchd.log import Action, get_logger
from batchd.notify import channels, messages
from batchd.notify.channels import ReceiverTarget
from batchd.notify.format import EventV1, NotificationV1
from batchd.pauses import aside, doubled
from batchd.records import Batch, Parking
from batchd.spool.ulid import ulid
from batchd.store import lookups, operations
from batchd.store.rows import WaitingNotice
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

P = ParamSpec("P")
T = TypeVar("T")

#: Makes an event: in a thread, for a summary may be large.
Made: TypeAlias = Callable[[], EventV1]

#: What may wait to be stored: only a disk that is full holds it up.
_MAX_QUEUED = 1_000
#: The pause where the store takes nothing.
_STORE_AGAIN_S = 1.0
#: What messages under way get at the end, in seconds.
_GRACE_S = 2.0
#: What happens within so many seconds comes in one message.
_GATHER_S = 2.0
_FIRST_BACKOFF_S = 2.0
_LONGEST_BACKOFF_S = 900.0
_MINUTE_S = 60.0
#: A command gets each event by itself, unless more than these wait.
_MOST_APART = 1000


class Notifications(Listener):
    """The notifications to the receivers in ``[notify]``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store: Store | None = None
        #: What happened, and configurations that count from then on.
        self._happened: asyncio.Queue[Made | Config] = asyncio.Queue()
        self._full = False
        self._couriers: dict[str, Courier] = {}
        self._work: asyncio.Task[None] | None = None

    def opened(self, desk: StatusDesk, store: Store) -> None:
        """Keep what waits in the store."""
        self._store = store

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Notify of it."""
        self._notify(partial(messages.batch_ended, batch, summary, time.time()))

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Notify of it."""
        self._notify(partial(messages.batch_refused, batch, tuple(problems), time.time()))

    def budget_reached(self, batch: str, message: str) -> None:
        """Notify of it."""
        self._notify(partial(messages.budget_spent, batch, message, time.time()))

    def provider_parked(self, parking: Parking, fix: str) -> None:
        """Notify of it."""
        self._notify(partial(messages.provider_parked, parking, fix, time.time()))

    def provider_resumed(self, parking: Parking) -> None:
        """Notify of it."""
        self._notify(partial(messages.provider_resumed, parking, time.time()))

    def daemon_started(self, start: StartReport) -> None:
        """Begin to deliver, what the last daemon left too: the spool is ours alone by now."""
        assert self._store is not None, "the daemon has opened its spool"
        self._notify(partial(messages.daemon_started, start, time.time()))
        self._work = _guarded(self._deliver(self._config, self._store))

    def config_changed(self, config: Config) -> None:
        """Take the receivers from it, for what happens from now on."""
        self._config = config
        self._happened.put_nowait(config)

    async def close(self) -> None:
        """Deliver for a moment yet, then stop; what is left is in the store."""
        if self._work is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._happened.join()
                await asyncio.gather(*(courier.settle() for courier in self._couriers.values()))
        tasks = [self._work, *(courier.work for courier in self._couriers.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _notify(self, made: Made) -> None:
        if not self._config.notify:
            return
        full, self._full = self._full, self._happened.qsize() >= _MAX_QUEUED
        if not self._full:
            self._happened.put_nowait(made)
        elif not full:
            why = "too many notifications wait; batchd sends none of new events"
            get_logger().error(Action.NOTIFY_FAILED, message=why)

    async def _deliver(self, config: Config, store: Store) -> None:
        """Store what happens, for ever."""
        left = Path(config.paths.state, "notify")
        rows = await aside(lambda: [*_left_in_files(left)], "notify")
        if rows:
            await _stored(store, operations.keep_notices, rows)
        await aside(partial(shutil.rmtree, left, ignore_errors=True), "notify")
        await self._take(config, store)
        while True:
            made = await self._happened.get()
            try:
                if isinstance(made, Config):
                    await self._take(made, store)
                else:
                    await self._keep(await aside(made, "notify"), store)
            except Exception:  # noqa: BLE001 (a bug costs this message, and no other)
                why = "a notification of an event cannot be made"
                get_logger().exception(Action.NOTIFY_FAILED, message=why)
            finally:
                self._happened.task_done()

    async def _keep(self, event: EventV1, store: Store) -> None:
        """Store an event for each receiver that wants it."""
        wanting = [
            each for each in self._couriers.values() if event.event in each.target.settings.on
        ]
        if not wanting:
            return
        text = msgspec.json.encode(messages.clean(event, wanting[0].target.masker)).decode()
        rows = [WaitingNotice(each.target.name, event.id, text) for each in wanting]
        await _stored(store, operations.keep_notices, rows)
        for courier in wanting:
            courier.wake()

    async def _take(self, config: Config, store: Store) -> None:
        """Make a courier for each receiver; one whose receiver has changed begins again,
        with what waits.
        """
        wanted = {target.name: target for target in channels.targets(config)}
        for name, courier in tuple(self._couriers.items()):
            if courier.work.done() or not courier.serves(wanted.get(name)):
                courier.work.cancel()
                del self._couriers[name]
        for name, count in (await _stored(store, operations.drop_others, [*wanted])).items():
            why = f"[notify.{name}] is gone: {count:,} messages to it are dropped"
            get_logger().warning(Action.NOTIFY_FAILED, receiver=name, message=why)
        for name, target in wanted.items():
            if name not in self._couriers:
                self._couriers[name] = Courier(target, store)


class Courier:
    """The courier of one receiver: brings what waits for it, one message after another,
    at a bounded rate, and tries again until it arrives.
    """

    def __init__(self, target: ReceiverTarget, store: Store) -> None:
        self.target = target
        self._store = store
        self._log = get_logger(receiver=target.name)
        #: When messages were first tried, those of the last minute.
        self._sent: deque[float] = deque()
        #: Set where something may wait.
        self._came = asyncio.Event()
        #: Set where nothing waits, or nothing can be done at this time.
        self._settled = asyncio.Event()
        #: Cuts waits short.
        self._hurry = asyncio.Event()
        self.work = _guarded(self._run())

    def serves(self, target: ReceiverTarget | None) -> bool:
        """Return whether it is the courier of a receiver; it tries again at once, then."""
        self._hurry.set()
        return target == self.target

    def wake(self) -> None:
        """Say that something waits."""
        self._settled.clear()
        self._came.set()

    async def settle(self) -> None:
        """Gather no more, and return when nothing waits, or nothing can be done about it now."""
        self._hurry.set()
        await self._settled.wait()

    async def _run(self) -> None:
        name = self.target.name
        while True:
            self._came.clear()
            if not self._store.read(lookups.notices, name):
                self._settled.set()
                await self._came.wait()
            # Programs look at one event at a time: what came together would be one batch of
            # several to them.
            if self.target.settings.kind != "command":
                await self._sleep(_GATHER_S)
            await self._turn()
            message = await self._next()
            await self._bring(message)
            await _stored(self._store, operations.drop_notices, name, message.id)

    async def _next(self) -> NotificationV1:
        """Return the message that is tried next: one that was tried before is the same one."""
        waiting = self._store.read(lookups.notices, self.target.name)
        own = waiting[0].message
        if own:
            waiting = [notice for notice in waiting if notice.message == own]
        else:
            if self.target.settings.kind == "command" and len(waiting) <= _MOST_APART:
                del waiting[1:]
            own = ulid()
            ids = [notice.id for notice in waiting]
            await _stored(self._store, operations.try_notices, self.target.name, ids, own)
        return messages.compose([decoders.decode(notice.event, EventV1) for notice in waiting], own)

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or not so long where there is reason to hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        self._hurry.clear()

    async def _turn(self) -> None:
        """Wait until another message may go."""
        clock, most = asyncio.get_running_loop().time, self.target.settings.max_per_minute
        while self._sent and self._sent[0] + _MINUTE_S <= clock():
            self._sent.popleft()
        if len(self._sent) >= most:
            await asyncio.sleep(self._sent.popleft() + _MINUTE_S - clock())
        self._sent.append(clock())

    async def _bring(self, message: NotificationV1) -> None:
        """Try until it has arrived, or is given up."""
        log = self._log.bind(notification=message.id, subject=message.subject)
        deadline = datetime.fromisoformat(message.at).timestamp() + self.target.settings.give_up_s
        for tries in itertools.count(1):
            try:
                answer = await channels.send(self.target, message)
            except DeliveryError as error:
                if error.final or time.time() >= deadline:
                    name = self.target.name
                    fix = f"batchd gives it up; fix [notify.{name}], then run batchd notify --test {name}"
                    log.error(Action.NOTIFY_FAILED, message=str(error), tries=tries, mend=fix)
                    return
                if tries == 1:
                    log.warning(Action.NOTIFY_FAILED, message=str(error), trying_again=True)
                self._settled.set()
                backoff = doubled(_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, tries - 1)
                backoff *= random.uniform(0.5, 1.0)  # noqa: S311 (it spreads tries, it hides nothing)
                await self._sleep(backoff)
            else:
                log.info(Action.NOTIFIED, answer=answer, tries=tries)
                return


async def _stored(
    store: Store,
    work: Callable[Concatenate[TaskTransaction, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Write to the store, again and again where it cannot: what waits is in memory meanwhile."""
    while True:
        try:
            return await store.write(work, *args, **kwargs)
        except StoreError:  # the daemon says it, and what to do
            await asyncio.sleep(_STORE_AGAIN_S)


def _left_in_files(folder: Path) -> Iterator[WaitingNotice]:
    """Yield what a daemon of version 0.2.0 left, a file each."""
    for path in sorted(folder.glob("*/[!.]*.json")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            message = decoders.decode(path.read_bytes(), NotificationV1)
            own = message.id if path.name.endswith(".tried.json") else ""
            for event in message.events:
                text = msgspec.json.encode(event).decode()
                yield WaitingNotice(path.parent.name, event.id, text, own)


def _guarded(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run something whose end by a bug is logged, and hinders no task."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            get_logger().error(Action.NOTIFY_FAILED, message="a bug", exc_info=error)

    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(ended)
    return task
