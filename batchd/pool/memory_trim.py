"""The release of memory to the system:
the C library keeps what a burst of answers took, and that may be as much as is in use.
"""

from __future__ import annotations

import asyncio
import ctypes

#: Looking for it takes some milliseconds.
EVERY_S = 15.0


async def give_back() -> None:
    """Give back what is not in use any more, for ever. Of the C libraries only glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(EVERY_S)
        if trim is not None:
            trim(0)
