"""Tasks that wait for room in a service tier, each by itself:
they hold no slot, and others begin in their place.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from batchd.actions import Action
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.writes import Register
from batchd.governor import Governor, ParkDecision
from batchd.governor.lanes import Name
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.holds import Key
from batchd.log import get_logger
from batchd.records import Cause, HoldKey, Parking, Ref, Scope
from batchd.store import Store

_OTHERS = tuple(cause for cause in Cause if cause is not Cause.TIER)


@dataclass(slots=True, eq=False, repr=False)
class TierWaits:
    """The waits for a tier; the governor says when there is room.

    After a restart their calls ask again.

    A task whose call found no room for long is parked.
    Others of its tier are kept from starting until there is some.
    """

    _loop: MainLoop
    _lifecycle: Lifecycle
    _store: Store
    _governor: Governor
    _register: Register

    # What becomes of attempts

    def turned_away(self, ref: Ref, park: ParkDecision) -> None:
        """Park a task by itself, unless its tier has room by now."""
        if not self._governor.lanes.waits(park.name, park.tier):
            return
        parking = Parking(
            scope=Scope.TASK,
            name=str(ref),
            cause=Cause.TIER,
            message=park.message,
            since=time.time(),
        )
        self._lifecycle.park(parking)
        self._lifecycle.take(inputs.Held(ref, _full((park.name, park.tier))))
        self._loop.spawn(self._register.keep(parking))
        if park.again_s is not None:
            later = asyncio.get_running_loop().call_later
            later(max(0.0, park.again_s), self._again, ref, parking)

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if its calls would find no room;
        return whether they would.
        """
        if not len(self._governor.lanes) or not self._lifecycle.begins(ref):
            return False
        task = self._store.task(ref)
        name = task.model, task.service_tier
        if task.tier_fallback_s is not None or not self._governor.lanes.waits(*name):
            return False
        self._lifecycle.take(inputs.Held(ref, _full(name)))
        return True

    # How it goes on

    def free(self, name: Name, calls: int) -> int:
        """Let so many tasks ask again, or begin, -1: all; return how many wait on."""
        refs = self._lifecycle.holds.kept(_full(name))
        freed = refs[: None if calls < 0 else calls]
        for ref in freed:
            self._go_on(ref)
        return len(refs) - len(freed)

    def try_again(self, key: Key) -> None:
        """Try the tier of one task at once, after an order."""
        for ref in self._lifecycle.concerned(*key):
            for hold in self._waits(ref):
                model, _, tier = hold.name.rpartition(" ")
                self._go_on(ref)
                self._governor.lanes.lift(model, tier)

    def _again(self, ref: Ref, parking: Parking) -> None:
        """Let a task go on that has waited long enough, unless it has done so meanwhile."""
        if self._lifecycle.holds.causes((Scope.TASK, str(ref))).get(Cause.TIER) is parking:
            self._go_on(ref)

    def _go_on(self, ref: Ref) -> None:
        for hold in self._waits(ref):
            self._lifecycle.take(inputs.Lifted(ref, hold))
        key = Scope.TASK, str(ref)
        if self._lifecycle.resume(key, _OTHERS):
            self._loop.spawn(self._register.forget(key))
            get_logger().info(Action.RESUMED, scope=key[0], name=key[1])
        self._loop.wake()

    def _waits(self, ref: Ref) -> list[HoldKey]:
        """Return the tiers that a task waits for: one, or none."""
        entry = self._lifecycle.entries[ref]
        return [h for h in entry.holds if h.scope is Scope.MODEL and h.cause is Cause.TIER]


def _full(name: Name) -> HoldKey:
    """Return what keeps the tasks that wait for a tier of a model."""
    return HoldKey(Scope.MODEL, " ".join(name), Cause.TIER)
