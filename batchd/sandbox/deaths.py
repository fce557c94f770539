"""The end of a child process: seen by a descriptor of it, and where there is none, by looking."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

#: How long the death of a killed process may take (seconds); only a stuck file system needs it.
DYING_S = 10.0
_POLL_S = 0.001
_LOOK_S = 0.02


def reaped(pid: int) -> int:
    """Wait for a child that is dead, and return how it ended, as ``subprocess`` has it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])


def running(kind: int, number: int, options: int = 0) -> bool | None:
    """Return whether a child of this process, or of its group, runs; one that does not is reaped.

    None: there is none.
    """
    try:
        return os.waitid(kind, number, os.WEXITED | os.WNOHANG | options) is None
    except ChildProcessError:
        return None


@contextlib.contextmanager
def ending(pid: int) -> Iterator[asyncio.Future[None]]:
    """Give a future that is done when a child, which was not waited for, has ended."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        look = loop.create_task(_looked_at(pid, ended))
        try:
            yield ended
        finally:
            look.cancel()
        return
    loop.add_reader(descriptor, _settle, ended)
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def readable(descriptor: int) -> None:
    """Wait until something can be read, or never will be."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def _looked_at(pid: int, ended: asyncio.Future[None]) -> None:
    """Look at a child now and then: there is no descriptor left to see it by."""
    while running(os.P_PID, pid, os.WNOWAIT):  # noqa: ASYNC110 (a process sets no event)
        await asyncio.sleep(_LOOK_S)
    _settle(ended)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def dead(pid: int) -> bool:
    """Wait for the death of a killed child, and return whether this was cancelled meanwhile."""
    if not running(os.P_PID, pid, os.WNOWAIT):
        return False
    clock = asyncio.get_running_loop().time
    deadline = clock() + DYING_S
    cancelled = False
    with ending(pid) as ended:
        while (left := deadline - clock()) > 0 and running(os.P_PID, pid, os.WNOWAIT):
            try:
                if ended.done():  # dead, but a debugger that traces it learns it first
                    await asyncio.sleep(_POLL_S)
                else:
                    await asyncio.wait((ended,), timeout=left)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled
