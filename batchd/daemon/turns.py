"""Turns: which task starts next, as slots, money, outboxes and what is parked allow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from batchd.daemon import main_loop
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.gates import Concurrency, Gate, Placing, Tiers
from batchd.daemon.parking_lot import ParkingLot
from batchd.daemon.writes import DaemonStore
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle
from batchd.lifecycle.holds import ALL
from batchd.records import Ref
from batchd.records.tasks import ANYWHERE

_MESSAGE = "it makes room for an earlier task, which runs in a process of its own"


@dataclass(slots=True, eq=False, repr=False)
class Turns:
    """Fills the pool's slots with the tasks whose turn it is."""

    _lifecycle: Lifecycle
    _store: DaemonStore
    _governor: Governor
    _batches: OpenBatches
    _attempts: Attempts
    _lot: ParkingLot
    #: Holds each batch to its ``parallel``.
    _concurrency: Concurrency = field(init=False)
    #: Who waits for a machine that has what it needs.
    placing: Placing = field(init=False)
    #: What keeps a task whose turn it is: the first that does.
    _gates: tuple[Gate, ...] = field(init=False)

    def __post_init__(self) -> None:
        self._concurrency = Concurrency(self._lifecycle, self._batches, self._attempts)
        self.placing = Placing(self._lifecycle, self._attempts.pool)
        tiers = Tiers(self._lifecycle, self._store)
        self._gates = (self.placing, self._concurrency, self._lot.shortage, tiers)

    async def watch(self) -> None:
        """Start what can start whenever something may have become free, for ever."""
        while True:
            await main_loop.current().woken.wait()
            main_loop.current().woken.clear()
            self._pump()
            await asyncio.sleep(0)  # it may be woken already, and others have their turn

    def _pump(self) -> None:
        """Start whatever can start: nothing while results cannot be written or commands not run."""
        self._lot.catch_up()  # what is out of order as of now has no turn
        if self._stopped:
            return
        queue, trials = self._lifecycle.queue, self._lot.trials
        self._concurrency.refill()
        more = self.placing.refill()
        self._try_alone()
        self._start_suspects()
        while self._attempts.free > 0 and (ref := trials.pick(alone=False)):
            self._try(ref, alone=False)
        self._try_alone()  # no other one may be left
        free = self._attempts.free
        ready = queue.draw(max(0, free), self._governor.crowded)
        begun = 0
        for ref in ready:  # one after the other: whether one begins may hang on those before it
            if not self._keeps(ref):
                self._reserve(ref)
                begun += 1
        self._start_suspects()  # no better task may be left
        reopened = self._make_room()
        kept = begun < len(ready)  # others may be cheaper: 100,000 are looked at by and by
        if reopened or kept or (more and begun):
            main_loop.wake()
        elif free > 0 and not self._attempts.active:
            self._lot.shortage.nothing_goes_on()
        self.placing.look()

    @property
    def _stopped(self) -> bool:
        closing, holds = main_loop.current().closing, self._lifecycle.holds
        return closing or ALL in holds or self._batches.closed

    def _try_alone(self) -> None:
        while self._attempts.pool.slot_alone(ANYWHERE) and (
            ref := self._lot.trials.pick(alone=True)
        ):
            self._try(ref, alone=True)

    def _try(self, ref: Ref, *, alone: bool) -> None:
        if self._concurrency.keeps(ref) or self.placing.keeps(ref):
            self._lot.trials.left(ref)
        else:
            self._reserve(ref, alone=alone)

    def _keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if its first call could not be made;
        return whether that is so.
        """
        return any(gate.keeps(ref) for gate in self._gates)

    def _reserve(self, ref: Ref, *, alone: bool = False) -> None:
        self._lot.shortage.something_goes_on()
        self._attempts.reserve(ref, alone=alone)

    # Suspects, tasks at which a worker died: each is started in a process of its own, by priority
    # and age as all others; where no process is empty, one is cleared for them. One at a time: a
    # suspect needs a whole process, and while many wait the other processes go on.

    def _start_suspects(self) -> None:
        while ref := self._suspect():
            if not self._keeps(ref):
                self._reserve(ref, alone=True)

    def _suspect(self) -> Ref | None:
        """Return the suspect to start now, if it has its turn and a process is empty."""
        queue = self._lifecycle.queue
        suspect = queue.suspect_due(self._governor.crowded)
        if suspect is None:
            return None
        place = self._lifecycle.place_of(suspect)
        # Where no worker at all has what it asks for, it is taken all the same,
        # and held for that: others have their turn.
        due = self._attempts.pool.slot_alone(place) or not self._attempts.pool.has(place)
        return queue.draw_suspect() if due else None

    def _make_room(self) -> bool:
        """Clear a process for the suspect whose turn it is;
        return whether others may have one back that was closed to them.

        Its tasks that came after the suspect give their slots back at their next durable point;
        older and better ones come to their end.
        """
        lifecycle, pool = self._lifecycle, self._attempts.pool
        suspect = lifecycle.queue.suspect_due(self._governor.crowded)
        place = lifecycle.place_of(suspect) if suspect else ANYWHERE
        fitting = [worker for worker in pool.workers if pool.could(worker, place)]
        if suspect is None or pool.slot_alone(place) or any(w.alone for w in pool.workers):
            return pool.clear(None)
        worker = pool.clearing if pool.clearing in fitting else None
        worker = worker or min(
            fitting,
            key=lambda w: (sum(lifecycle.precedes(ref, suspect) for ref in w.tasks), len(w.tasks)),
            default=None,
        )
        pool.clear(worker)
        for ref in worker.tasks if worker else ():
            if lifecycle.precedes(suspect, ref):
                self._attempts.halt(ref, _MESSAGE)
        return False

    # For the daemon's look at itself

    def startable(self) -> Ref | None:
        """Return a task that would be started now; None after each look."""
        if self._stopped or self._attempts.free <= 0:
            return None
        return self._lifecycle.queue.next()
