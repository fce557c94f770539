"""The watch over free room: `status` names a disk that is full, read-only or gone, or hangs,
before a task, an order or a dropped file meets it.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from batchd import free_room, pauses
from batchd.actions import Action
from batchd.daemon.current import CurrentConfig
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.troubles import Tries, TroubleLog, TroubleSubject
from batchd.spool.outbox import StrangeOutboxError

#: Between two looks at the outbox, before results are to go there.
_OUTBOX_LOOK_S = 2.0
#: The same for the others, which little is written to at a time.
_LOOK_S = 5.0
_EVERYTHING = TroubleSubject()


async def outbox(current: CurrentConfig, outboxes: Outboxes, troubles: TroubleLog) -> None:
    """Watch the outbox for ever: a reload may change which one that is."""
    with troubles.trying(Action.OUTBOX_TROUBLE) as tries:
        while True:
            folder = current.config.paths.outbox
            room = partial(free_room.insist, folder, free_room.OUTBOX)
            look = outboxes.at_home(room, folder)
            await _note(tries, outboxes.answered(look, folder), TroubleSubject(outbox=folder))
            await pauses.pause(_OUTBOX_LOOK_S)


async def state(current: CurrentConfig, troubles: TroubleLog) -> None:
    """Watch the state directory for ever."""
    folder = current.config.paths.state
    look = partial(free_room.insist, folder, free_room.ENDS)
    await _watch(troubles, Action.STORE_TROUBLE, look)


async def inbox(current: CurrentConfig, threads: Executor | None, troubles: TroubleLog) -> None:
    """Watch the inbox for ever, where it is on another disk than the state directory:
    else what is said of that is enough. The outbox is not looked at here: it may hang.
    """
    folder, other = Path(current.config.paths.inbox), Path(current.config.paths.state)

    def look() -> None:
        if folder.stat().st_dev != other.stat().st_dev:
            free_room.insist(str(folder), free_room.INBOX)

    await _watch(troubles, Action.INBOX_TROUBLE, look, threads)


async def _watch(
    troubles: TroubleLog,
    action: Action,
    look: Callable[[], None],
    threads: Executor | None = None,
) -> None:
    loop = asyncio.get_running_loop()
    with troubles.trying(action) as tries:
        while True:
            await _note(tries, loop.run_in_executor(threads, look))
            await pauses.pause(_LOOK_S)


async def _note(
    tries: Tries, look: Awaitable[None], concerned: TroubleSubject = _EVERYTHING
) -> None:
    """Keep a trouble open for as long as a disk is full, read-only, or another one.

    Other errors are left to the work that meets them.
    """
    try:
        await look
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EROFS} or isinstance(error, StrangeOutboxError):
            tries.failed(error, concerned)
            return
    tries.worked()
