"""Placing: tasks that ask for a machine, or for a provider's key, are kept from starting while no
worker has room that has it.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field

from batchd.actions import Action
from batchd.errors import NotPossibleError
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.queue import rank_of
from batchd.log import get_logger
from batchd.pool.supervisor import Supervisor
from batchd.records import Cause, HoldKey, Place, Ref, Scope

#: So many of one kind are let go on at a time.
_AT_ONCE = 16


@dataclass(slots=True, eq=False, repr=False)
class Placing:
    """Holds tasks for what they ask for, so that others pass them,
    and lets the best go on where there is room.

    Whether one that goes on gets that room, its turn says: it may be kept again.
    """

    _lifecycle: Lifecycle
    _pool: Supervisor
    #: What tasks are kept for.
    _kept: dict[Place, None] = field(default_factory=dict)
    #: The trouble that no worker has what tasks ask for, with the fix, and since when;
    #: None: there is none.
    missing: tuple[NotPossibleError, float] | None = None

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if no worker has room that suits it;
        return whether that is so.
        """
        place, alone = self._lifecycle.place_of(ref), self._lifecycle.suspect(ref)
        if self._pool.fits(place, alone=alone):
            return False
        self._kept[place] = None
        self._lifecycle.take(inputs.Held(ref, _room_for(place)))
        return True

    def refill(self) -> bool:
        """Let the best go on for which there may be room; asked before each turn.

        Return whether there are more of them.
        """
        more = False
        for place in [*self._kept]:
            kept = self._lifecycle.holds.kept(_room_for(place))
            if not kept:
                del self._kept[place]
            elif self._pool.has(place):
                # A suspect waits for a process of its own,
                # which is made room for where it waits in the queue.
                free = self._pool.fits(place)
                ready = kept if free else filter(self._lifecycle.suspect, kept)
                best = heapq.nsmallest(_AT_ONCE, ready, key=self._rank)
                for ref in best:
                    self._lifecycle.take(inputs.Lifted(ref, _room_for(place)))
                more = more or (free and len(kept) > len(best))
        return more

    def look(self) -> None:
        """See whether any worker has what tasks ask for; log it when none does."""
        # Why a machine of the configuration has no worker, its own trouble says.
        up = {worker.machine for worker in self._pool.workers if worker.greeted}
        lacking = sorted(
            str(place)
            for place in self._kept
            if place.machine not in self._pool.machines.keys() - up
            and self._lifecycle.holds.kept(_room_for(place))
            and not self._pool.has(place)
        )
        if not lacking:
            self.missing = None
            return
        fix = (
            "add it to [pool] machines, or cancel them"
            if "machine" in lacking[0]
            else "put it there"
        )
        error = NotPossibleError(f"tasks need {lacking[0]}, and no worker has that: {fix}")
        since = self.missing[1] if self.missing else time.time()
        if self.missing is None or str(self.missing[0]) != str(error):
            get_logger().error(Action.WORKER_TROUBLE, message=str(error))
        self.missing = error, since

    def _rank(self, ref: Ref) -> tuple[int, int, Ref]:
        return rank_of(self._lifecycle.entries[ref])


def _room_for(place: Place) -> HoldKey:
    """Return what keeps tasks that ask for it."""
    return HoldKey(Scope.ALL, str(place), Cause.NEEDS)
