"""Gates: what keeps tasks from starting whose turn it would be, each for a reason of its own.

A batch has as many at work as it may, no worker has room that suits, a service tier is parked, a
batch comes after others; and too little of the day's money is left.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from batchd import terms
from batchd.daemon import main_loop
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.listeners import Listener
from batchd.daemon.publisher import Publisher
from batchd.daemon.writes import DaemonStore
from batchd.errors import InputError
from batchd.governor import Governor, WantedCall
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.effects import End
from batchd.lifecycle.holds import DAY, Key
from batchd.lifecycle.queue import rank_of
from batchd.log import Action, get_logger
from batchd.pool.remote import Trouble, troubled
from batchd.pool.supervisor import Supervisor
from batchd.records import (
    Batch,
    Cause,
    HoldKey,
    Parking,
    Place,
    Reason,
    Ref,
    Scope,
    Task,
    TaskStatus,
    sold_as,
    untiered,
)
from batchd.store import lookups

#: Of those that nothing else keeps, the first that were kept: the best of so many goes on.
_LOOKED_AT = 1000
#: So many of one kind are let go on at a time.
_AT_ONCE = 16


class Gate(Protocol):
    """Keeps tasks from starting."""

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just drawn, if it may not start; return whether that is so."""


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
        kept, entries = self._lifecycle.holds.kept(hold), self._lifecycle.entries
        free = (ref for ref in kept if self._waits_for(ref, (hold,)))
        some = islice(free, max(count, _LOOKED_AT))
        return heapq.nsmallest(count, some, key=lambda ref: rank_of(entries[ref]))

    def _waits_for(self, ref: Ref, holds: tuple[HoldKey, ...]) -> bool:
        """Whether a task waits for a slot, and for these holds, and for nothing else of its own."""
        entry = self._lifecycle.entries.get(ref)
        return entry is not None and entry.phase.waits and entry.holds == holds

    def _at_work(self, name: str) -> int:
        return sum(active.ref.batch == name for active in self._attempts.active)


def _enough(batch: str) -> HoldKey:
    """Return what keeps more tasks of a batch from starting: enough of them are at work."""
    return HoldKey(Scope.BATCH, batch, Cause.CONCURRENCY)


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
    missing: Trouble | None = None

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
        more, entries = False, self._lifecycle.entries
        for place in [*self._kept]:
            kept = self._lifecycle.holds.kept(_room_for(place))
            if not kept:
                del self._kept[place]
            elif self._pool.has(place):
                # A suspect waits for a process of its own,
                # which is made room for where it waits in the queue.
                free = self._pool.fits(place)
                ready = kept if free else filter(self._lifecycle.suspect, kept)
                best = heapq.nsmallest(_AT_ONCE, ready, key=lambda ref: rank_of(entries[ref]))
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
        said = f"tasks need {lacking[0]}, and no worker has that: {fix}"
        self.missing = troubled(self.missing, said, Action.WORKER_TROUBLE)


def _room_for(place: Place) -> HoldKey:
    """Return what keeps tasks that ask for it."""
    return HoldKey(Scope.ALL, str(place), Cause.NEEDS)


@dataclass(slots=True, eq=False, repr=False)
class Tiers:
    """Keeps tasks whose service tier is parked: which one they ask for, their text alone says."""

    _lifecycle: Lifecycle
    _store: DaemonStore

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken, if its tier is parked; return whether it is."""
        parked = self._lifecycle.queue.parked
        if all(name == untiered(name) for name in parked) or not self._lifecycle.begins(ref):
            return False
        task = self._store.read(lookups.find_task, ref)
        name = sold_as(task.model, task.service_tier)
        if name not in parked or task.tier_fallback_s is not None:
            return False
        self._lifecycle.sell_as(ref, name)
        return True


@dataclass(slots=True, eq=False, repr=False)
class Predecessors(Listener):
    """Which open batches wait for which."""

    _lifecycle: Lifecycle
    _store: DaemonStore
    _batches: OpenBatches
    _publisher: Publisher
    #: By the earlier batch: those that come after it.
    _after: dict[str, list[str]] = field(default_factory=dict)

    def restore(self, batches: Iterable[Batch]) -> None:
        """Hold those of an earlier daemon's batches that wait."""
        for batch in batches:
            self._look(batch)

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Hold a batch that waits, before any of its tasks starts."""
        self._look(batch)

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Let those go on, or end them, that came after a batch."""
        for name in self._after.pop(batch.name, ()):
            if not self._completed(batch.name):
                self._end(name, batch.name)
        if self._lifecycle.lift(_until(batch.name)):
            main_loop.wake()

    def _look(self, batch: Batch) -> None:
        for earlier in batch.after_batches:
            if self._store.read(lookups.problems, earlier):
                self._end(batch.name, earlier)  # a refused file: nothing of it ever completes
            elif self._batches.get(earlier) is not None or self._store.read(
                lookups.unfinished, earlier
            ):
                self._after.setdefault(earlier, []).append(batch.name)
                for ref in self._lifecycle.of(batch.name):
                    self._lifecycle.take(inputs.Held(ref, _until(earlier)))
            elif not self._completed(earlier):
                self._end(batch.name, earlier)

    def _completed(self, name: str) -> bool:
        """Whether every task of a batch that has ended did: a refused file has none."""
        tasks = self._store.read(lookups.tasks, name).values()
        return bool(tasks) and all(task.status is TaskStatus.COMPLETED for task in tasks)

    def _end(self, name: str, earlier: str) -> None:
        """End what is left of a batch, as tasks end that come after one that failed."""
        message = f"batch {earlier}, which it comes after, has not completed"
        refs = self._lifecycle.of(name)
        ends = (End(ref, TaskStatus.CANCELLED, Reason.DEPENDENCY, message) for ref in refs)
        main_loop.spawn(self._publisher.give_up(ends))


def _until(batch: str) -> HoldKey:
    """Return what keeps the tasks of batches that come after another."""
    return HoldKey(Scope.BATCH, batch, Cause.DEPENDENCY)


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
            setup = terms.setup(task.model, self._current.config)
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
    _first_calls: FirstCalls
    #: Parks something now, and notes that something is not parked any more; the store learns of it.
    _park_now: Callable[[Parking], None]
    _forget: Callable[[Key], Coroutine[None, None, None]]
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
            main_loop.spawn(self._forget(DAY))

    def nothing_goes_on(self) -> None:
        """Report that all that waits waits for the day's money, if it does: once."""
        if not self._lifecycle.holds.keeps(_MONEY_HOLD) or DAY in self._lifecycle.holds:
            return
        self._park(Scope.DAY)
        if not self._announced:
            self._announced = True
            get_logger().warning(Action.BUDGET_REACHED, message=self._message)
            main_loop.tell(lambda listener: listener.budget_reached("", self._message))

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
        self._park_now(
            Parking(
                scope=scope, name=name, cause=Cause.BUDGET, message=self._message, since=time.time()
            )
        )
