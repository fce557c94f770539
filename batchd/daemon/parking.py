"""What waits, and why: for a provider, for tomorrow's money, or because somebody paused it.

The governor finds outages, people pause things; here both become what the schedule may start,
what the store remembers over a restart, and what goes on once the cause is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.governor import Park
from batchd.log import Action
from batchd.records import Cause, Parking, Reason, Ref, Scope, Status
from batchd.store import QueuedTask

_LOOK_S = 1.0
#: Parkings whose end is noted in one go.
_CHUNK = 1000


class ParkingLot:
    """Everything that is parked; the governor's ``Watcher``."""

    def __init__(self, core: Core, batches: Batches) -> None:
        self._core = core
        self._batches = batches
        #: By what waits: one parking for each cause.
        self._parkings: dict[tuple[Scope, str], dict[Cause, Parking]] = {}
        #: Tasks with the status ``parked``: they have begun, and gave their slot back.
        self._given_back: dict[Ref, None] = {}
        #: By provider: tasks that the schedule must not start for its sake alone. They wait for it
        #: although it is not their own, as for a judge's, or it failed on them while others may fare better.
        self._held: dict[str, dict[Ref, None]] = {}
        #: By half-open provider: the task that tries it; None while there is none.
        self._trials: dict[str, Ref | None] = {}
        #: The day and its budget when the money was spent.
        self._spent_on: tuple[int, float] | None = None
        #: Set by the dispatcher: has a running task give its slot back.
        self.halt: Callable[[Ref, str], None] = _nothing
        #: Set by the daemon: reads the keys again.
        self.read_keys: Callable[[], None] = lambda: None
        core.governor.outages.watcher = self

    @property
    def parkings(self) -> tuple[Parking, ...]:
        """All that is parked, oldest first."""
        every = (p for causes in self._parkings.values() for p in causes.values())
        return tuple(sorted(every, key=lambda parking: parking.since))

    @property
    def stopped(self) -> bool:
        """Whether nothing at all may start."""
        return (Scope.ALL, "") in self._parkings or (Scope.DAY, "") in self._parkings

    # What people want

    async def park(self, parking: Parking) -> int:
        """Pause something, durably; return how many tasks that have not ended it concerns."""
        await self._core.durable(partial(self._core.store.park, parking))
        self._apply(parking)
        self._core.log.info(
            Action.PAUSED, scope=parking.scope, name=parking.name, message=parking.message
        )
        return sum(1 for _ in self._concerned(parking.scope, parking.name))

    async def resume(self, *wanted: tuple[Scope, str]) -> int:
        """Let these go on, whatever they wait for; return how many of them were parked.

        A provider that is parked is tried by one call first, with its key read again.
        """
        parked, lifted = 0, []
        for scope, name in wanted:
            causes = dict(self._parkings.get((scope, name), {}))
            parked += bool(causes)
            outage = [cause for cause in causes if scope is Scope.PROVIDER and cause.reason]
            if outage:
                self.read_keys()
                self._core.governor.outages.retry(name)
            if self._lift(scope, name, keep=outage):
                lifted.append((scope, name))
        # Together: a restore may have parked tasks by the ten thousand.
        for start in range(0, len(lifted), _CHUNK):
            await self._forget(*lifted[start : start + _CHUNK])
        return parked

    def restore(self, parkings: Iterable[Parking], queued: Iterable[QueuedTask]) -> None:
        """Take up what was parked when the last daemon ended."""
        for parking in parkings:
            self._apply(parking)
            if parking.scope is Scope.PROVIDER and parking.cause.reason:
                outages = self._core.governor.outages
                outages.restore(parking.name, parking.cause, parking.message)
        self._given_back = {q.ref: None for q in queued if q.status is Status.PARKED}
        self._core.spawn(self._requeue())

    # What the dispatcher asks and tells

    def next_trial(self, *, alone: bool) -> Ref | None:
        """Return a task to start although its provider is parked, to see how that does.

        ``alone``: one that must run in a process of its own.
        """
        schedule = self._core.schedule
        for name, trying in self._trials.items():
            if trying is None and not self._paused(name):
                ref = schedule.take_suspect(name) if alone else self._next_of(name)
                if ref is not None:
                    self._trials[name] = ref
                    return ref
        return None

    def gave_back(self, ref: Ref, park: Park | None) -> None:
        """Queue a task again that is parked. ``park``: what its call met."""
        core, provider = self._core, self._core.schedule.provider(ref)
        self._given_back[ref] = None
        if park is not None and park.scope is Scope.PROVIDER and self._parked(park):
            others_first = park.culprit and park.cause is Cause.DOWN
            if park.name != provider or others_first:
                self._held.setdefault(park.name, {})[ref] = None
                core.schedule.park(ref)
        core.schedule.release(ref)
        if not self._waits(ref, provider):
            core.spawn(self._requeue())

    def left(self, ref: Ref) -> None:
        """Note that nobody works on a task any more: if it tried a provider, another one may."""
        for name, trying in self._trials.items():
            if trying == ref:
                self._trials[name] = None
                self._core.wake()

    # What the governor tells

    def parked(self, provider: str, cause: Cause, message: str) -> None:
        """Park a provider's tasks."""
        self._trials.pop(provider, None)
        how = f"mend it, then `batchd resume --provider {provider}`; it is also tried by itself"
        self._core.log.warning(
            Action.PROVIDER_PARKED,
            provider=provider,
            cause=cause,
            message=message,
            how_to_go_on=how,
        )
        known = self._parkings.get((Scope.PROVIDER, provider), {})
        since = min((p.since for c, p in known.items() if c.reason), default=time.time())
        parking = Parking(
            scope=Scope.PROVIDER, name=provider, cause=cause, message=message, since=since
        )
        self._park_now(parking)

    def half_opened(self, provider: str) -> None:
        """Have one task try a parked provider."""
        if (Scope.PROVIDER, provider) in self._parkings:
            self.read_keys()
            self._trials[provider] = None
            self._core.wake()

    def closed(self, provider: str) -> None:
        """Let a provider's tasks go on."""
        self._trials.pop(provider, None)
        if self._lift(Scope.PROVIDER, provider, keep=(Cause.PAUSED,)):
            self._core.spawn(self._forget((Scope.PROVIDER, provider)))

    def gave_up(self, provider: str, cause: Cause, message: str) -> None:
        """End the tasks of a provider."""
        self._trials.pop(provider, None)
        self._core.spawn(self._end_all(provider, cause.reason or Reason.INTERNAL, message))

    def day_spent(self, message: str) -> None:
        """Park everything until there is money again."""
        self._spent_on = self._core.governor.money.today()
        if (Scope.DAY, "") not in self._parkings:
            self._core.log.warning(Action.BUDGET_REACHED, message=message)
            self._park_now(
                Parking(scope=Scope.DAY, cause=Cause.BUDGET, message=message, since=time.time())
            )

    # What the clock does

    async def watch(self) -> None:
        """Look at the time, for ever: a new day has new money, and some waits are over."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._look()

    def _look(self) -> None:
        now, longest = time.time(), self._core.config.governor.max_parked_s
        if (
            Scope.DAY,
            "",
        ) in self._parkings and self._spent_on != self._core.governor.money.today():
            self._lift(Scope.DAY, "")
            self._core.spawn(self._forget((Scope.DAY, "")))
        for parking in self.parkings:
            if parking.cause.reason and now - parking.since > longest:
                self._core.governor.outages.give_up(parking.name)

    # How it is done

    def _apply(self, parking: Parking) -> None:
        """Keep what a parking concerns from being started, and halt what runs."""
        core, key = self._core, (parking.scope, parking.name)
        causes = self._parkings.get(key, {})
        new = not causes
        if parking.cause.reason:
            # A provider has one outage at a time.
            causes = {cause: known for cause, known in causes.items() if not cause.reason}
        self._parkings[key] = {**causes, parking.cause: parking}
        if parking.scope is Scope.PROVIDER:
            core.schedule.park_provider(parking.name)
            if not parking.cause.reason:
                core.governor.outages.pause(parking.name)
        elif parking.scope in {Scope.BATCH, Scope.TASK} and new:
            for ref in self._concerned(*key):
                core.schedule.park(ref)
        if not parking.cause.reason and parking.scope is not Scope.DAY:
            for ref in self._concerned(*key):
                self.halt(ref, parking.message)

    def _park_now(self, parking: Parking) -> None:
        self._apply(parking)
        self._core.spawn(self._keep(parking))

    async def _keep(self, parking: Parking) -> None:
        await self._core.durable(partial(self._core.store.park, parking))

    def _lift(self, scope: Scope, name: str, keep: Iterable[Cause] = ()) -> bool:
        """Take a parking back, those apart whose cause is in ``keep``; then call ``_forget``.

        Return whether there was something to take back.
        """
        core = self._core
        causes = self._parkings.pop((scope, name), {})
        kept = {cause: causes[cause] for cause in keep if cause in causes}
        if kept:
            self._parkings[scope, name] = kept
        if len(kept) == len(causes):
            return False
        if scope is Scope.PROVIDER:
            if all(cause.reason for cause in kept):
                core.governor.outages.unpause(name)
            if not kept:
                core.schedule.unpark_provider(name)
                self._release_held(name)
        elif scope in {Scope.BATCH, Scope.TASK}:
            for ref in self._concerned(scope, name):
                core.schedule.unpark(ref)
        core.log.info(Action.RESUMED, scope=scope, name=name)
        core.wake()
        return True

    async def _forget(self, *keys: tuple[Scope, str]) -> None:
        """Note in the store that something is not parked any more, or for fewer causes."""
        core = self._core
        await asyncio.gather(
            *(core.durable(partial(core.store.unpark, scope, name)) for scope, name in keys)
        )
        for key in keys:
            for parking in tuple(self._parkings.get(key, {}).values()):
                await self._keep(parking)
        await self._requeue()

    async def _requeue(self) -> None:
        """Show tasks that wait for nothing any more as queued."""
        core, schedule = self._core, self._core.schedule
        free = [r for r in self._given_back if not self._waits(r, schedule.provider(r))]
        for ref in free:
            del self._given_back[ref]
        if free:
            await core.durable(partial(core.store.requeue, free))

    async def _end_all(self, provider: str, reason: Reason, message: str) -> None:
        """End every task that waits for a provider, then forget that it was parked."""
        core = self._core
        refs = [*core.schedule.refs(provider, waiting=True), *self._held.pop(provider, ())]
        refs = [ref for ref in dict.fromkeys(refs) if ref in core.schedule]
        for ref in refs:
            core.schedule.remove(ref)
        for ref in refs:
            await self._batches.finish(ref, Status.ERROR, reason, message)
        core.governor.outages.close(provider)
        if self._lift(Scope.PROVIDER, provider, keep=(Cause.PAUSED,)):
            await self._forget((Scope.PROVIDER, provider))

    def _concerned(self, scope: Scope, name: str) -> Iterator[Ref]:
        """Yield the tasks of a scope that have not ended."""
        schedule = self._core.schedule
        if scope is Scope.TASK:
            refs = [Ref(*name.split("/", 1))]
        elif scope is Scope.BATCH:
            refs = [queued.ref for queued in self._core.store.queued(name)]
        else:
            refs = schedule.refs(name if scope is Scope.PROVIDER else "")
        return (ref for ref in refs if ref in schedule)

    def _next_of(self, provider: str) -> Ref | None:
        """Return a task that may try a provider; those that it failed on come last."""
        schedule = self._core.schedule
        ref = schedule.take_of(provider)
        if ref is None and self._held.get(provider):
            self._release_held(provider)
            ref = schedule.take_of(provider)
        return ref

    def _release_held(self, provider: str) -> None:
        for ref in self._held.pop(provider, ()):
            self._core.schedule.unpark(ref)

    def _paused(self, provider: str) -> bool:
        causes = self._parkings.get((Scope.PROVIDER, provider), {})
        return any(not cause.reason for cause in causes)

    def _parked(self, park: Park) -> bool:
        return (park.scope, park.name) in self._parkings

    def _waits(self, ref: Ref, provider: str) -> bool:
        """Whether a task waits for anything that is parked."""
        keys = ((Scope.PROVIDER, provider), (Scope.BATCH, ref.batch), (Scope.TASK, str(ref)))
        held = any(ref in refs for refs in self._held.values())
        return self.stopped or held or any(key in self._parkings for key in keys)


def _nothing(_ref: Ref, _message: str) -> None:
    """Stand in until the dispatcher is there."""
