"""The threads of a process, and the memory that they share.

Those that its loop hands blocking work to are all started at once. Where processes run out later,
as in a unit whose tasks a command has used up, no thread could be started any more: what needs one
would break, in the daemon and in every worker. Each disk, which may hang, has its own beside them,
and the end of the process waits for none of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from batchd import pauses

P = ParamSpec("P")
T = TypeVar("T")

#: Of the loop: as many as the standard library would start in time.
_COUNT = min(32, (os.cpu_count() or 1) + 4)
_START_S = 30.0
#: Of one disk: what hangs in all of them would hang in more too.
_DISK_COUNT = 4
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


class DiskThreads(Executor):
    """The threads of one disk."""

    def __init__(self) -> None:
        """Start them. Raises ``RuntimeError`` where the system has none to give."""
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        for _ in range(_DISK_COUNT):
            # A thread of the standard library's pools would be waited for at the end:
            # for ever, on a disk that hangs.
            threading.Thread(target=self._work, name="disk", daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread of the disk."""
        future: Future[T] = Future()
        self._queue.put((future, partial(fn, *args, **kwargs)))
        return future

    def close(self) -> None:
        """End them, each once it has done what it does, without waiting for that."""
        for _ in range(_DISK_COUNT):
            self._queue.put(None)

    def _work(self) -> None:
        while job := self._queue.get():
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:  # noqa: BLE001 (the future passes it on)
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del future, work, job


class AllDiskThreads:
    """The threads of each disk that somebody writes to, by its path."""

    def __init__(self) -> None:
        self._known: dict[str, DiskThreads] = {}

    def at(self, path: str) -> DiskThreads:
        """Return those of a disk. Raises ``OSError`` where none can be started."""
        if path not in self._known:
            try:
                self._known[path] = DiskThreads()
            except RuntimeError as error:
                raise BlockingIOError(str(error)) from error
        return self._known[path]

    def close(self) -> None:
        """End all threads, without waiting for that."""
        for disk in self._known.values():
            disk.close()
        self._known.clear()


def silent(path: str) -> OSError:
    """Return what is said of an outbox that hangs."""
    return OSError(errno.ETIMEDOUT, "the outbox does not answer", path)
