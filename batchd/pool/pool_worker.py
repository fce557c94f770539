"""A worker as the daemon holds it: its channel, its life, and the tasks that it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from batchd import wire
from batchd.pool.channel import Channel
from batchd.pool.engines import WorkerLife
from batchd.records import Has, Needs, Ref

#: Heartbeats within a lease: some may be late.
_BEATS = 4


class PoolWorker:
    """One worker of the pool."""

    def __init__(
        self,
        on_message: Callable[[PoolWorker, Any], None],
        life: WorkerLife,
        *,
        joined: bool = False,
        badge: int = 0,
        has: Has | None = None,
        most: int = wire.MAX_FRAME,
    ) -> None:
        """``joined``: it came by itself, from another machine;
        ``badge``: whose its ticket was; ``has``: what is there.

        ``most``: bytes of a message that it may send.
        """
        self.joined = joined
        self.badge = badge
        self.has = has or Has()
        #: The providers whose keys it has, where it does not have all.
        self._providers: set[str] = set()
        self.channel = Channel(
            lambda message: on_message(self, message),
            self._lost,
            most=most,
            on_drained=self.heard if joined else None,
        )
        #: The tasks that it works on, and the attempt of each.
        self.tasks: dict[Ref, int] = {}
        #: How many GPUs each of them holds that holds any.
        self._gpus: dict[Ref, int] = {}
        #: Whether it is kept for one task alone, until that is done.
        self.alone = False
        #: Whether it gets no more tasks until it has none, so that one task can have it alone.
        self.clearing = False
        self.tasks_done = 0
        #: Resident memory in bytes.
        self.rss = 0
        #: Whether it has said Hello.
        self.greeted = False
        #: When it last had a task, by the loop's clock.
        self.idle_since = asyncio.get_running_loop().time()
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

    def reserve(self, ref: Ref, needs: Needs) -> None:
        """Give a slot of it to a task."""
        self._gpus = {each: count for each, count in self._gpus.items() if each in self.tasks}
        self.tasks[ref] = 0
        if needs.gpu:
            self._gpus[ref] = needs.gpu

    @property
    def gpus_held(self) -> int:
        """How many GPUs its tasks hold."""
        return sum(count for ref, count in self._gpus.items() if ref in self.tasks)

    async def start(self) -> None:
        """Start it. Raises ``OSError`` or ``EOFError`` where it cannot be started."""
        await self._life.start(self.channel)
        self._life.heard()

    @property
    def heard_at(self) -> float:
        """When it was last heard of, by the loop's clock."""
        return self._life.heard_at

    def heard(self) -> None:
        """Take that it is alive."""
        self._life.heard()

    def hello(self) -> None:
        """Note that it has said Hello."""
        self.greeted = True
        self._decided.set()

    def gone(self) -> None:
        """Note that it has ended, or could not be started."""
        self._decided.set()

    @property
    def label(self) -> str:
        """What the store says of who has a task."""
        return self._life.label

    def fields(self) -> dict[str, Any]:
        """Return what says in a log line which worker it is."""
        return {"worker": self.pid, **({"node": self.node} if self.node else {})}

    @property
    def lease_s(self) -> float:
        """How long it may go on after its last heartbeat; 0: on this machine it has no lease."""
        return self._life.lease_s

    @property
    def fenced(self) -> bool:
        """Whether what it works on may still change,
        though it has ended for all that is seen here.
        """
        return self._life.fence_left_s > 0

    @property
    def fence_left_s(self) -> float:
        """For how long, in seconds."""
        return self._life.fence_left_s

    def settings(self, settings: wire.WorkerSettings) -> wire.WorkerSettings:
        """Return what it gets of the settings:
        on another machine a lease, and the keys alone that its tasks need.
        """
        if not self.joined:
            return settings
        known = settings.endpoints
        keys = {name: known[name] for name in self._providers if name in known}
        # Its lease stays what it was, however the time that others may be silent is changed.
        beat_s = min(settings.heartbeat_s, self.lease_s / _BEATS)
        return replace(settings, endpoints=keys, lease_s=self.lease_s, heartbeat_s=beat_s)

    def give(self, run: wire.Run, settings: wire.WorkerSettings) -> None:
        """Give the worker a task, for which it has a slot."""
        self.tasks[run.ref] = run.attempt
        if self.joined:
            setups = run.terms.model, run.terms.judge
            names = {setup.name.partition("/")[0] for setup in setups} - self._providers
            keys = {name: e for name, e in settings.endpoints.items() if name in names}
            if keys:
                self._providers |= keys.keys()
                self.channel.send(wire.Keys(keys))
        most = wire.MAX_HISTORY_ELSEWHERE if self.joined else wire.MAX_HISTORY
        for message in wire.handed(run, most):
            self.channel.send(message)

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
