"""Circuits: what follows for tasks where the governor reports that a provider,
a model or a tier fails, is tried, or is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from batchd import catalog
from batchd.catalog import ModelListing
from batchd.daemon import main_loop
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.listeners import Listener
from batchd.daemon.tuning import CurrentConfig
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.errors import BatchdError
from batchd.governor import Governor
from batchd.governor.outages import (
    BatchSpent,
    Closed,
    GaveUp,
    HalfOpened,
    News,
    Overlong,
    Parked,
)
from batchd.lifecycle import Lifecycle
from batchd.lifecycle.inputs import End
from batchd.log import Action, get_logger
from batchd.pauses import aside
from batchd.records import Cause, Endpoint, Parking, Reason, Scope, TaskStatus

#: A provider is not asked again within this time, in seconds.
_FRESH_S = 600.0
#: A list that has not come by then is given up; the thread that asks for it knows a shorter time.
_PATIENCE_S = 20.0


@dataclass(slots=True, eq=False, repr=False)
class Circuits:
    """Makes holds, lines in the log and ends of tasks
    of the governor's news, one after the other.
    """

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _governor: Governor
    _listeners: Sequence[Listener]
    _lot: ParkingLot
    _publisher: Publisher
    _news: asyncio.Queue[News]
    #: Reads the keys of providers again.
    _read_keys: Callable[[], None]
    _offers: Offers = field(init=False)

    def __post_init__(self) -> None:
        self._offers = Offers(self._current)

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
            main_loop.spawn(self._explain(name, message, news=news))
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
            main_loop.wake()
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
            main_loop.spawn(self._lot.forget(key))
            if outage is not None and outage.cause is not Cause.TIER:
                for listener in self._listeners:
                    listener.provider_resumed(outage)

    def _gave_up(self, name: str, cause: Cause, message: str) -> None:
        """End the tasks of a provider, or of a model."""
        self._lot.trials.end(name)
        if cause is Cause.GONE:
            message = self._offers.explained(name, message)
        main_loop.spawn(self._end_all(name, cause.reason or Reason.INTERNAL, message))

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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a provider answered; None: it has no list, or did not answer."""

    at: float
    listing: ModelListing | None


@dataclass(slots=True, eq=False, repr=False)
class Offers:
    """Asks providers for their models, and keeps what they answer."""

    _current: CurrentConfig
    _asked: dict[str, _Asked] = field(default_factory=dict)

    def known(self, provider: str) -> bool:
        """Whether a provider was asked lately, whatever it said."""
        asked = self._asked.get(provider)
        return asked is not None and time.monotonic() - asked.at < _FRESH_S

    async def ask(self, provider: str) -> None:
        """Ask a provider for its list, unless that is known. Raises nothing."""
        if self.known(provider):
            return
        try:
            endpoint = self._current.config.endpoint(provider)
        except BatchdError:
            return  # without a key there is no list
        found = await _in_thread(endpoint)
        self._asked[provider] = _Asked(time.monotonic(), found)

    def explained(self, model: str, message: str) -> str:
        """Return what a provider said of a model that it does not have,
        and what is known beside that.
        """
        return "; ".join((message, *self._more(model)))

    def _more(self, model: str) -> Iterator[str]:
        provider = model.partition("/")[0]
        asked, known = self._asked.get(provider), self._current.config.providers.get(provider)
        listing = asked.listing if asked else None
        end, today = catalog.end(model, known.base_url if known else "", listing), catalog.today()
        if end is not None and end.gone(today):
            yield end.words(today)
        near = listing.nearest(model.partition("/")[2]) if listing else ()
        successors = [end.successor] if end is not None and end.successor else []
        names = dict.fromkeys((*successors, *(f"{provider}/{name}" for name in near)))
        names.pop(model, None)  # a list of yesterday has it yet
        if names:
            yield f"nearest are {', '.join(names)}"


async def _in_thread(endpoint: Endpoint) -> ModelListing | None:
    """Ask in a thread of its own, which the end of the daemon does not wait for:
    a server may hold it up for long.
    """

    def work() -> ModelListing | None:
        from batchd.catalog.query import ask  # a client for HTTP, which nothing else here needs

        found = ask(endpoint)
        return found if isinstance(found, ModelListing) else None

    # No thread is to be had, or no answer in time.
    with contextlib.suppress(RuntimeError, TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            return await aside(work, "models")
    return None
