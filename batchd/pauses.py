"""What an event loop does meanwhile: it pauses, or work goes on in a thread aside.

Looks that recur fall together, so that a process wakes once for all: to wake a sleeping one costs
more than most looks do, and an idle one has nothing else to do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

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


T = TypeVar("T")


async def aside(work: Callable[[], T], name: str) -> T:
    """Return what some work returns; the process need not wait for it to end.

    Raises what it raises; ``RuntimeError`` too, where no thread is to be had.
    """
    loop = asyncio.get_running_loop()
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    ended = asyncio.Event()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 (a thread's outer edge: it is raised below)
            outcome.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name=name, daemon=True).start()
    await ended.wait()
    return outcome.result()
