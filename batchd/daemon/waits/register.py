"""What is parked, as the store has it for the next daemon."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

from batchd.daemon.writes import Writes
from batchd.lifecycle import Lifecycle
from batchd.lifecycle.holds import Key
from batchd.records import Parking
from batchd.store import Store


@dataclass(slots=True, eq=False, repr=False)
class Register:
    """Writes the lifecycle's holds into the store, in their order."""

    _lifecycle: Lifecycle
    _store: Store
    _writes: Writes
    #: Held over each note in the store, tries included:
    #: on a full disk, a resume must not overtake its pause.
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def keep(self, parking: Parking) -> None:
        """Note a parking."""
        async with self._turn:
            await self._keep(parking)

    async def forget(self, *keys: Key) -> None:
        """Note that these wait no longer, or for fewer causes."""
        async with self._turn:
            await asyncio.gather(
                *(
                    self._writes.durable(partial(self._store.unpark, scope, name))
                    for scope, name in keys
                )
            )
            for key in keys:
                for parking in tuple(self._lifecycle.holds.causes(key).values()):
                    await self._keep(parking)

    async def _keep(self, parking: Parking) -> None:
        await self._writes.durable(partial(self._store.park, parking))
