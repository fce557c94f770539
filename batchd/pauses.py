"""What an event loop does meanwhile: it pauses, or work goes on in a thread aside.

Looks that recur fall together, so that a process wakes once for all: to wake a sleeping one costs
more than most looks do, and an idle one has nothing else to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

#: A power of two beyond a thousand is no float any more,
#: and no pause of ours is as long as this one.
_MOST_TIMES = 64


def doubled(first_s: float, longest_s: float, times: int) -> float:
    """Return a pause in seconds:
    ``first_s``, doubled so many ``times``, and no more than ``longest_s``.
    """
    return min(longest_s, first_s * 2.0 ** min(times, _MOST_TIMES))


def until_next(every_s: float, now: float) -> float:
    """Return the seconds until the next multiple of ``every_s`` by a clock that reads ``now``:
    more than none, and no more than ``every_s``.

    Looks whose periods are multiples of each other fall on the same instants, whenever they began.
    """
    return every_s - now % every_s


async def pause(every_s: float) -> None:
    """Sleep until a look is due that recurs every so many seconds: for no longer than that."""
    await asyncio.sleep(until_next(every_s, asyncio.get_running_loop().time()))


P = ParamSpec("P")
T = TypeVar("T")


class ThreadsAside(Executor):
    """Threads for work that may hang: the end of the process waits for none of them."""

    def __init__(self, name: str, count: int = 1) -> None:
        """Start them. Raises ``RuntimeError`` where the system has none to give."""
        self._count = count
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        try:
            for _ in range(count):
                # A thread of the standard library's pools would be waited for at the end:
                # for ever, on a disk that hangs.
                threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            self.close()  # those that did start would wait for work for ever
            raise

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in one of them."""
        future: Future[T] = Future()
        self._queue.put((future, partial(fn, *args, **kwargs)))
        return future

    def close(self) -> None:
        """End them, each once it has done what it does, without waiting for that."""
        for _ in range(self._count):
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


async def aside(work: Callable[[], T], name: str) -> T:
    """Return what some work returns, in a thread of its own; it goes on if nobody waits any more.

    Raises what it raises, whatever that is; ``RuntimeError`` too, where no thread is to be had.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(ended.set)

    thread = ThreadsAside(name)
    outcome = thread.submit(work)
    thread.close()
    outcome.add_done_callback(wake)
    await ended.wait()
    return outcome.result()
