"""Batches that say how many of their tasks work at a time:
the others are kept from starting while as many do.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.ends.batches import OpenBatches
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.queue import rank_of
from batchd.records import Cause, HoldKey, Ref, Scope

#: Of those that are kept, the first that were: the best of so many goes on.
_LOOKED_AT = 1000


@dataclass(slots=True, eq=False, repr=False)
class Concurrency:
    """Holds each batch to its ``parallel``."""

    _lifecycle: Lifecycle
    _batches: OpenBatches
    _attempts: Attempts
    #: By batch of which tasks are kept: those that were let go on, and have not begun yet.
    _let_go: dict[str, set[Ref]] = field(default_factory=dict)

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if as many
        of its batch are at work as may be; return whether they are.
        """
        batch = self._batches.get(ref.batch)
        if batch is None or not batch.parallel or self._at_work(ref.batch) < batch.parallel:
            return False
        self._lifecycle.take(inputs.Held(ref, _enough(ref.batch)))
        self._let_go.setdefault(ref.batch, set()).discard(ref)
        return True

    def refill(self) -> None:
        """Let as many tasks go on as have room;
        asked before each turn, whatever it was that made room.
        """
        for name in [*self._let_go]:
            hold, batch = _enough(name), self._batches.get(name)
            if batch is None or not self._lifecycle.holds.keeps(hold):
                del self._let_go[name]
                continue
            let_go = {ref for ref in self._let_go[name] if self._waits_for(ref, ())}
            for ref in self._best(hold, batch.parallel - self._at_work(name) - len(let_go)):
                self._lifecycle.take(inputs.Lifted(ref, hold))
                let_go.add(ref)
            self._let_go[name] = let_go

    def _best(self, hold: HoldKey, count: int) -> list[Ref]:
        """Return the best tasks that nothing else keeps from starting, at most so many."""
        if count <= 0:
            return []
        kept = self._lifecycle.holds.kept(hold)
        entries = self._lifecycle.entries
        first, others = kept[:_LOOKED_AT], kept[_LOOKED_AT:]
        free = [ref for ref in first if self._waits_for(ref, (hold,))]
        if len(free) < count:
            more: Iterator[Ref] = (ref for ref in others if self._waits_for(ref, (hold,)))
            free = [*chain(free, more)]
        return heapq.nsmallest(count, free, key=lambda ref: rank_of(entries[ref]))

    def _waits_for(self, ref: Ref, holds: tuple[HoldKey, ...]) -> bool:
        """Whether a task waits for a slot, and for these holds, and for nothing else of its own."""
        entry = self._lifecycle.entries.get(ref)
        return entry is not None and entry.phase.waits and entry.holds == holds

    def _at_work(self, name: str) -> int:
        return sum(active.ref.batch == name for active in self._attempts.active)


def _enough(batch: str) -> HoldKey:
    """Return what keeps more tasks of a batch from starting: enough of them are at work."""
    return HoldKey(Scope.BATCH, batch, Cause.CONCURRENCY)
