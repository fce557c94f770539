"""Batches that say how many of their tasks work at a time: the others are kept from starting until one leaves its slot."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.ends.batches import Batches
from batchd.daemon.loop import Loop
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.queue import rank_of
from batchd.records import Cause, HoldKey, Ref, Scope

#: Of those that are kept, the first that were; among so many the best is let go on.
_LOOKED_AT = 1000


@dataclass(slots=True, eq=False, repr=False)
class Concurrency:
    """Holds a batch to its ``parallel``."""

    _loop: Loop
    _lifecycle: Lifecycle
    _batches: Batches
    _attempts: Attempts

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if as many of its batch are at work as may be; return whether they are."""
        if self._room(ref.batch) > 0:
            return False
        self._lifecycle.take(inputs.Held(ref, _enough(ref.batch)))
        return True

    def left(self, ref: Ref) -> None:
        """Let others of a batch go on, one of whose tasks has left its slot."""
        kept = self._lifecycle.holds.kept(_enough(ref.batch))
        if not kept:
            return
        entries = self._lifecycle.entries
        best = heapq.nsmallest(
            max(0, self._room(ref.batch)),
            kept[:_LOOKED_AT],
            key=lambda each: rank_of(entries[each]),
        )
        for each in best:
            self._lifecycle.take(inputs.Lifted(each, _enough(ref.batch)))
        self._loop.wake()

    def _room(self, name: str) -> int:
        """Return how many more tasks of a batch may work."""
        batch = self._batches.get(name)
        if batch is None or not batch.parallel:
            return _LOOKED_AT
        return batch.parallel - sum(active.ref.batch == name for active in self._attempts.active)


def _enough(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch of which enough are at work."""
    return HoldKey(Scope.BATCH, batch, Cause.CONCURRENCY)
