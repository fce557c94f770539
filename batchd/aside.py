"""Work in a thread of its own, for which no end of the process waits:
a server, or a disk, may hold it up for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T], name: str) -> T:
    """Return what some work returns.

    Raises what it raises; ``RuntimeError`` too, where no thread is to be had.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def give(settle: Callable[[], None]) -> None:
        if not answer.done():
            settle()

    def run() -> None:
        try:
            settle = partial(answer.set_result, work())
        except Exception as error:  # noqa: BLE001 (it is raised where the answer is waited for)
            settle = partial(answer.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(give, settle)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
