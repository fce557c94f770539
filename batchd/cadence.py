"""The cadence of looks that recur: those of a process fall together, so that it wakes once for all.

To wake a sleeping process costs more than most looks do, and an idle one has nothing else to do.
"""

from __future__ import annotations

import asyncio


def until_next(every_s: float, now: float) -> float:
    """Return the seconds until the next multiple of ``every_s`` by a clock that reads ``now``:
    more than none, and no more than ``every_s``.

    Looks whose periods are multiples of each other fall on the same instants, whenever they began.
    """
    return every_s - now % every_s


async def pause(every_s: float) -> None:
    """Sleep until a look is due that recurs every so many seconds: for no longer than that."""
    await asyncio.sleep(until_next(every_s, asyncio.get_running_loop().time()))
