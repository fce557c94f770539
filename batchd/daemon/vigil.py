"""The state directory, watched: what the daemon works with may be taken from under it."""

from __future__ import annotations

import asyncio

from batchd.control import Server
from batchd.daemon.core import Core
from batchd.log import Action

_LOOK_S = 1.0


async def keep(core: Core, server: Server) -> None:
    """Look for ever: a lost store ends the daemon, a lost socket is made again. Raises ``DamagedStoreError``."""
    with core.troubles.trying(Action.CONTROL_TROUBLE) as tries:
        while True:
            await asyncio.sleep(_LOOK_S)
            await core.store.look()
            try:
                await server.look()
            except OSError as error:
                tries.failed(error)
            else:
                tries.worked()
