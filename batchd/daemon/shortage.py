"""Tasks that wait for the day's money, each by itself: what costs less than is left goes on, and begins."""

from __future__ import annotations

import time

from batchd.daemon.core import Core
from batchd.daemon.firstcalls import FirstCalls
from batchd.daemon.register import DAY, Key, Register
from batchd.log import Action
from batchd.records import Cause, HoldKey, Parking, Ref, Scope

_OTHERS = tuple(cause for cause in Cause if cause is not Cause.BUDGET)


class Shortage:
    """Knows who waits since a call found too little of the day's money; after a restart their calls ask again.

    A task whose call was turned away is parked. Others whose next call is too dear as well never get as far
    as that: they are kept from starting, for to start 100,000 tasks in vain takes hours.
    """

    def __init__(self, core: Core, register: Register) -> None:
        self._core = core
        self._register = register
        self._first_calls = FirstCalls(core)
        #: The day and its budget when the first call was turned away; None: there is money.
        self._since: tuple[int, float] | None = None
        self._parked: dict[Ref, None] = {}
        self._kept: dict[Ref, None] = {}
        #: What was said of the last call that was turned away.
        self._message = ""
        #: Whether people know that nothing goes on.
        self._announced = False

    # What becomes of attempts

    def turned_away(self, ref: Ref, message: str) -> None:
        """Park a task by itself: the day has too little left for its next call, unless it is another day by now."""
        governor = self._core.governor
        call = governor.money.wanted.get(ref)
        if call is None or not governor.waits_for_day(call):
            return
        self._since = self._since or governor.money.today()
        self._parked[ref], self._message = None, message
        self._first_calls.learn(call)
        self._core.hold(ref, self._park(Scope.TASK, str(ref)))

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if its next call is known to be too dear; return whether it is."""
        if self._since is None:
            return False
        governor, lifecycle = self._core.governor, self._core.lifecycle
        call = governor.money.wanted.get(ref)
        if call is None and lifecycle.begins(ref):
            call = self._first_calls.least(ref)
        if call is None or not governor.waits_for_day(call):
            return False
        self._core.hold(ref, HoldKey.on(ref, Cause.BUDGET))
        self._kept[ref] = None
        return True

    def something_goes_on(self) -> None:
        """Note that a task begins or goes on, or that none waits."""
        if self._register.drop(DAY):
            self._core.spawn(self._register.forget(DAY))

    def nothing_goes_on(self) -> None:
        """Report that all that waits waits for the day's money, if it does: once."""
        if not (self._parked or self._kept) or DAY in self._register:
            return
        self._park(Scope.DAY)
        if not self._announced:
            self._announced = True
            self._core.log.warning(Action.BUDGET_REACHED, message=self._message)
            self._core.listeners.budget_reached("", self._message)

    def forget(self, ref: Ref) -> None:
        """Forget a task that has ended."""
        self._parked.pop(ref, None)
        self._kept.pop(ref, None)
        if not (self._parked or self._kept):
            self.something_goes_on()

    # How it goes on

    def over(self) -> bool:
        """Whether it is another day, or the day has a larger budget."""
        if self._since is None:
            return False
        (day, limit), (then, former) = self._core.governor.money.today(), self._since
        return day != then or not limit or limit > former

    def end(self) -> list[Key]:
        """Let all go on; return what the store need not remember any more. What is too dear again is kept as before."""
        for ref in self._kept:
            self._core.lift(ref, HoldKey.on(ref, Cause.BUDGET))
        keys = [DAY, *((Scope.TASK, str(ref)) for ref in self._parked)]
        lifted = [key for key in keys if self._lift(key, _OTHERS)]
        self._core.log.info(Action.RESUMED, scope=Scope.DAY, name="", tasks=len(self._parked))
        self._kept.clear()
        self._parked.clear()
        self._since, self._announced = None, False
        self._core.wake()
        return lifted

    def try_again(self, key: Key) -> list[Key]:
        """Have the call of one task ask again, or with ``DAY`` those of all: somebody wants to know. Return as ``end``."""
        wanted = self._core.governor.money.wanted
        if key == DAY:
            for ref in (*self._parked, *self._kept):
                wanted.pop(ref, None)
            return self.end()
        for ref in self._register.concerned(*key):
            wanted.pop(ref, None)
            self.forget(ref)
        lifted = self._lift(key)
        self._core.wake()
        return [key] if lifted else []

    def _park(self, scope: Scope, name: str = "") -> HoldKey:
        parking = Parking(
            scope=scope, name=name, cause=Cause.BUDGET, message=self._message, since=time.time()
        )
        self._core.spawn(self._register.keep(parking))
        self._register.add(parking)
        return parking.key

    def _lift(self, key: Key, keep: tuple[Cause, ...] = ()) -> bool:
        lifted = self._register.drop(key, keep)
        self._register.lift(lifted)
        return bool(lifted)
