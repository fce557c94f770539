"""Shortages for a moment: descriptors, processes, memory of the machine.

A command that was not begun can wait.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from batchd.errors import SandboxError

T = TypeVar("T")

#: So long a command waits for what it needs to begin (seconds); then its task fails, and says why.
PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
#: What others give back.
SHORTAGE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})


def short(error: BaseException | None) -> bool:
    """Return whether something ran out that others will give back, by an error or its cause."""
    if isinstance(error, SandboxError):
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in SHORTAGE_ERRNOS


async def patiently(attempt: Callable[[], Awaitable[T]], patience_s: float = PATIENCE_S) -> T:
    """Return what ``attempt`` returns; where it is short of something,
    try again for ``patience_s``, then raise that.

    An attempt that fails must have done nothing.
    """
    deadline, pause_s = time.monotonic() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return await attempt()
        except (OSError, SandboxError) as error:
            if not short(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
