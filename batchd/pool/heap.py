"""The C library's memory: one heap for all threads, and what is not in use goes back to the system.

Of the C libraries only glibc has either.
"""

from __future__ import annotations

import ctypes

from batchd import pauses

#: See malloc.h.
_M_ARENA_MAX = -8
#: Looking for it takes some milliseconds.
EVERY_S = 15.0


def share() -> None:
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
