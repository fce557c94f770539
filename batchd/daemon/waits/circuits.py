"""Circuits: what follows for tasks where the governor reports that a provider,
a model or a tier fails, is tried, or is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batchd.actions import Action
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.listeners import Listener
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.waits.offers import Offers
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.errors import BatchdError
from batchd.governor import Governor
from batchd.governor.news import (
    BatchSpent,
    Closed,
    GaveUp,
    HalfOpened,
    News,
    Overlong,
    Parked,
)
from batchd.lifecycle import Lifecycle
from batchd.lifecycle.effects import End
from batchd.log import get_logger
from batchd.records import Cause, Parking, Reason, Scope, TaskStatus


@dataclass(slots=True, eq=False, repr=False)
class Circuits:
    """Makes holds, lines in the log and ends of tasks
    of the governor's news, one after the other.
    """

    _loop: MainLoop
    _lifecycle: Lifecycle
    _governor: Governor
    _listeners: Sequence[Listener]
    _lot: ParkingLot
    _publisher: Publisher
    _offers: Offers
    _news: asyncio.Queue[News]
    #: Reads the keys of providers again.
    _read_keys: Callable[[], None]

    async def watch(self) -> None:
        """Take the governor's news, for ever."""
        while True:
            self._take(await self._news.get())

    def catch_up(self) -> None:
        """Take what was reported up to now, for who is about to decide."""
        while not self._news.empty():
            self._take(self._news.get_nowait())

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
                self._lot.batch_spent(batch, message)

    def _parked(self, name: str, cause: Cause, message: str) -> None:
        """Park the tasks of a provider, or of a model, if it is still out of order."""
        if not self._governor.outages.stands(name):
            return
        self._lot.trials.end(name)
        news = cause not in self._lifecycle.holds.causes(
            (Scope.of(name), name)
        )  # else a try has failed
        gone, offers = cause is Cause.GONE, self._offers
        if gone and not offers.known(name.partition("/")[0]):
            self._hold(name, cause, message)
            self._loop.spawn(self._explain(name, message, news=news))
            return
        parking = self._hold(name, cause, offers.explained(name, message) if gone else message)
        self._report(parking, news=news)

    async def _explain(self, name: str, message: str, *, news: bool) -> None:
        """Report a model that is gone once its provider has been asked for what there is:
        that belongs to it.
        """
        await self._offers.ask(name.partition("/")[0])
        if Cause.GONE in self._lifecycle.holds.causes((Scope.of(name), name)):
            parking = self._hold(name, Cause.GONE, self._offers.explained(name, message))
            self._report(parking, news=news)

    def _hold(self, name: str, cause: Cause, message: str) -> Parking:
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
        self._lot.park_now(parking)
        return parking

    def _report(self, parking: Parking, *, news: bool) -> None:
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
            for listener in self._listeners:
                listener.provider_parked(parking, how)

    def _half_opened(self, name: str) -> None:
        """Let one task try a parked provider, or model, if there is a key to try it with."""
        if (Scope.of(name), name) in self._lifecycle.holds:
            self._try_to_read_keys()
            self._lot.trials.begin(name)
            self._loop.wake()
        self._governor.outages.without_key(name)

    def _try_to_read_keys(self) -> None:
        """Read them, or go on with the old ones:
        a file may lie where commands would see it by now.
        """
        lines = get_logger()
        try:
            self._read_keys()
        except BatchdError as error:
            lines.error(Action.CONFIG_RELOADED, kept_old=True, message=str(error))

    def _closed(self, name: str) -> None:
        """Let the tasks of a provider, or of a model, go on."""
        self._lot.trials.end(name)
        key = (Scope.of(name), name)
        outage = next((p for c, p in self._lifecycle.holds.causes(key).items() if c.reason), None)
        if self._lot.lift(key, keep=(Cause.PAUSED,)):
            self._loop.spawn(self._lot.forget(key))
            if outage is not None and outage.cause is not Cause.TIER:
                for listener in self._listeners:
                    listener.provider_resumed(outage)

    def _gave_up(self, name: str, cause: Cause, message: str) -> None:
        """End the tasks of a provider, or of a model."""
        self._lot.trials.end(name)
        if cause is Cause.GONE:
            message = self._offers.explained(name, message)
        self._loop.spawn(self._end_all(name, cause.reason or Reason.INTERNAL, message))

    async def _end_all(self, name: str, reason: Reason, message: str) -> None:
        """End every task that waits for a provider, or a model, then forget that it was parked."""
        key = (Scope.of(name), name)
        refs = [*self._lifecycle.refs(name, waiting=True), *self._lot.trials.release(name)]
        refs = [ref for ref in dict.fromkeys(refs) if self._lifecycle.open(ref)]
        ends = (End(ref, TaskStatus.ERROR, reason, message) for ref in refs)
        await self._publisher.give_up(ends)
        self._governor.outages.close(name)
        if self._lot.lift(key, keep=(Cause.PAUSED,)):
            await self._lot.forget(key)


def _how(parking: Parking) -> str:
    """Return how the tasks of a provider, or of a model, go on."""
    return parking.cause.fix(
        f"`batchd resume --{parking.scope} {parking.name}`",
        "`batchd retry --failed --model PROVIDER/MODEL BATCH`",
    )
