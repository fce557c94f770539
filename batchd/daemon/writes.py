"""Writes to the store: of the daemon's own, which wait for a disk, and of orders, which do not;
and the upkeep of the state directory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from batchd import pauses
from batchd.control.socket_server import Server
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.troubles import TROUBLE_S, TroubleLog, refused
from batchd.errors import (
    DamagedStoreError,
    NotPossibleError,
    StaleAttemptError,
    StoreError,
    UsedNameError,
)
from batchd.free_room import STATE, NeededRoom
from batchd.log import Action
from batchd.store import operations
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

P = ParamSpec("P")
T = TypeVar("T")

_LOOK_S = 1.0
_PRUNE_S = 600.0
_DAY_S = 86400.0


class DaemonStore(Store):
    """The store where it may be full, slow or gone: the daemon's own writes wait for the disk,
    those of orders do not.
    """

    def __init__(self, path: Path, troubles: TroubleLog) -> None:
        super().__init__(path)
        self.troubles = troubles

    async def write(
        self,
        work: Callable[Concatenate[TaskTransaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Carry out an operation as ``durable`` does."""
        return await self.durable(partial(super().write, work, *args, **kwargs))

    async def order(
        self,
        work: Callable[Concatenate[TaskTransaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Carry out an operation as ``ordered`` does."""
        return await self.ordered(partial(super().write, work, *args, **kwargs))

    async def durable(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write, again and again where the disk takes nothing: what waits is kept.

        Raises ``StaleAttemptError``, ``UsedNameError`` and ``DamagedStoreError``,
        which no waiting repairs.
        """
        with self.troubles.trying(Action.STORE_TROUBLE) as tries:
            while True:
                try:
                    return await write()
                except (StaleAttemptError, DamagedStoreError, UsedNameError):
                    raise
                except StoreError as error:
                    tries.failed(error)
                    await asyncio.sleep(TROUBLE_S)

    async def ordered(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write what an order brings about, once: where a disk refuses it, so does this, at once.

        Raises ``NotPossibleError``, with the cause and the fix,
        and what no waiting repairs, as ``durable`` does.
        """
        try:
            return await write()
        except (StaleAttemptError, DamagedStoreError, UsedNameError):
            raise
        except (StoreError, OSError) as error:
            raise NotPossibleError(f"the order is not carried out: {refused(error)}") from None

    async def ready(self, needed: NeededRoom | None = STATE) -> None:
        """Return if an order can be carried out:
        one that waits for a disk would surprise who has given up on it.

        ``needed``: the room on the disk; None: it is urgent, and carried out on a full disk, too,
        as long as the store has kept room. Raises ``NotPossibleError``.
        """
        await self.ordered(partial(super().ready, needed))


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


async def tidy(current: CurrentConfig, store: DaemonStore) -> None:
    """Drop what is not needed any more, for ever;
    that takes minutes where there is much, and waits where the disk is full.
    """
    now = steady_clock()
    while True:
        before = now() - current.config.store.retention_days * _DAY_S
        while await store.write(operations.prune, before):
            pass
        await asyncio.sleep(_PRUNE_S)


def steady_clock() -> Callable[[], float]:
    """Return a clock, in seconds since the epoch, that goes
    on from now however the system's is set ahead later.

    For what is dropped for good after a while: a clock that is a year ahead for a minute must not
    drop it. One that is set back counts, and so does the time that a machine sleeps.
    """
    begun = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: min(time.time(), begun + time.clock_gettime(time.CLOCK_BOOTTIME))
