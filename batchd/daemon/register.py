"""The register of what is parked: in memory for those who ask, in the store for the next daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

from batchd.daemon.core import Core
from batchd.records import Cause, Parking, Ref, Scope

#: What waits: its scope and its name.
Key: TypeAlias = tuple[Scope, str]
ALL: Key = (Scope.ALL, "")
DAY: Key = (Scope.DAY, "")


class Register:
    """What is parked, by what waits, and for which causes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._parkings: dict[Key, dict[Cause, Parking]] = {}
        #: Held over each note in the store, tries included: on a full disk, a resume must not overtake its pause.
        self._turn = asyncio.Lock()

    def __contains__(self, key: Key) -> bool:
        return key in self._parkings

    @property
    def all(self) -> tuple[Parking, ...]:
        """All that is parked, oldest first."""
        every = (p for causes in self._parkings.values() for p in causes.values())
        return tuple(sorted(every, key=lambda parking: parking.since))

    @property
    def stopped(self) -> bool:
        """Whether nothing at all may start."""
        return ALL in self

    def paused(self, name: str) -> bool:
        """Whether somebody paused a provider, or a model, whatever else it waits for."""
        return any(not cause.reason for cause in self.causes((Scope.of(name), name)))

    def untried(self, name: str) -> bool:
        """Whether no task is to try a provider or a model now: it is paused, or its provider is parked."""
        provider = name.partition("/")[0]
        return self.paused(name) or (name != provider and (Scope.PROVIDER, provider) in self)

    def models(self, provider: str) -> list[str]:
        """Return the models of a provider that are parked, but not paused."""
        names = (name for scope, name in self._parkings if scope is Scope.MODEL)
        return [n for n in names if n.partition("/")[0] == provider and not self.paused(n)]

    def holds(self, ref: Ref, model: str) -> bool:
        """Whether a task of a model waits for anything that is parked."""
        sources = ((Scope.PROVIDER, model.partition("/")[0]), (Scope.MODEL, model))
        keys = (*sources, (Scope.BATCH, ref.batch), (Scope.TASK, str(ref)))
        return self.stopped or any(key in self for key in keys)

    def concerned(self, scope: Scope, name: str) -> Iterator[Ref]:
        """Yield the tasks of a scope that have not ended."""
        lifecycle = self._core.lifecycle
        if scope is Scope.TASK:
            refs = [Ref(*name.split("/", 1))]
        elif scope is Scope.BATCH:
            refs = [queued.ref for queued in self._core.store.queued(name)]
        else:
            refs = lifecycle.refs(name if scope.asked else "")
        return (ref for ref in refs if lifecycle.open(ref))

    def causes(self, key: Key) -> Mapping[Cause, Parking]:
        """Return why something waits; empty where it does not."""
        return self._parkings.get(key, {})

    def add(self, parking: Parking) -> None:
        """Enter a parking, in memory. See ``keep``."""
        key = (parking.scope, parking.name)
        causes = self._parkings.get(key, {})
        if parking.cause.reason:
            # A provider has one outage at a time.
            causes = {cause: known for cause, known in causes.items() if not cause.reason}
        self._parkings[key] = {**causes, parking.cause: parking}

    def drop(self, key: Key, keep: Iterable[Cause] = ()) -> tuple[Parking, ...]:
        """Strike something out, in memory, those causes apart that are in ``keep``; return what was there.

        See ``forget``.
        """
        causes = self._parkings.pop(key, {})
        kept = {cause: causes[cause] for cause in keep if cause in causes}
        if kept:
            self._parkings[key] = kept
        return tuple(parking for cause, parking in causes.items() if cause not in kept)

    def hold(self, parking: Parking) -> None:
        """Keep the tasks of a batch, or one task, from starting; what is asked is parked by its name."""
        if parking.scope in {Scope.BATCH, Scope.TASK}:
            for ref in self.concerned(parking.scope, parking.name):
                self._core.hold(ref, parking.key)

    def lift(self, parkings: Iterable[Parking]) -> None:
        """Take that back."""
        for parking in parkings:
            if parking.scope in {Scope.BATCH, Scope.TASK}:
                for ref in self.concerned(parking.scope, parking.name):
                    self._core.lift(ref, parking.key)

    async def keep(self, parking: Parking) -> None:
        """Note a parking in the store."""
        async with self._turn:
            await self._keep(parking)

    async def forget(self, *keys: Key) -> None:
        """Note in the store that these wait no longer, or for fewer causes."""
        core = self._core
        async with self._turn:
            await asyncio.gather(
                *(core.durable(partial(core.store.unpark, scope, name)) for scope, name in keys)
            )
            for key in keys:
                for parking in tuple(self.causes(key).values()):
                    await self._keep(parking)

    async def _keep(self, parking: Parking) -> None:
        await self._core.durable(partial(self._core.store.park, parking))
