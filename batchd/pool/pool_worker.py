"""A worker as the daemon holds it: its channel, its life, and the tasks that it has."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec.structs import replace

from batchd import wire
from batchd.pool.channel import Channel
from batchd.pool.here import digest
from batchd.pool.remote import RemoteWorker
from batchd.records import Place, Ref

#: Heartbeats within a lease: some may be late.
_BEATS = 4


class WorkerLife(Protocol):
    """One worker's process, wherever it runs, from its start to its end."""

    @property
    def pid(self) -> int:
        """Its process id there; 0: it has not started."""

    @property
    def node(self) -> str:
        """The machine it runs on; empty: this one."""

    @property
    def heard_at(self) -> float:
        """When it was last heard of, by the loop's clock."""

    @property
    def label(self) -> str:
        """What the store says of who has a task:
        ``PID``, or ``NODE/PID/SECONDS`` with how long its fence lasts.
        """

    @property
    def lease_s(self) -> float:
        """How long it may go on after its last heartbeat, in seconds; 0: it has no lease."""

    @property
    def fence_left_s(self) -> float:
        """For how long what it works on may still change, whatever is seen of it here, in seconds;
        not above 0: it cannot.
        """

    @property
    def over(self) -> bool:
        """Whether it has ended, though what it sent last may be yet to be read."""

    async def start(self, channel: Channel) -> None:
        """Start it, and attach the daemon's end of its channel.

        Raises ``OSError`` or ``EOFError`` where it cannot be started.
        """

    def kill(self) -> None:
        """End it at once, unless it is over; also before it has started."""

    def heard(self) -> None:
        """Take that it is alive."""

    def silent(self) -> None:
        """Take that the channel is closed: all that it sent is read."""

    async def ended(self) -> str:
        """Return how it ended, once it can do nothing more and all that it sent is read;
        empty: that is not known.
        """

    def leave(self) -> None:
        """Leave it behind, killed but not ended: the end of this process does not wait for it."""


class Engine(Protocol):
    """Where workers are started."""

    def prepare(self) -> None:
        """Be ready to start some."""

    def life(self) -> WorkerLife:
        """Return a worker's life that is yet to start."""

    def renew(self) -> None:
        """End what starts workers: starts that hang fail, and the next one begins afresh."""


