"""The register: what is parked, as the store has it for the next daemon."""

from __future__ import annotations

import asyncio
from functools import partial

from batchd.daemon.core import Core
from batchd.lifecycle.holds import Key
from batchd.records import Parking


class Register:
    """Writes down what the lifecycle's holds say, in their order."""

    def __init__(self, core: Core) -> None:
        self._core = core
        #: Held over each note in the store, tries included: on a full disk, a resume must not overtake its pause.
        self._turn = asyncio.Lock()

    async def keep(self, parking: Parking) -> None:
        """Note a parking."""
        async with self._turn:
            await self._keep(parking)

    async def forget(self, *keys: Key) -> None:
        """Note that these wait no longer, or for fewer causes."""
        core = self._core
        async with self._turn:
            await asyncio.gather(
                *(core.durable(partial(core.store.unpark, scope, name)) for scope, name in keys)
            )
            for key in keys:
                for parking in tuple(core.lifecycle.holds.causes(key).values()):
                    await self._keep(parking)

    async def _keep(self, parking: Parking) -> None:
        await self._core.durable(partial(self._core.store.park, parking))
