"""Tasks that wait for room in a service tier, each by itself: they hold no slot, and others begin in their place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from batchd.daemon.core import Core
from batchd.daemon.register import Key, Register
from batchd.governor import Park
from batchd.governor.lanes import Name
from batchd.log import Action
from batchd.records import Cause, HoldKey, Parking, Ref, Scope

_OTHERS = tuple(cause for cause in Cause if cause is not Cause.TIER)


class Roomless:
    """Knows who waits for which tier; the governor says when there is room. After a restart their calls ask again.

    A task whose call found no room for long is parked. Others of its tier are kept from starting until there is some.
    """

    def __init__(self, core: Core, register: Register) -> None:
        self._core = core
        self._register = register
        #: In order; whether the task is parked, rather than kept from starting.
        self._waiting: dict[Name, dict[Ref, bool]] = {}
        self._timers: dict[Ref, asyncio.TimerHandle] = {}

    # What becomes of attempts

    def turned_away(self, ref: Ref, park: Park) -> None:
        """Park a task by itself, unless its tier has room by now."""
        if not self._core.governor.lanes.waits(park.name, park.tier):
            return
        self._waiting.setdefault((park.name, park.tier), {})[ref] = True
        parking = Parking(
            scope=Scope.TASK,
            name=str(ref),
            cause=Cause.TIER,
            message=park.message,
            since=time.time(),
        )
        self._core.spawn(self._register.keep(parking))
        self._register.add(parking)
        self._core.hold(ref, parking.key)
        if park.again_s is not None:
            later = asyncio.get_running_loop().call_later
            self._timers[ref] = later(max(0.0, park.again_s), self._again, ref)

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if its calls would find no room; return whether they would."""
        core = self._core
        if not len(core.governor.lanes) or not core.lifecycle.begins(ref):
            return False
        task = core.store.task(ref)
        name = task.model, task.service_tier
        if task.tier_fallback_s is not None or not core.governor.lanes.waits(*name):
            return False
        core.hold(ref, HoldKey.on(ref, Cause.TIER))
        self._waiting.setdefault(name, {})[ref] = False
        return True

    def forget(self, ref: Ref) -> None:
        """Forget a task that has ended."""
        if timer := self._timers.pop(ref, None):
            timer.cancel()
        for refs in self._waiting.values():
            refs.pop(ref, None)

    # How it goes on

    def free(self, name: Name, calls: int) -> int:
        """Let so many tasks ask again, or begin, -1: all; return how many wait on."""
        refs = self._waiting.get(name, {})
        for ref in list(refs)[: None if calls < 0 else calls]:
            self._go_on(ref)
        if not refs:
            self._waiting.pop(name, None)
        return len(refs)

    def try_again(self, key: Key) -> None:
        """Have the tier of one task be tried at once: somebody has reason to think that it helps."""
        for ref in self._register.concerned(*key):
            for name, refs in tuple(self._waiting.items()):
                if ref in refs:
                    self._go_on(ref)
                    self._core.governor.lanes.lift(*name)

    def _again(self, ref: Ref) -> None:
        del self._timers[ref]
        self._go_on(ref)

    def _go_on(self, ref: Ref) -> None:
        parked = any(self._pop(ref))
        self.forget(ref)
        key = Scope.TASK, str(ref)
        if parked and (lifted := self._register.drop(key, _OTHERS)):
            self._register.lift(lifted)
            self._core.spawn(self._register.forget(key))
            self._core.log.info(Action.RESUMED, scope=key[0], name=key[1])
        elif not parked:
            self._core.lift(ref, HoldKey.on(ref, Cause.TIER))
        self._core.wake()

    def _pop(self, ref: Ref) -> Iterator[bool]:
        for refs in self._waiting.values():
            if ref in refs:
                yield refs.pop(ref)
