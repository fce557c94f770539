"""What must come to its end once it has begun: who is cancelled meanwhile waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def unbroken(work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
    """Return what ``work`` returns; a cancellation is raised when that is over.

    ``cancelled`` is called at the first one: it may have the work end sooner.
    """
    task = asyncio.ensure_future(work)
    broken: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            if broken is None and cancelled is not None:
                cancelled()
            broken = error
    if broken is not None:
        task.exception()  # the cancellation is what counts
        raise broken
    return task.result()
