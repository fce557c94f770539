"""Tasks that wait for the day's money, each by itself:
what costs less than is left goes on, and begins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from batchd import pricing
from batchd.daemon import main_loop
from batchd.daemon.listeners import Listener
from batchd.daemon.tuning import CurrentConfig
from batchd.daemon.writes import DaemonStore, Register
from batchd.errors import InputError
from batchd.governor import Governor, WantedCall
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.holds import DAY, Key
from batchd.log import Action, get_logger
from batchd.records import Cause, HoldKey, Parking, Ref, Scope, Task
from batchd.store import lookups

#: Most texts have more characters a token than the first, and fewer than the second.
_MIN_CHARS_PER_TOKEN, _MAX_CHARS_PER_TOKEN = 3, 6
#: No call is made that has room for less output; a small window leaves an eighth of it.
_LEAST_OUTPUT, _WINDOWS_SHARE = 256, 8


@dataclass(slots=True, eq=False, repr=False)
class FirstCalls:
    """Learns from some first calls what comes with each prompt:
    nothing is counted here, tokens are the workers' business.
    """

    _current: CurrentConfig
    _store: DaemonStore
    #: By what else is sent: the tokens beside the first prompt.
    _beside: dict[tuple[str, str, bool], int] = field(default_factory=dict)

    def learn(self, call: WantedCall) -> None:
        """Take a call that was asked for, if it is the first of its task."""
        store = self._store
        if store.read(lookups.task_money, call.ref).total:
            return
        task = store.read(lookups.find_task, call.ref)
        beside = max(0, call.input_tokens - len(task.first_prompt) // _MIN_CHARS_PER_TOKEN)
        key = _alike(task)
        self._beside[key] = min(beside, self._beside.get(key, beside))

    def least(self, ref: Ref) -> WantedCall | None:
        """Return the first call of a task as cheap as it may be; None where that cannot be said."""
        task = self._store.read(lookups.find_task, ref)
        try:
            setup = pricing.setup(task.model, self._current.config, self._current.prices)
        except InputError:
            return None
        output, window = task.limits.max_output_tokens, setup.context_window
        if window:
            output = min(output, max(_LEAST_OUTPUT, window // _WINDOWS_SHARE))
        beside = self._beside.get(_alike(task), 0)
        return WantedCall(
            ref=ref,
            model=task.model,
            price=setup.price,
            input_tokens=beside + len(task.first_prompt) // _MAX_CHARS_PER_TOKEN,
            max_output_tokens=output,
            tier=task.service_tier,
            fallback_s=task.tier_fallback_s,
        )


def _alike(task: Task) -> tuple[str, str, bool]:
    return task.model, task.system_prompt, bool(task.secrets)


_OTHERS = tuple(cause for cause in Cause if cause is not Cause.BUDGET)
#: Keeps all that wait for it; those whose call was turned away are parked as well. The day's own
#: parking has another key: it stands only while nothing else goes on.
_MONEY_HOLD = HoldKey(Scope.DAY, "left", Cause.BUDGET)


@dataclass(slots=True, eq=False, repr=False)
class MoneyWaits:
    """The waits for the day's money, since a call found too little;
    after a restart their calls ask again.

    A task whose call was turned away is parked. Others whose next call is too dear as well never
    get as far as that: they are kept from starting, for to start 100,000 tasks in vain takes hours.
    """

    _lifecycle: Lifecycle
    _governor: Governor
    _listeners: Sequence[Listener]
    _register: Register
    _first_calls: FirstCalls
    #: The day and its budget when the first call was turned away; None: there is money.
    _since: tuple[int, float] | None = None
    #: Set while some may wait, from when the first call was turned away.
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    #: What was said of the last call that was turned away.
    _message: str = ""
    #: Whether people know that nothing goes on.
    _announced: bool = False

    # What becomes of attempts

    def turned_away(self, ref: Ref, message: str) -> None:
        """Park a task by itself: the day has too little left for its next call,
        unless it is another day by now.
        """
        governor = self._governor
        call = governor.money.wanted.get(ref)
        if call is None or not governor.waits_for_day(call):
            return
        self._since = self._since or governor.money.today()
        self.begun.set()
        self._message = message
        self._first_calls.learn(call)
        self._park(Scope.TASK, str(ref))
        self._lifecycle.take(inputs.Held(ref, _MONEY_HOLD))

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if its next call is known to be too dear;
        return whether it is.
        """
        if self._since is None:
            return False
        governor = self._governor
        call = governor.money.wanted.get(ref)
        if call is None and self._lifecycle.begins(ref):
            call = self._first_calls.least(ref)
        if call is None or not governor.waits_for_day(call):
            return False
        self._lifecycle.take(inputs.Held(ref, _MONEY_HOLD))
        return True

    def something_goes_on(self) -> None:
        """Note that a task begins or goes on, or that none waits."""
        if self._lifecycle.resume(DAY):
            main_loop.spawn(self._register.forget(DAY))

    def nothing_goes_on(self) -> None:
        """Report that all that waits waits for the day's money, if it does: once."""
        if not self._lifecycle.holds.keeps(_MONEY_HOLD) or DAY in self._lifecycle.holds:
            return
        self._park(Scope.DAY)
        if not self._announced:
            self._announced = True
            get_logger().warning(Action.BUDGET_REACHED, message=self._message)
            for listener in self._listeners:
                listener.budget_reached("", self._message)

    def look(self) -> None:
        """See whether any task waits yet: one has ended."""
        if not self._lifecycle.holds.keeps(_MONEY_HOLD):
            self.something_goes_on()

    # How it goes on

    def over(self) -> bool:
        """Whether it is another day, or the day has a larger budget."""
        if self._since is None:
            return False
        (day, limit), (then, former) = self._governor.money.today(), self._since
        return day != then or not limit or limit > former

    def end(self) -> list[Key]:
        """Let all go on; return what the store need not remember any more.

        What is too dear again is kept as before.
        """
        keys = [(Scope.TASK, str(ref)) for ref in self._lifecycle.lift(_MONEY_HOLD)]
        lifted = [key for key in (DAY, *keys) if self._lifecycle.resume(key, _OTHERS)]
        tasks = len(lifted) - (DAY in lifted)
        get_logger().info(Action.RESUMED, scope=Scope.DAY, name="", tasks=tasks)
        self._since, self._announced = None, False
        self.begun.clear()
        main_loop.wake()
        return lifted

    def try_again(self, key: Key) -> list[Key]:
        """Let the call of one task ask for money again, or with ``DAY`` the calls of all, after
        an order.

        Return as ``end``.
        """
        wanted, lifecycle = self._governor.money.wanted, self._lifecycle
        if key == DAY:
            for ref in lifecycle.holds.kept(_MONEY_HOLD):
                wanted.pop(ref, None)
            return self.end()
        for ref in lifecycle.concerned(*key):
            wanted.pop(ref, None)
            lifecycle.take(inputs.Lifted(ref, _MONEY_HOLD))
        self.look()
        lifted = lifecycle.resume(key)
        main_loop.wake()
        return [key] if lifted else []

    def _park(self, scope: Scope, name: str = "") -> None:
        parking = Parking(
            scope=scope, name=name, cause=Cause.BUDGET, message=self._message, since=time.time()
        )
        self._lifecycle.park(parking)
        main_loop.spawn(self._register.keep(parking))
