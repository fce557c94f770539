"""The vigil: signs of life for systemd, the removal of what is too old, and the state directory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from batchd import pauses
from batchd.actions import Action
from batchd.control.socket_server import Server
from batchd.daemon.current import CurrentConfig
from batchd.daemon.systemd import SystemdNotifier
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.writes import Writes
from batchd.store import Store

_LOOK_S = 1.0
_PRUNE_S = 600.0
_DAY_S = 86400.0


async def keep(store: Store, troubles: TroubleLog, server: Server) -> None:
    """Watch the state directory, from under which all may be taken.

    A lost socket is made again; a lost store ends the daemon: raises ``DamagedStoreError``.
    """
    with troubles.trying(Action.CONTROL_TROUBLE) as tries:
        while True:
            await pauses.pause(_LOOK_S)
            await store.look()
            try:
                await server.look()
            except OSError as error:
                tries.failed(error)
            else:
                tries.worked()


async def feed(systemd: SystemdNotifier) -> None:
    """Feed systemd's watchdog for ever: nothing else is waited for here."""
    while True:
        systemd.alive()
        await asyncio.sleep(systemd.every_s)


async def tidy(current: CurrentConfig, store: Store, writes: Writes) -> None:
    """Drop what is not needed any more, for ever;
    that takes minutes where there is much, and waits where the disk is full.
    """
    now = steady_clock()
    while True:
        keep_s = current.config.store.retention_days * _DAY_S
        await writes.durable(partial(store.prune_before, now() - keep_s))
        await asyncio.sleep(_PRUNE_S)


def steady_clock() -> Callable[[], float]:
    """Return a clock, in seconds since the epoch, that goes
    on from now however the system's is set ahead later.

    For what is dropped for good after a while: a clock that is a year ahead for a minute must not
    drop it. One that is set back counts, and so does the time that a machine sleeps.
    """
    begun = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: min(time.time(), begun + time.clock_gettime(time.CLOCK_BOOTTIME))