class PoolWorker:
    """One worker of the pool."""

    def __init__(
        self,
        on_message: Callable[[PoolWorker, Any], None],
        life: WorkerLife,
    ) -> None:
        self.life = life
        #: The providers whose keys it does not have, and those of which it has another one than the
        #: daemon.
        self.lacks: frozenset[str] = frozenset()
        self.unlike: frozenset[str] = frozenset()
        #: What stands for the keys that it has, and for those that were refused, by provider.
        self._keys: Mapping[str, str] = {}
        self._refused: dict[str, str] = {}
        self.channel = Channel(
            lambda message: on_message(self, message),
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
        #: When it last had a task, by the loop's clock.
        self.idle_since = asyncio.get_running_loop().time()
        #: Why it ended, as far as that is known.
        self.cause = ""
        self._retiring = False
        #: Set once it has said Hello, or never will.
        self._decided = asyncio.Event()
        #: How it broke the protocol of the channel.
        self._broken = ""

    @property
    def pid(self) -> int:
        """Its process id, on its node; 0: it has not started."""
        return self.life.pid

    @property
    def node(self) -> str:
        """The machine it runs on; empty: this one."""
        return self.life.node

    @property
    def machine(self) -> str:
        """The machine of ``[pool] machines`` that it is on; empty: none of these."""
        return self.life.machine if isinstance(self.life, RemoteWorker) else ""

    @property
    def remote(self) -> bool:
        """Whether it is elsewhere, over a stream of ours."""
        return isinstance(self.life, RemoteWorker)

    @property
    def retiring(self) -> bool:
        """Whether it gets no more tasks, and ends when it has none."""
        return self._retiring or self.life.over

    def retire(self) -> None:
        """Give it no more tasks; who asks for that sees to its end."""
        self._retiring = True

    def suits(self, place: Place) -> bool:
        """Whether a task that asks for this may be given to it."""
        there = not place.machine or place.machine == self.machine
        return there and self.lacks.isdisjoint(place.providers)

    async def start(self) -> None:
        """Start it. Raises ``OSError`` or ``EOFError`` where it cannot be started."""
        await self.life.start(self.channel)
        self.life.heard()

    @property
    def heard_at(self) -> float:
        """When it was last heard of, by the loop's clock."""
        return self.life.heard_at

    def heard(self) -> None:
        """Take that it is alive."""
        self.life.heard()

    def hello(self) -> None:
        """Note that it has said Hello."""
        self.greeted = True
        self._decided.set()

    def gone(self) -> None:
        """Note that it has ended, or could not be started."""
        self._decided.set()

    def fields(self) -> dict[str, Any]:
        """Return what says in a log line which worker it is."""
        return {"worker": self.pid, **({"node": self.node} if self.node else {})}

    @property
    def fenced(self) -> bool:
        """Whether what it works on may still change,
        though it has ended for all that is seen here.
        """
        return self.life.fence_left_s > 0

    def settings(self, settings: wire.WorkerSettings) -> wire.WorkerSettings:
        """Return what it gets of the settings: on another machine a lease, and no key."""
        if not self.remote:
            return settings
        known = {name: e for name, e in settings.endpoints.items() if name in settings.keys}
        keyless = {name: dataclasses.replace(e, api_key="") for name, e in known.items()}
        # Its lease stays what it was, however the time that others may be silent is changed.
        beat_s = min(settings.heartbeat_s, self.life.lease_s / _BEATS)
        return replace(settings, endpoints=keyless, lease_s=self.life.lease_s, heartbeat_s=beat_s)

    def give(self, run: wire.Run) -> None:
        """Give the worker a task, for which it has a slot."""
        self.tasks[run.ref] = run.attempt
        most = wire.MAX_HISTORY_ELSEWHERE if self.remote else wire.MAX_HISTORY
        for message in wire.handed(run, most):
            self.channel.send(message)

    def has_keys(self, keys: Mapping[str, str], settings: wire.WorkerSettings, judge: str) -> None:
        """Take which providers' keys are on its machine, as ``MachineFacts`` has them; ``judge``:
        the provider that tasks of any model ask to be judged by, empty: there is none.
        """
        assert isinstance(self.life, RemoteWorker), "it is elsewhere"
        ours = {name: digest(self.life.salt, e.api_key) for name, e in settings.endpoints.items()}
        self.unlike = frozenset(name for name in keys if keys[name] != ours.get(name))
        self._keys = keys
        refused = {name for name in keys if self._refused.get(name) == keys[name]}
        self.lacks = frozenset((ours.keys() - keys.keys()) | refused)
        if judge in self.lacks:
            self.lacks = frozenset(ours)

    def bar(self, provider: str, own: str) -> bool:
        """Give it no more tasks of a provider that refused its key; return whether it is not the
        daemon's key that was refused. ``own``: the provider of the task, or else its judge's did.
        """
        if not isinstance(self.life, RemoteWorker) or provider not in self.unlike | self.lacks:
            return False
        if provider in self._keys:
            self._refused[provider] = self._keys[provider]
            self.life.refused(provider)
        self.lacks |= {provider, own}
        return True

    @property
    def keys_fit(self) -> bool:
        """Whether none of the keys that it has was refused."""
        return not any(self._refused.get(name) == key for name, key in self._keys.items())

    async def up(self) -> bool:
        """Return, once that is known, whether it came up."""
        await self._decided.wait()
        return self.greeted

    def kill(self, cause: str) -> None:
        """End it at once; also before it has started."""
        if not self.life.over:
            self.cause = self.cause or cause
            self.life.kill()

    async def ended(self) -> None:
        """Return when it has ended and all that it sent is read."""
        how = await self.life.ended()
        self.cause = self.cause or self._broken or how

    def _lost(self, cause: str) -> None:
        self._broken = cause
        self._retiring = True
        self.life.silent()
