"""The threads of a process, and the memory that they share.

Those that its loop hands blocking work to are all started at once. Where processes run out later,
as in a unit whose tasks a command has used up, no thread could be started any more: what needs one
would break, in the daemon and in every worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchd import pauses

#: Of the loop: as many as the standard library would start in time.
_COUNT = min(32, (os.cpu_count() or 1) + 4)
_START_S = 30.0
#: How often memory is given back: to look for it takes some milliseconds.
EVERY_S = 15.0
#: See malloc.h. Of the C libraries only glibc has this, and ``malloc_trim``.
_M_ARENA_MAX = -8


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` as ``asyncio.run`` does, and end in peace
    where there is no thread left to end the others with.
    """
    runner = asyncio.Runner()
    try:
        runner.run(main)
    finally:
        with contextlib.suppress(RuntimeError):
            runner.close()


def start() -> None:
    """Give the running loop its threads. Raises ``RuntimeError`` where there are not enough."""
    _share_heap()
    executor = ThreadPoolExecutor(_COUNT)
    # A thread that waits here leaves the next job to a new one.
    barrier = threading.Barrier(_COUNT + 1)
    try:
        for _ in range(_COUNT):
            executor.submit(barrier.wait, _START_S)
        barrier.wait(_START_S)
    except RuntimeError:  # a broken barrier is one too
        barrier.abort()
        executor.shutdown(wait=False)
        raise
    asyncio.get_running_loop().set_default_executor(executor)


def _share_heap() -> None:
    """Give all threads that start from now on one heap.

    Each has its own otherwise, and keeps up to two megabytes there of the most that it ever needed,
    which no trimming gives back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


async def give_back() -> None:
    """Give back what is not in use any more, for ever:
    what a burst of answers took, which may be as much as is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await pauses.pause(EVERY_S)
        if trim is not None:
            trim(0)
