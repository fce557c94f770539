"""The threads that a process's loop hands its blocking work to, all started at once.

Where processes run out later, as in a unit whose tasks a command has used up, no thread could be
started any more: what needs one would break, in the daemon and in every worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchd.pool import heap

#: As many as the standard library would start in time.
_COUNT = min(32, (os.cpu_count() or 1) + 4)
_START_S = 30.0


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
    heap.share()
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
