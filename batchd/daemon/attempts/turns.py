"""Turns: which task starts next, as slots, money, outboxes and what is parked allow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.suspects import Suspects
from batchd.daemon.ends.rooms import Rooms
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.waits.circuits import Circuits
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle
from batchd.records import Ref


@dataclass(slots=True, eq=False, repr=False)
class Turns:
    """Fills the pool's slots with the tasks whose turn it is."""

    _loop: MainLoop
    _lifecycle: Lifecycle
    _governor: Governor
    _lot: ParkingLot
    _circuits: Circuits
    _rooms: Rooms
    _attempts: Attempts
    _suspects: Suspects

    async def watch(self) -> None:
        """Start what can start whenever something may have become free, for ever."""
        while True:
            await self._loop.woken.wait()
            self._loop.woken.clear()
            self._pump()
            await asyncio.sleep(0)  # it may be woken already, and others have their turn

    def _pump(self) -> None:
        """Start whatever can start: nothing while results cannot be written or commands not run."""
        self._circuits.catch_up()  # what is out of order as of now has no turn
        if self._loop.closing or self._lifecycle.holds.stopped or self._rooms.closed:
            return
        queue, trials = self._lifecycle.queue, self._lot.trials
        self._lot.concurrency.refill()
        more = self._lot.placing.refill()
        self._try_alone()
        self._start_suspects()
        while self._attempts.free > 0 and (ref := trials.pick(alone=False)):
            self._try(ref, alone=False)
        self._try_alone()  # no other one may be left
        free = self._attempts.free
        ready = queue.draw(max(0, free), self._governor.crowded)
        begun = 0
        for ref in ready:  # one after the other: whether one begins may hang on those before it
            if not self._lot.keeps(ref):
                self._reserve(ref)
                begun += 1
        self._start_suspects()  # no better task may be left
        reopened = self._suspects.make_room()
        kept = begun < len(ready)  # others may be cheaper: 100,000 are looked at by and by
        if reopened or kept or (more and begun):
            self._loop.wake()
        elif free > 0 and not self._attempts.active:
            self._lot.shortage.nothing_goes_on()
        self._lot.placing.look()

    def _try_alone(self) -> None:
        while self._attempts.free_alone and (ref := self._lot.trials.pick(alone=True)):
            self._try(ref, alone=True)

    def _try(self, ref: Ref, *, alone: bool) -> None:
        if self._lot.concurrency.keeps(ref) or self._lot.placing.keeps(ref):
            self._lot.trials.left(ref)
        else:
            self._reserve(ref, alone=alone)

    def _start_suspects(self) -> None:
        while ref := self._suspects.take():
            if not self._lot.keeps(ref):
                self._reserve(ref, alone=True)

    def startable(self) -> Ref | None:
        """Return a task that would be started now; None after each look."""
        stopped = self._loop.closing or self._lifecycle.holds.stopped or self._rooms.closed
        return None if stopped or self._attempts.free <= 0 else self._lifecycle.queue.next()

    def _reserve(self, ref: Ref, *, alone: bool = False) -> None:
        self._lot.shortage.something_goes_on()
        self._attempts.reserve(ref, alone=alone)
