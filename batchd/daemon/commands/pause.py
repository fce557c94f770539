"""``pause`` and ``resume``: everything, a provider, a batch, a task."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from batchd.control import Pause, Paused, Resume, ResumedScope, ShownParking
from batchd.control.requester import Requester
from batchd.daemon.commands import targets
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.tuning import CurrentConfig
from batchd.daemon.waits.circuits import Circuits
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.daemon.writes import DaemonStore
from batchd.errors import UsageError
from batchd.lifecycle import Lifecycle, is_of
from batchd.lifecycle.holds import ALL, DAY, Key
from batchd.records import Cause, Parking, Ref, Scope
from batchd.store import lookups

#: Tasks that are looked at in one go, before others get their turn.
_CHUNK = 200


@dataclass(slots=True, eq=False, repr=False)
class PauseHandler:
    """The handler of ``Pause`` and ``Resume``: has the parking lot park what people name,
    and lets it go on.
    """

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _batches: OpenBatches
    _lot: ParkingLot
    _circuits: Circuits

    async def pause(self, request: Pause, by: Requester) -> Paused:
        """Let nothing of a scope start, and have what runs give its slot back."""
        scope, name = self._scope(request.scope, request.name)
        message = request.message or "paused"
        parking = Parking(
            scope=scope, name=name, cause=Cause.PAUSED, message=message, since=time.time()
        )
        parked = await self._lot.park(parking, check=by.insist)
        judged = await self._judged(name) if scope.asked else 0
        return Paused(parked=parked + judged, judged=judged)

    async def resume(self, request: Resume, _by: Requester) -> ResumedScope:
        """Let a scope go on, whatever it waits for;
        without a scope, everything but what is uncertain.

        A task that may have been done already must be named. The answer says what is still
        ``held``, and by what.
        """
        self._circuits.catch_up()
        wanted, holders = self._wanted(request)
        resumed = await self._lot.resume(*sorted(wanted))
        left = [
            (parking, (parking.scope, parking.name)) for parking in self._lifecycle.holds.parkings
        ]
        # What is still parked although it was named: a provider must answer one call first; else,
        # as with a day's budget that is still spent, it was parked again at once.
        named = {key for _, key in left if key in wanted}
        trying = {name for scope, name in named if scope.asked}
        again = {key for key in named if not key[0].asked}
        return ResumedScope(
            resumed=resumed - len(again),
            trying=tuple(sorted(trying)),
            held=tuple(
                ShownParking.of(parking)
                for parking, key in left
                if key in again or (key not in wanted and (holders is None or key in holders))
            ),
        )

    def _wanted(self, request: Resume) -> tuple[set[Key], set[Key] | None]:
        """Return what is to go on, and what may hold it back all the same;
        None: whatever is parked.
        """
        parkings = self._lifecycle.holds.parkings
        if request.scope is None:
            return {(p.scope, p.name) for p in parkings if p.cause is not Cause.UNCERTAIN}, None
        scope, name = self._scope(request.scope, request.name)
        wanted = {(scope, name)}
        if scope is Scope.ALL:
            return wanted, None
        holders: set[Key] = {ALL, DAY}
        refs: list[Ref] = []
        if scope is Scope.PROVIDER:
            # Its models may be parked one by one.
            own = (p for p in parkings if p.scope is Scope.MODEL and is_of(p.name, name))
            wanted |= {(p.scope, p.name) for p in own}
        elif scope is Scope.MODEL:
            holders.add((Scope.PROVIDER, name.partition("/")[0]))
        elif scope is Scope.TASK:
            refs = [Ref(*name.split("/", 1))]
            holders.add((Scope.BATCH, refs[0].batch))
        elif scope is Scope.BATCH:
            # A batch's tasks may be parked one by one.
            own = (p for p in parkings if p.scope is Scope.TASK and p.name.startswith(f"{name}/"))
            wanted |= {(p.scope, p.name) for p in own}
            refs = self._lifecycle.concerned(scope, name)
        for ref in refs:
            holders.update(self._lifecycle.needs(ref))
        return wanted, holders

    async def _judged(self, name: str) -> int:
        """Count the tasks of others whose judge is at this provider, or this model:
        they work until they are judged.
        """
        if not is_of(self._current.config.evaluation.judge_model, name):
            return 0
        count = 0
        for place, ref in enumerate(self._lifecycle.refs()):
            if place % _CHUNK == 0:
                await asyncio.sleep(0)
            model = self._lifecycle.model(ref)
            if model and not is_of(model, name):
                count += self._store.read(lookups.find_task, ref).evaluator == "judge"
        return count

    def _scope(self, scope: Scope, name: str) -> tuple[Scope, str]:
        """Return scope and name as holds have them: no name for all and the day.

        Raises ``UsageError`` for a provider that is not known,
        and a batch or task that is not under way.
        """
        # What is parked can be named, also when the configuration has it no more.
        parked = (p.name.partition("/")[0] for p in self._lifecycle.holds.parkings if p.scope.asked)
        known = dict.fromkeys((*self._current.config.providers, *parked))
        provider, _, model = name.partition("/")
        if scope.asked and (scope is Scope.MODEL) != bool(model):
            raise UsageError(f"{name!r} is not a {scope}: name a model PROVIDER/MODEL")
        if scope.asked and provider not in known:
            raise UsageError(
                f"there is no provider {provider}; the known ones are {', '.join(known)}"
            )
        batch = name.partition("/")[0]
        if scope in {Scope.BATCH, Scope.TASK} and self._batches.get(batch) is None:
            if self._store.read(lookups.used, batch) and self._store.read(
                lookups.unfinished, batch
            ):
                raise targets.left_over(batch)
            raise UsageError(f"no {scope} {name} is under way: `batchd status` lists what there is")
        if scope is Scope.TASK and (
            "/" not in name or not self._lifecycle.open(Ref(*name.split("/", 1)))
        ):
            raise UsageError(f"no task {name} is under way")
        return scope, "" if scope in {Scope.ALL, Scope.DAY} else name
