"""The daemon's loop: what runs beside everything else, what wakes it, what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from batchd.control import OpenTrouble
from batchd.daemon.listeners import Listener

#: What still tries at the end gets so long.
_SETTLES_S = 1.0
#: And where an order waits for it, before it is looked whether only trouble is left.
_IDLE_S = 2.0


@dataclass(slots=True, eq=False, weakref_slot=True)
class MainLoop:
    """Runs the daemon's parts, and knows whether something may begin, whether a part broke, and who
    listens.

    There is one an event loop: ``current`` returns it, as asyncio does with its own.
    """

    #: They hear what happens.
    listeners: list[Listener] = field(default_factory=list)
    #: Nothing new is begun.
    closing: bool = False
    #: Set where a slot or a task may have become free.
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    #: Done when a part broke: a bug, which ends the daemon.
    broken: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _tasks: set[asyncio.Task[object]] = field(default_factory=set)
    _endless: set[asyncio.Task[object]] = field(default_factory=set)
    #: Set when something that was spawned has ended.
    _one_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        _LOOPS[asyncio.get_running_loop()] = self

    def spawn(
        self, work: Coroutine[Any, Any, object], *, endless: bool = False
    ) -> asyncio.Task[object]:
        """Run ``work`` beside everything else. ``endless``: no one waits for its end."""
        task = asyncio.get_running_loop().create_task(work)
        (self._endless if endless else self._tasks).add(task)
        task.add_done_callback(self._ended)
        return task

    def broke(self, error: BaseException) -> None:
        """End the daemon with this error, unless it ends with one already."""
        if not self.broken.done():
            self.broken.set_exception(error)

    async def first(self, *waits: Awaitable[Any]) -> None:
        """Wait for the first of these, and end the others. Raises what it raises, or what broke."""
        ended = await self.race(*waits)
        if self.broken.done():
            self.broken.result()
        for wait in ended:
            wait.result()

    async def race(self, *waits: Awaitable[Any]) -> list[asyncio.Future[Any]]:
        """Wait for the first of these, or for a part that breaks, and end the others;
        return those that have ended by themselves.
        """
        futures = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait((*futures, self.broken), return_when=asyncio.FIRST_COMPLETED)
            return [future for future in futures if future.done()]
        finally:
            for future in futures:
                future.cancel()

    async def idle(
        self, troubles: Callable[[], tuple[OpenTrouble, ...]]
    ) -> tuple[OpenTrouble, ...]:
        """Wait until all that was spawned has ended, or only trouble is left: return that.

        Raises what broke.
        """
        stuck: tuple[OpenTrouble, ...] = ()
        while self._tasks and not self.broken.done() and not stuck:
            self._one_ended.clear()
            try:
                # Not for each by itself: there may be 100,000.
                async with asyncio.timeout(_IDLE_S):
                    await self._one_ended.wait()
            except TimeoutError:
                stuck = troubles()
        if self.broken.done():
            self.broken.result()
        return stuck

    async def settle(self) -> None:
        """Wait for all that was spawned, at the end; what still tries is given up."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_SETTLES_S)
        rest = self._tasks | self._endless
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        self._endless.discard(task)
        self._one_ended.set()
        if not task.cancelled() and (error := task.exception()):
            self.broke(error)


_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, MainLoop] = WeakKeyDictionary()


def current() -> MainLoop:
    """Return the loop of the daemon that runs here."""
    return _LOOPS[asyncio.get_running_loop()]


def spawn(work: Coroutine[Any, Any, object], *, endless: bool = False) -> asyncio.Task[object]:
    """Run ``work`` beside everything else. ``endless``: no one waits for its end."""
    return current().spawn(work, endless=endless)


def tell(hook: Callable[[Listener], None]) -> None:
    """Have all hear it who listen to the daemon that runs here."""
    for listener in current().listeners:
        hook(listener)


def wake() -> None:
    """Make the daemon look soon at what can start."""
    current().woken.set()
