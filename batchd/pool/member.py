"""A worker as the daemon holds it: its channel, its life, and the tasks that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from batchd.pool.channel import Channel
from batchd.pool.engines import Life
from batchd.records import Ref


class Member:
    """One worker of the pool."""

    def __init__(self, on_message: Callable[[Member, Any], None], life: Life) -> None:
        now = asyncio.get_running_loop().time()
        self.channel = Channel(lambda message: on_message(self, message), self._lost)
        #: The tasks that it works on, and the attempt of each.
        self.tasks: dict[Ref, int] = {}
        #: Whether it is kept for one task alone, until that is done.
        self.alone = False
        #: Whether it gets no more tasks until it has none, so that one task can have it alone.
        self.clearing = False
        self.tasks_done = 0
        #: Resident memory in bytes.
        self.rss = 0
        #: Whether it has said Hello.
        self.greeted = False
        #: When it was last heard of, and last had a task, by the loop's clock.
        self.heard_at = self.idle_since = now
        #: Why it ended, as far as that is known.
        self.cause = ""
        self._life = life
        self._retiring = False
        #: Set once it has said Hello, or never will.
        self._decided = asyncio.Event()
        #: How it broke the protocol of the channel.
        self._broken = ""

    @property
    def pid(self) -> int:
        """Its process id, on its node; 0: it has not started."""
        return self._life.pid

    @property
    def node(self) -> str:
        """The machine it runs on; empty: this one."""
        return self._life.node

    @property
    def retiring(self) -> bool:
        """Whether it gets no more tasks, and ends when it has none."""
        return self._retiring or self._life.over

    def retire(self) -> None:
        """Give it no more tasks; who asks for that sees to its end."""
        self._retiring = True

    async def start(self) -> None:
        """Start it. Raises ``OSError`` or ``EOFError`` where it cannot be started."""
        await self._life.start(self.channel)
        self.heard_at = asyncio.get_running_loop().time()

    def hello(self) -> None:
        """Note that it has said Hello."""
        self.greeted = True
        self._decided.set()

    def gone(self) -> None:
        """Note that it has ended, or could not be started."""
        self._decided.set()

    async def up(self) -> bool:
        """Return, once that is known, whether it came up."""
        await self._decided.wait()
        return self.greeted

    def kill(self, cause: str) -> None:
        """End it at once; also before it has started."""
        if not self._life.over:
            self.cause = self.cause or cause
            self._life.kill()

    async def ended(self) -> None:
        """Return when it has ended and all that it sent is read."""
        how = await self._life.ended()
        self.cause = self.cause or self._broken or how

    def leave(self) -> None:
        """Leave it behind, killed but not ended."""
        self._life.leave()

    def _lost(self, cause: str) -> None:
        self._broken = cause
        self._retiring = True
        self._life.silent()
