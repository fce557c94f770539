"""A worker as the daemon holds it: its channel, the tasks that it has, and how it ends."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable
from typing import Any

from batchd import wire
from batchd.pool.channel import Channel
from batchd.records import Place, Ref


class PoolWorker(abc.ABC):
    """One worker of the pool, from its start to its end; what differs by where it runs is up to
    ``local``, ``remote`` and ``cluster``.
    """

    #: Whether it is elsewhere, over a stream of ours.
    remote = False
    #: How long it may go on after its last heartbeat, in seconds; 0: it has no lease.
    lease_s = 0.0
    #: The machine it runs on; empty: this one.
    node = ""
    #: The machine of ``[pool] machines`` that it is on; empty: none of these.
    machine = ""

    def __init__(self, received: Callable[[PoolWorker, Any], None]) -> None:
        """``received`` takes what it says."""
        #: Its process id, on its node; 0: it has not started.
        self.pid = 0
        self.channel = Channel(
            lambda message: received(self, message),
            self._lost,
            most=wire.MAX_ELSEWHERE if self.remote else wire.MAX_FRAME,
            on_drained=self.heard if self.remote else None,
        )
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
        self.heard_at = self.idle_since = asyncio.get_running_loop().time()
        #: Why it ended, as far as that is known.
        self.cause = ""
        self._retiring = False
        #: Set once it has said Hello, or never will.
        self._decided = asyncio.Event()
        #: How it broke the protocol of the channel.
        self._broken = ""
        #: Set when the channel is closed: all that it sent is read.
        self._silent = asyncio.Event()

    # What differs by where it runs

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """What the store says of who has a task:
        ``PID``, or ``NODE/PID/SECONDS`` with how long its fence lasts.
        """

    @property
    @abc.abstractmethod
    def over(self) -> bool:
        """Whether it has ended, though what it sent last may be yet to be read."""

    @property
    def fence_left_s(self) -> float:
        """For how long what it works on may still change, whatever is seen of it here, in seconds;
        0: it cannot.
        """
        return 0.0

    @abc.abstractmethod
    async def _begin(self) -> None:
        """Start it, and attach the daemon's end of its channel.

        Raises ``OSError`` or ``EOFError`` where it cannot be started.
        """

    @abc.abstractmethod
    def _strike(self) -> None:
        """End it at once, unless it is over; also before it has started."""

    @abc.abstractmethod
    async def _end(self) -> str:
        """Return how it ended, once it can do nothing more and all that it sent is read;
        empty: that is not known.
        """

    @abc.abstractmethod
    def leave(self) -> None:
        """Leave it behind, killed but not ended: the end of this process does not wait for it."""

    def suits(self, place: Place) -> bool:
        """Whether a task that asks for this may be given to it."""
        return not place.machine

    def settings(self, settings: wire.WorkerSettings) -> wire.WorkerSettings:
        """Return what it gets of the settings."""
        return settings

    def bar(self, provider: str, own: str) -> bool:
        """Give it no more tasks of a provider that refused its key; return whether it is not the
        daemon's key that was refused. ``own``: the provider of the task, or else its judge's did.
        """
        return False

    # Its life

    async def start(self) -> None:
        """Start it. Raises ``OSError`` or ``EOFError`` where it cannot be started."""
        await self._begin()
        self.heard()

    def heard(self) -> None:
        """Take that it is alive."""
        self.heard_at = asyncio.get_running_loop().time()

    def hello(self) -> None:
        """Note that it has said Hello."""
        self.greeted = True
        self._decided.set()

    async def up(self) -> bool:
        """Return, once that is known, whether it came up."""
        await self._decided.wait()
        return self.greeted

    def give(self, run: wire.Run) -> None:
        """Give the worker a task, for which it has a slot."""
        self.tasks[run.ref] = run.attempt
        most = wire.MAX_HISTORY_ELSEWHERE if self.remote else wire.MAX_HISTORY
        for message in wire.handed(run, most):
            self.channel.send(message)

    @property
    def retiring(self) -> bool:
        """Whether it gets no more tasks, and ends when it has none."""
        return self._retiring or self.over

    def retire(self) -> None:
        """Give it no more tasks; who asks for that sees to its end."""
        self._retiring = True

    def kill(self, cause: str) -> None:
        """End it at once; also before it has started."""
        if not self.over:
            self.cause = self.cause or cause
            self._strike()

    def _lost(self, cause: str) -> None:
        self._broken = cause
        self._retiring = True
        self._silent.set()

    async def ended(self) -> None:
        """Return when it has ended and all that it sent is read."""
        how = await self._end()
        self.cause = self.cause or self._broken or how

    def gone(self) -> None:
        """Note that it has ended, or could not be started."""
        self._decided.set()

    def fields(self) -> dict[str, Any]:
        """Return what says in a log line which worker it is."""
        return {"worker": self.pid, **({"node": self.node} if self.node else {})}
