"""The daemon's look at itself, for bugs of its own: what could move and has not for a minute.

Nothing here is needed while every wake-up of the daemon comes: it is the net below them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from batchd import pauses
from batchd.daemon import main_loop
from batchd.daemon.active import ActiveAttempt
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.turns import Turns
from batchd.errors import NotPossibleError
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle, Phase
from batchd.log import Action

#: The time between two looks, and what most things may take (seconds).
_LOOK_S = 10.0
_MINUTE_S = 60.0
#: What a batch's last files may take: its report waits for those of others.
_CLOSING_S = 900.0
#: What a worker may take to come up, with the pause after one that did not.
_WORKER_UP_S = 180.0
_FIX = (
    "restart batchd, which loses nothing; then report this bug, with the log of the minutes before"
)


class Movable(NamedTuple):
    """Something that could move at the moment of a look."""

    #: What it is, and what it waits for, although nothing keeps that from coming.
    what: str
    #: How far it has come: once it moves, it is another one.
    mark: Hashable = None
    #: How long it may stay as it is, in seconds.
    may_s: float = _MINUTE_S


class StallTally:
    """The record of how long each thing that could move has stayed as it is. Pure."""

    def __init__(self) -> None:
        self._for_s: dict[Movable, float] = {}

    def look(self, movables: Iterable[Movable], passed_s: float) -> list[Movable]:
        """Take what could move now, ``passed_s`` after the last look; return what has stalled.

        Only time between looks that come as they should counts: a daemon that was stopped, or a
        machine that slept, has kept nothing waiting.
        """
        passed_s = min(passed_s, 2 * _LOOK_S)
        known = self._for_s
        self._for_s = {each: known[each] + passed_s if each in known else 0.0 for each in movables}
        return [each for each, for_s in self._for_s.items() if for_s > each.may_s]


@dataclass(slots=True, eq=False, repr=False)
class SelfCheck:
    """The look at itself, for as long as the daemon runs."""

    _lifecycle: Lifecycle
    _troubles: TroubleLog
    _governor: Governor
    _batches: OpenBatches
    _turns: Turns
    _attempts: Attempts

    async def report_stalls(self) -> None:
        """Look for what has stalled for ever; say so, and wake everything."""
        clock = asyncio.get_running_loop().time
        tally, last = StallTally(), clock()
        with self._troubles.trying(Action.STALLED) as tries:
            while True:
                await pauses.pause(_LOOK_S)
                now = clock()
                stalled, last = tally.look(self.movables(), now - last), now
                if stalled:
                    tries.failed(NotPossibleError(f"{stalled[0].what}: {_FIX}"))
                    main_loop.wake()
                else:
                    tries.worked()

    def movables(self) -> Iterator[Movable]:
        """Yield what could move at this moment; what is in trouble is reported by itself."""
        stops = self._troubles.stops
        if main_loop.current().closing or stops(Action.STORE_TROUBLE):
            return
        if ref := self._turns.startable():
            yield Movable(f"{ref}, queued, and a slot is free")
        startless = stops(Action.SANDBOX_TROUBLE) or self._attempts.pool.trouble
        for active in self._attempts.active:
            if active.waiting is None and (active.task or not startless):
                yield at_work(active)
        for ref in self._governor.servable():
            yield Movable(f"{ref}, which waits for a permit that is free")
        if stops(Action.OUTBOX_TROUBLE):
            return
        ending = self._lifecycle.counts[Phase.ENDING]
        for batch, left, ended in self._batches.ending():
            if not self._troubles.holds(batch.outbox, batch.name):
                # One for a batch: that some of them end shows that the others have their turn.
                # So does an order that ends many: their results are written behind the last end.
                what = f"{batch.name}, with {ended:,} tasks that have ended and are not published"
                yield Movable(what, (left, ending), _MINUTE_S if left else _CLOSING_S)
        working = {active.ref for active in self._attempts.active}
        for ref, entry in self._lifecycle.entries.items():
            if entry.phase.has_slot and ref not in working:
                yield Movable(f"{ref}, which has a slot, and no worker works on it")


def at_work(active: ActiveAttempt) -> Movable:
    """Return a task that a worker works on: each step of it has a limit of its own."""
    may_s = _WORKER_UP_S
    if active.task is not None:
        limits = active.task.limits
        steps = {"model": limits.call_timeout_s, "waiting": 0.0}
        may_s = _MINUTE_S + steps.get(active.step, limits.tool_timeout_s)
    what = f"{active.ref}, about which its worker is silent ({active.step})"
    return Movable(what, (active.attempt, active.since), may_s + active.fence_s)
