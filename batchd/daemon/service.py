"""The daemon: joins the rooms, and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchd import __version__, log
from batchd.config import Config
from batchd.control import Request, Trouble
from batchd.control.giver import Giver
from batchd.control.messages import A
from batchd.control.server import Server
from batchd.daemon import lock, shadow, signals, strangers, tuning, vigil, visible
from batchd.daemon.commands import Ends
from batchd.daemon.core import Core
from batchd.daemon.finisher import Finisher
from batchd.daemon.intake import Intake, move_claimed, new_batch, take_up, with_budget
from batchd.daemon.listener import Listener, Listeners, Start
from batchd.daemon.parsers import Parsers
from batchd.daemon.parts import joined
from batchd.daemon.reserving import Reserving
from batchd.daemon.shadow import Shadow
from batchd.daemon.stalls import Stalls
from batchd.daemon.systemd import Notifier
from batchd.governor import Governor
from batchd.governor.news import News
from batchd.log import Action
from batchd.pool import memory, threads
from batchd.pool.disks import Disks
from batchd.pool.supervisor import Shape
from batchd.pricing import Prices
from batchd.records import Batch
from batchd.sandbox import Sandbox
from batchd.spool import home, permissions, taskfile
from batchd.spool.inbox import Inbox, ulid
from batchd.store import Store

_DAY_S = 86400.0


class Daemon:
    """Everything between inbox and outbox. Use it as a context, or call ``run`` or ``run_once``."""

    def __init__(
        self,
        config: Config,
        *,
        listeners: Sequence[Listener] = (),
        finishers: Sequence[Finisher] = (),
        watch: bool = True,
        work: bool = True,
        reload: Callable[[], Config] | None = None,
        agent: str = "batchd.agent:run",
    ) -> None:
        """``watch``: claim what lies in the inbox. ``reload``: what SIGHUP reads the configuration with.

        ``work``: run tasks, and answer on the control socket; without it there is only ``command``.
        ``agent``: what works on a task, ``module:function``.
        """
        self._config = config
        self._ends = Ends()
        self._listeners = Listeners((self._ends, *listeners))
        self._finishers = finishers
        self._watch = watch
        self._work = work
        self._reload = reload
        self._agent = agent
        self._systemd = Notifier()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._hangup = asyncio.Event()
        #: The trouble that keeps what a ``command`` brought about from the outbox; the next daemon writes it.
        self.left: tuple[Trouble, ...] = ()

    # Ways to run it

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT: then drain; a second one ends at once.

        Raises ``SpoolLockedError``, ``SandboxUnavailableError`` or ``StoreError`` where it cannot start.
        """
        with self._signals():
            async with self:
                await self._until_stopped()

    async def run_once(
        self, files: Sequence[tuple[str, bytes]], interrupted: Callable[[], None] = lambda: None
    ) -> list[str]:
        """Work on these files, names and contents, until all are done; return their batches' names.

        A signal cancels every task that has not ended, so that each has its result all the same, and calls
        ``interrupted``; a second one ends at once. Raises ``TaskFileError``, before anything is done, and what ``run`` raises.
        """
        parsed = [taskfile.parse(data, name, self._config) for name, data in files]
        names: list[str] = []
        with self._signals():
            async with self:
                work = asyncio.ensure_future(self._work_off(files, parsed, names, interrupted))
                hurry = asyncio.ensure_future(self._at_once.wait())
                await _first(work, hurry, self._core.broken)
                hurry.cancel()
                if self._core.broken.done():
                    self._core.broken.result()
                if work.done():
                    work.result()
                work.cancel()
        return names

    async def _work_off(
        self,
        files: Sequence[tuple[str, bytes]],
        parsed: Sequence[taskfile.Parsed],
        names: list[str],
        interrupted: Callable[[], None],
    ) -> None:
        """Take the files up, and wait for their end; when told to stop, bring that about."""
        for (name, data), tasks in zip(files, parsed, strict=True):
            if not self._stopping.is_set():
                names.append((await self._add(name, data, tasks)).name)
        done = asyncio.gather(*(self._parts.batches.done(name) for name in names))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await _first(done, stopping)
        stopping.cancel()
        if self._stopping.is_set():
            interrupted()
        for queued in [q for name in names for q in self._core.store.queued(name)]:
            self._parts.attempts.cancel(queued.ref, "the run was interrupted")
        await done

    async def command(self, request: Request[A]) -> A:
        """Carry out one request, with all that it causes, where no daemon runs: see ``Commands``.

        Raises what ``run`` raises, but needs no sandbox; and ``BatchdError`` where it is refused.
        """
        async with self:
            answer = await self._parts.commands.carry_out(request, Giver.here())
            self.left = await self._core.idle()
        return answer

    async def submit(self, name: str, data: bytes) -> Batch:
        """Take up a task file by its name and content. Raises ``TaskFileError``."""
        return await self._add(name, data, taskfile.parse(data, name, self._core.config))

    async def batch_done(self, name: str) -> None:
        """Wait until a batch's ``summary.json`` is written."""
        done = asyncio.ensure_future(self._parts.batches.done(name))
        await _first(done, self._core.broken)
        if not done.done():
            done.cancel()
            self._core.broken.result()

    def stop(self) -> None:
        """Begin to drain; when called again, end at once."""
        (self._at_once if self._stopping.is_set() else self._stopping).set()

    # Start and end

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            await self._open(undo)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._undo.aclose()

    async def _open(self, undo: contextlib.AsyncExitStack) -> None:
        threads.start()
        config, state = self._config, Path(self._config.paths.state)
        permissions.insist(config)
        visible.refuse(config)
        after_crash = lock.left_behind(state)
        held = lock.acquire(state)
        undo.callback(lock.release, held)
        home.enter(state)
        undo.push_async_callback(self._listeners.close)
        if self._work:
            Sandbox(config.sandbox_policy())  # refuse to start where commands cannot run
            visible.warn(config)
        disks = Disks()
        undo.callback(disks.close)
        store = Store.open(
            state / "batchd.db",
            retention_s=config.store.retention_days * _DAY_S,
            reserve=Reserving(disks),
        )
        undo.callback(store.close)
        log.hide(config.hidden())
        endpoints, missing = tuning.endpoints(config)
        news: asyncio.Queue[News] = asyncio.Queue()
        core = self._core = Core(
            config=config,
            prices=Prices(config.models),
            store=store,
            governor=Governor(config, missing, news.put_nowait, booked=store.spent_on),
            listeners=self._listeners,
            finishers=self._finishers,
            disks=disks,
        )
        for finisher in self._finishers:
            undo.push_async_callback(finisher.close)
        self._parts = joined(
            core,
            endpoints,
            held=held,
            agent=self._agent,
            ends=self._ends,
            news=news,
            reload=self._reload,
            shape=self._shape,
        )
        if self._work:
            self._listeners.opened(self._parts.commands.desk)
            await self._begin(undo, state)
            self._listeners.daemon_started(
                Start(
                    after_crash=after_crash,
                    batches=len(self._parts.batches),
                    tasks=core.lifecycle.unended,
                )
            )
        else:
            undo.push_async_callback(core.settle)
            self._parts.restore(await move_claimed(core))

    def _shape(self, config: Config) -> Shape:
        """Return how large the pool is; without processes it has no slots, so nothing starts."""
        shape = tuning.shape(config)
        return shape if self._work else replace(shape, processes=0)

    async def _begin(self, undo: contextlib.AsyncExitStack, state: Path) -> None:
        """Take up what the last daemon left, and begin to work, to watch and to answer."""
        core, parts, batches, pool = self._core, self._parts, self._parts.batches, self._parts.pool
        inbox = Inbox(core.config) if self._watch else None
        earlier: set[str] = set()
        if inbox is not None:
            await strangers.watch(core)
            earlier = inbox.claimed()
        self._parts.restore(earlier)
        await strangers.hold_published(core, batches, self._parts.lot)
        server = Server(state, self._parts.commands)
        undo.push_async_callback(server.stop)
        pool.start(parts.reports)
        core.troubles.also(Action.WORKER_TROUBLE, lambda: pool.trouble)
        parsers = Parsers()
        undo.push_async_callback(parsers.close)
        undo.push_async_callback(self._drain)
        if inbox is not None:
            await inbox.start()
            core.troubles.also(Action.INBOX_TROUBLE, lambda: inbox.trouble)
            undo.push_async_callback(inbox.stop)
            intake = Intake(core, batches, inbox, parsers, earlier=earlier)
            core.spawn(intake.run(), endless=True)
            core.spawn(self._parts.retiring.watch(), endless=True)
        await server.start()  # last, for who waits for it takes it for the sign that all is up
        if self._systemd.every_s:
            core.spawn(vigil.feed(self._systemd), endless=True)
        core.spawn(vigil.tidy(core), endless=True)
        core.spawn(vigil.keep(core, server), endless=True)
        core.spawn(memory.give_back(), endless=True)
        core.spawn(self._parts.circuits.watch(), endless=True)
        core.spawn(self._parts.lot.watch(), endless=True)
        core.spawn(
            Stalls(core, batches, parts.turns, parts.attempts, pool=pool, inbox=inbox).watch(),
            endless=True,
        )
        if self._reload is not None:
            core.spawn(self._reloads(), endless=True)
        if shadow.wanted():
            compare = Shadow(core, batches, parts.attempts, pool)
            core.spawn(compare.watch(), endless=True)
        core.log.info(
            Action.DAEMON_STARTED, version=__version__, pid=os.getpid(), batches=len(batches)
        )
        core.spawn(parts.turns.watch(), endless=True)
        core.wake()
        self._systemd.ready()

    async def _drain(self) -> None:
        """Let running tasks reach a durable point, then end the pool."""
        core, pool = self._core, self._parts.pool
        self._systemd.stopping()
        core.log.info(Action.DAEMON_STOPPING, tasks=len(self._parts.attempts.active))
        self._parts.attempts.drain()
        if not self._at_once.is_set() and not core.broken.done():
            drain = asyncio.ensure_future(pool.drain(core.config.pool.drain_s))
            hurry = asyncio.ensure_future(self._at_once.wait())
            await _first(drain, hurry, core.broken)
            drain.cancel()
            hurry.cancel()
        await pool.close()
        await core.settle()

    async def _until_stopped(self) -> None:
        """Wait for the wish to stop, or for a part that breaks: that is raised."""
        stopping = asyncio.ensure_future(self._stopping.wait())
        await _first(stopping, self._core.broken)
        stopping.cancel()
        if self._core.broken.done():
            self._core.broken.result()

    def _signals(self) -> contextlib.AbstractContextManager[None]:
        return signals.handled(
            {
                signal.SIGTERM: self.stop,
                signal.SIGINT: self.stop,
                # With nothing to reload it means what it says: the terminal is gone.
                signal.SIGHUP: self._hangup.set if self._reload else self.stop,
            }
        )

    # While it runs

    async def _add(self, name: str, data: bytes, parsed: taskfile.Parsed) -> Batch:
        batch = new_batch(ulid(), name, self._core.config.paths.outbox, time.time())
        return await take_up(
            self._core, self._parts.batches, with_budget(batch, parsed), parsed.tasks, data
        )

    async def _reloads(self) -> None:
        """Read the configuration again at each SIGHUP."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._systemd.reloading()
            await self._parts.reloader.reload()
            self._systemd.ready()


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
