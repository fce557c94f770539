"""The parking lot: what people pause, what is out of order, and what waits for the day's money.

Here it becomes holds of the lifecycle's, and what the store remembers over a restart; and it goes
on once the cause is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from batchd import pauses
from batchd.daemon import main_loop
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.gates import FirstCalls, MoneyWaits
from batchd.daemon.listeners import Listener
from batchd.daemon.publisher import Publisher
from batchd.daemon.writes import DaemonStore
from batchd.errors import BatchdError
from batchd.events import TaskFinished
from batchd.governor import Governor, ParkDecision
from batchd.governor.news import BatchSpent, Closed, GaveUp, HalfOpened, News, Overlong, Parked
from batchd.lifecycle import Lifecycle, is_of
from batchd.lifecycle.effects import End
from batchd.lifecycle.holds import Key
from batchd.lifecycle.trials import Trials
from batchd.log import Action, get_logger
from batchd.records import (
    Batch,
    Cause,
    Endpoint,
    Parking,
    Reason,
    Ref,
    Scope,
    Task,
    TaskStatus,
    TurnFacts,
    untiered,
)
from batchd.store import operations

if TYPE_CHECKING:
    from batchd.catalog import ModelListing

_LOOK_S = 1.0
#: Parkings whose end is noted in one go.
_CHUNK = 1000
#: A provider's list of models that has not come by then is given up, in seconds;
#: the thread that asks for it knows a shorter time.
_LISTED_S = 20.0


@dataclass(slots=True, eq=False, repr=False)
class ParkingLot(Listener):
    """Parks, and lets go on."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _governor: Governor
    _batches: OpenBatches
    _publisher: Publisher
    _attempts: Attempts
    #: Reads the keys of providers again.
    _read_keys: Callable[[], None]
    #: Picks who tries a parked provider.
    trials: Trials = field(init=False)
    #: Who waits for the day's money.
    shortage: MoneyWaits = field(init=False)
    #: What the governor reports: that a provider, a model or a tier fails, is tried, or is back.
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    #: Held over each note in the store, tries included:
    #: on a full disk, a resume must not overtake its pause.
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: Open batches whose money is spent.
    _spent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.trials = Trials(self._lifecycle)
        self.shortage = MoneyWaits(
            self._lifecycle,
            self._governor,
            FirstCalls(self._current, self._store),
            self.park_now,
            self._forget,
        )

    # What people want

    async def park(self, parking: Parking, *, check: Callable[[], None]) -> int:
        """Pause something, durably; return how many tasks that have not ended it concerns.

        ``check``: raises ``BatchdError``
        where that is not wanted any more. Raises ``NotPossibleError``.
        """
        await self._store.order(operations.park, parking, check)
        self._apply(parking)
        get_logger().info(
            Action.PAUSED, scope=parking.scope, name=parking.name, message=parking.message
        )
        return len(self._lifecycle.concerned(parking.scope, parking.name))

    async def resume(self, *wanted: Key) -> int:
        """Let these go on, whatever they wait for; return how many of them were parked.

        A provider or a model that is parked is tried by one call first,
        with its key read again, if there is a task.
        """
        parked, lifted = 0, []
        for key in wanted:
            scope, name = key
            causes = tuple(self._lifecycle.holds.causes(key))
            parked += bool(causes)
            if Cause.BUDGET in causes:
                lifted += self.shortage.try_again(key)
                continue
            outage = [cause for cause in causes if scope.asked and cause.reason]
            if outage:
                self._read_keys()
            if outage and not self._lifecycle.refs(name) and not self.trials.holds_for(name):
                self._governor.outages.close(name)  # no task is left to try it
                outage = []
            elif outage or scope is Scope.PROVIDER:
                self._governor.outages.retry(name)
            if self._lift(key, keep=outage):
                lifted.append(key)
        if lifted:
            await self._forget(*lifted)
        return parked

    def restore(self, parkings: Iterable[Parking], given_back: Sequence[TurnFacts]) -> None:
        """Take up what was parked when the last daemon ended;
        ``given_back``: tasks that had begun, in the order in which they were.
        """
        outages: list[Parking] = []
        over: list[Key] = []
        for parking in parkings:
            if self._over(parking):
                over.append((parking.scope, parking.name))
                continue
            self._apply(parking)
            if parking.scope.asked and parking.cause.reason:
                outages.append(parking)
        # Last, since one task may try each at once: but none that somebody paused as well, and
        # first those that have not tried yet, or the longest ago.
        for parking in outages:
            for each in given_back:
                if is_of(each.model, parking.name):
                    self.trials.hold(parking.name, each.ref)
        for parking in outages:
            self._governor.outages.restore(
                parking.name, parking.cause, parking.message, parking.tried_s
            )
        main_loop.spawn(self._forget(*over))

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Try what is out of order now where a new batch's tasks alone need it:
        no one has waited for its fix.

        What asks to be left alone for a time is.
        """
        for name in self._lifecycle.holds.outages():
            if Cause.LIMITED in self._lifecycle.holds.causes((Scope.of(name), name)):
                continue
            refs = self._lifecycle.refs(name)
            alone = bool(refs) and all(ref.batch == batch.name for ref in refs)
            if alone and not self.trials.holds_for(name):
                self._governor.outages.retry(name)

    # What becomes of attempts

    def task_parked(self, ref: Ref, park: ParkDecision | None) -> None:
        """Queue a task again that is parked. ``park``: what its call met."""
        if park is not None and park.cause is Cause.TIER and self._lifecycle.open(ref):
            self._lifecycle.sell_as(ref, park.name)
            if park.again_s is not None:
                later = asyncio.get_running_loop().call_later
                later(park.again_s, self._ask_anyhow, ref, untiered(park.name))
        model = self._lifecycle.model(ref)
        if park is not None and park.scope is Scope.DAY:
            self.shortage.turned_away(ref, park.message)
        elif (
            park is not None
            and park.scope.asked
            and (park.scope, park.name) in self._lifecycle.holds
        ):
            own = is_of(model, park.name)  # else it comes to it only after a while
            if (park.culprit or not own) and park.again_s is None:
                self.trials.hold(park.name, ref)
        if next(self._lifecycle.why(ref), None) is None:
            main_loop.spawn(self._requeue())

    def _ask_anyhow(self, ref: Ref, model: str) -> None:
        """Let a task go on whose next call need not wait for its tier any longer."""
        if self._lifecycle.open(ref):
            self._lifecycle.sell_as(ref, model)
            main_loop.spawn(self._requeue())
            main_loop.wake()

    def task_left(self, ref: Ref) -> None:
        """Note that no worker has a task any more: if it tried a provider, another one may."""
        if self.trials.left(ref):
            main_loop.wake()

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Forget a task."""
        self.shortage.look()
        self._governor.forget(ref)
        self._ended(Scope.TASK, str(ref))

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Forget a batch."""
        self._spent.discard(batch.name)
        self._ended(Scope.BATCH, batch.name)

    def _batch_spent(self, batch: str, message: str) -> None:
        """Report that the money of a batch is spent, once; its tasks end one by one."""
        if batch not in self._spent:
            self._spent.add(batch)
            main_loop.tell(lambda listener: listener.budget_reached(batch, message))

    # What the governor reports, one after the other

    async def follow(self) -> None:
        """Take the governor's news, for ever."""
        while True:
            self._take(await self.news.get())

    def catch_up(self) -> None:
        """Take what was reported up to now, for who is about to decide."""
        while not self.news.empty():
            self._take(self.news.get_nowait())

    def _take(self, news: News) -> None:
        match news:
            case Parked(name, cause, message):
                self._parked(name, cause, message)
            case HalfOpened(name):
                self._half_opened(name)
            case Closed(name):
                self._closed(name)
            case GaveUp(name, cause, message):
                self._gave_up(name, cause, message)
            case Overlong(model, message):
                get_logger().warning(Action.ANSWER_OVERLONG, model=model, message=message)
            case BatchSpent(batch, message):
                self._batch_spent(batch, message)

    def _parked(self, name: str, cause: Cause, message: str) -> None:
        """Park the tasks of a provider, or of a model, if it is still out of order."""
        if not self._governor.outages.stands(name):
            return
        self.trials.end(name)
        news = cause not in self._lifecycle.holds.causes(
            (Scope.of(name), name)
        )  # else a try has failed
        parking = self._put_out(name, cause, message)
        if cause is Cause.GONE:
            main_loop.spawn(self._explain(name, message, news=news))
        else:
            self._report_parked(parking, news=news)

    async def _explain(self, name: str, message: str, *, news: bool) -> None:
        """Report a model that is gone, with what its provider lists in its place."""
        provider, _, own = name.partition("/")
        listing = None
        # Without a key, a thread or an answer in time there is no list.
        with contextlib.suppress(BatchdError, RuntimeError, TimeoutError):
            endpoint = self._current.config.endpoint(provider)
            async with asyncio.timeout(_LISTED_S):
                listing = await pauses.aside(partial(_listed, endpoint), "models")
        if Cause.GONE in self._lifecycle.holds.causes((Scope.of(name), name)):
            more = listing.instead(provider, own) if listing is not None else ()
            parking = self._put_out(name, Cause.GONE, "; ".join((message, *more)))
            self._report_parked(parking, news=news)

    def _put_out(self, name: str, cause: Cause, message: str) -> Parking:
        """Park a provider, or a model, since it was for whatever cause; return how."""
        scope = Scope.of(name)
        known = self._lifecycle.holds.causes((scope, name))
        parking = Parking(
            scope=scope,
            name=name,
            cause=cause,
            message=message,
            since=min((p.since for c, p in known.items() if c.reason), default=time.time()),
            tried_s=self._governor.outages.tried_s(name),
        )
        self.park_now(parking)
        return parking

    def _report_parked(self, parking: Parking, *, news: bool) -> None:
        """Say what is parked, in the log; ``news``: to all who listen too."""
        name, how = parking.name, _how(parking)
        get_logger().warning(
            Action.MODEL_PARKED if parking.scope is Scope.MODEL else Action.PROVIDER_PARKED,
            **{parking.scope: name},
            cause=parking.cause,
            message=parking.message,
            how_to_go_on=how,
        )
        if news and parking.cause is not Cause.TIER:  # that comes and goes
            main_loop.tell(lambda listener: listener.provider_parked(parking, how))

    def _half_opened(self, name: str) -> None:
        """Let one task try a parked provider, or model, if there is a key to try it with."""
        if (Scope.of(name), name) in self._lifecycle.holds:
            try:
                self._read_keys()
            except BatchdError as error:  # a file may lie where commands would see it by now
                get_logger().error(Action.CONFIG_RELOADED, kept_old=True, message=str(error))
            self.trials.begin(name)
            main_loop.wake()
        self._governor.outages.without_key(name)

    def _closed(self, name: str) -> None:
        """Let the tasks of a provider, or of a model, go on."""
        self.trials.end(name)
        key = (Scope.of(name), name)
        outage = next((p for c, p in self._lifecycle.holds.causes(key).items() if c.reason), None)
        if self._lift(key, keep=(Cause.PAUSED,)):
            main_loop.spawn(self._forget(key))
            if outage is not None and outage.cause is not Cause.TIER:
                main_loop.tell(lambda listener: listener.provider_resumed(outage))

    def _gave_up(self, name: str, cause: Cause, message: str) -> None:
        """End the tasks of a provider, or of a model."""
        self.trials.end(name)
        parked = self._lifecycle.holds.causes((Scope.of(name), name)).get(cause)
        message = parked.message if parked else message  # with what its provider lists
        main_loop.spawn(self._end_all(name, cause.reason or Reason.INTERNAL, message))

    async def _end_all(self, name: str, reason: Reason, message: str) -> None:
        """End every task that waits for a provider, or a model, then forget that it was parked."""
        key = (Scope.of(name), name)
        refs = [*self._lifecycle.refs(name, waiting=True), *self.trials.release(name)]
        refs = [ref for ref in dict.fromkeys(refs) if self._lifecycle.open(ref)]
        ends = (End(ref, TaskStatus.ERROR, reason, message) for ref in refs)
        await self._publisher.give_up(ends)
        self._governor.outages.close(name)
        if self._lift(key, keep=(Cause.PAUSED,)):
            await self._forget(key)

    # What the clock does

    async def watch(self) -> None:
        """Look at the time, for ever, while something waits for money: a new day has some."""
        while True:
            await self.shortage.begun.wait()
            await pauses.pause(_LOOK_S)
            if self.shortage.over():
                main_loop.spawn(self._forget(*self.shortage.end()))

    # How it is done

    def _apply(self, parking: Parking) -> None:
        """Keep what a parking concerns from being started,
        and have what runs give its slot back.
        """
        effects = self._lifecycle.park(parking)
        if parking.scope.asked and not parking.cause.reason:
            self._governor.outages.pause(parking.name)  # which answers the requests that wait
        self._attempts.perform(effects)

    def park_now(self, parking: Parking) -> None:
        """Pause something on the daemon's own account; the store learns of it when it can."""
        self._apply(parking)
        main_loop.spawn(self._note(parking))

    async def _note(self, parking: Parking) -> None:
        async with self._turn:
            await self._store.write(operations.park, parking)

    def _lift(self, key: Key, keep: Iterable[Cause] = ()) -> bool:
        """Take a parking back, those apart whose cause is in ``keep``; then call ``_forget``.

        Return whether there was something to take back.
        """
        (scope, name) = key
        if not self._lifecycle.resume(key, keep):
            return False
        if scope.asked:
            if not self._lifecycle.holds.paused(name):
                self._governor.outages.unpause(name)
            if key not in self._lifecycle.holds:
                self.trials.end(name)
                self.trials.release(name)
        get_logger().info(Action.RESUMED, scope=scope, name=name)
        main_loop.wake()
        return True

    async def _forget(self, *keys: Key) -> None:
        """Note in the store that something is not parked any more, or for fewer causes."""
        # Together: a restore, or a day's end, may have parked tasks by the ten thousand.
        for start in range(0, len(keys), _CHUNK):
            some = keys[start : start + _CHUNK]
            async with self._turn:
                await asyncio.gather(
                    *(self._store.write(operations.unpark, scope, name) for scope, name in some)
                )
                for key in some:
                    for parking in tuple(self._lifecycle.holds.causes(key).values()):
                        await self._store.write(operations.park, parking)
        await self._requeue()

    async def _requeue(self) -> None:
        """Show tasks that wait for nothing any more as queued."""
        if free := self._lifecycle.requeued():
            await self._store.write(operations.requeue, free)

    def _over(self, parking: Parking) -> bool:
        """Whether a task or batch ended before its parking could be forgotten,
        or who waits for money is to ask again.
        """
        if parking.cause is Cause.BUDGET:
            return True
        if parking.scope is Scope.TASK and parking.cause is Cause.TIER:
            return True  # as earlier versions parked it
        if parking.scope is Scope.TASK:
            return not self._lifecycle.open(Ref(*parking.name.split("/", 1)))
        return parking.scope is Scope.BATCH and self._batches.get(parking.name) is None

    def _ended(self, scope: Scope, name: str) -> None:
        """Forget the parking of what has ended: nothing else can have waited for it."""
        if self._lifecycle.resume((scope, name)):
            main_loop.spawn(self._forget((scope, name)))


def _how(parking: Parking) -> str:
    """Return how the tasks of a provider, or of a model, go on."""
    return parking.cause.fix(
        f"`batchd resume --{parking.scope} {parking.name}`",
        "`batchd retry --failed --model PROVIDER/MODEL BATCH`",
    )


def _listed(endpoint: Endpoint) -> ModelListing | None:
    """Return what a provider lists; None: it lists nothing. Blocks."""
    # It loads a client for HTTP, which nothing else here needs.
    from batchd.catalog import NoListing, ask

    found = ask(endpoint)
    return None if isinstance(found, NoListing) else found
