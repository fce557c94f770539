"""The daemon: joins the rooms, and runs them until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from batchd import __version__, log, visible
from batchd.actions import Action
from batchd.config import Config
from batchd.control import ControlRequest, OpenTrouble
from batchd.control.requester import Requester
from batchd.control.requests import A
from batchd.control.socket_server import Server
from batchd.daemon import former_packs, lock, tuning, writes
from batchd.daemon.assembly import joined
from batchd.daemon.attempts import bases, scratch_cleanup
from batchd.daemon.commands import EndWaiters
from batchd.daemon.commands.check import HostCheck
from batchd.daemon.intake import recovery
from batchd.daemon.intake.intake import as_asked, move_claimed, new_batch
from batchd.daemon.intake.parser import Parser
from batchd.daemon.listeners import Finisher, Listener, StartReport
from batchd.daemon.self_check import SelfCheck
from batchd.daemon.status_file import StatusFile
from batchd.daemon.systemd import SystemdNotifier
from batchd.log import get_logger
from batchd.pool import heap, threads
from batchd.pool.disks import AllDiskThreads
from batchd.pool.shape import PoolShape
from batchd.records import Batch
from batchd.sandbox import Sandbox
from batchd.spool import claims, home, permissions, taskfile
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
        drop_packs: bool = False,
        errands: bool = False,
        reload: Callable[[], Config] | None = None,
        look: HostCheck | None = None,
        agent: str = "batchd.agent:run",
    ) -> None:
        """``watch``: claim what lies in the inbox. ``reload``: what SIGHUP reads the configuration
        with. ``look``: what ``check`` looks with.

        ``work``: run tasks, and answer on the control socket; without it there is only ``command``.
        ``drop_packs``: whether what 0.2.0 left of directories elsewhere may go.
        ``errands``: work on what is handed over by ``submit`` on the socket, and on nothing else.
        ``agent``: what works on a task, ``module:function``.
        """
        self._config = config
        self._ends = EndWaiters()
        self._listeners: list[Listener] = [self._ends, *listeners]
        self._finishers = finishers
        self._watch = watch
        self._work = work
        self._drop_packs = drop_packs
        self._errands = errands
        self._reload = reload
        self._look = look
        self._agent = agent
        self._systemd = SystemdNotifier()
        #: What holds commands to their limits together.
        self._limits = ""
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._hangup = asyncio.Event()
        #: The trouble that keeps what a ``command`` brought about from the outbox;
        #: the next daemon writes it.
        self.left: tuple[OpenTrouble, ...] = ()

    # Ways to run it

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT: then drain; a second one ends at once.

        Raises ``SpoolLockedError``, ``SandboxUnavailableError``
        or ``StoreError`` where it cannot start.
        """
        with self._signals():
            async with self:
                await self._parts.loop.first(self._stopping.wait())

    async def run_errands(self) -> None:
        """Work on what a ``run`` hands over until that is done, or no one waits for it.

        As ``run``, which works on what lies in the inbox too.
        """
        with self._signals():
            async with self:
                await self._parts.loop.first(self._parts.errands.over(), self._stopping.wait())

    async def command(self, request: ControlRequest[A]) -> A:
        """Carry out one request, with all that it causes,
        where no daemon runs: see ``CommandHandlers``.

        Raises what ``run`` raises, but needs no sandbox; and ``BatchdError`` where it is refused.
        """
        async with self:
            answer = await self._parts.commands.carry_out(request, Requester.here())
            troubles = self._parts.troubles
            self.left = await self._parts.loop.idle(lambda: troubles.open)
        return answer

    async def submit(self, name: str, data: bytes) -> Batch:
        """Take up a task file by its name and content. Raises ``TaskFileError``."""
        return await self._add(name, data, taskfile.parse(data, name, self._parts.current.config))

    async def batch_done(self, name: str) -> None:
        """Wait until a batch's ``summary.json`` is written."""
        await self._parts.loop.first(self._parts.batches.done(name))

    def stop(self) -> None:
        """Begin to drain; when called again, end at once."""
        (self._at_once if self._stopping.is_set() else self._stopping).set()

    # Start and end

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as undo:
            await self._open(undo)
            self._undo = undo.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    async def _open(self, undo: contextlib.AsyncExitStack) -> None:
        threads.start()
        config, state = self._config, Path(self._config.paths.state)
        visible.refuse(config)
        permissions.insist(config)
        after_crash = lock.left_behind(state)
        held = lock.acquire(state)
        undo.callback(lock.release, held)
        home.enter(state)
        undo.callback(claims.keep_mark, state, claims.mark(state))
        if self._work:
            former_packs.insist(state, drop=self._drop_packs)
            # Refuse to start where commands cannot run.
            self._limits = Sandbox(config.sandbox_policy()).limits
            visible.warn(config)
        disks = AllDiskThreads()
        undo.callback(disks.close)
        store = Store(state / "batchd.db")
        undo.callback(store.close)
        for each in self._listeners:
            undo.push_async_callback(each.close)
        log.hide(config.hidden())
        for finisher in self._finishers:
            undo.push_async_callback(finisher.close)
        parser = Parser()
        undo.push_async_callback(parser.close)
        undo.push_async_callback((fetchers := bases.fetchers()).close)
        parts = self._parts = joined(
            config,
            store,
            disks,
            self._listeners,
            self._finishers,
            parser=parser,
            fetchers=fetchers,
            held=held,
            watching=self._watch,
            agent=self._agent,
            ends=self._ends,
            reload=self._reload,
            look=self._look,
            shape=self._shape,
        )
        if self._work:
            for listener in self._listeners:
                listener.opened(parts.desk, store)
            await self._begin(undo, state, disks)
            for listener in self._listeners:
                listener.daemon_started(
                    StartReport(
                        after_crash=after_crash,
                        batches=len(parts.batches),
                        tasks=parts.lifecycle.unended,
                    )
                )
        else:
            undo.push_async_callback(parts.loop.settle)
            parts.restoring.all(await move_claimed(config, store, parts.outboxes))

    def _shape(self, config: Config) -> PoolShape:
        """Return how large the pool is; without processes it has no slots, so nothing starts."""
        shape = tuning.shape(config)
        if not self._work:
            return replace(shape, processes=0, machines=())
        # For `batchd run` alone all workers are of this machine.
        here = max(1, config.pool.processes)
        return shape if self._watch else replace(shape, processes=here)

    async def _begin(
        self, undo: contextlib.AsyncExitStack, state: Path, disks: AllDiskThreads
    ) -> None:
        """Take up what the last daemon left, and begin to work, to watch and to answer."""
        parts, config = self._parts, self._config
        loop, store, troubles, pool = parts.loop, parts.store, parts.troubles, parts.pool
        inbox = Inbox(config, disks.at(config.paths.inbox)) if self._watch else None
        earlier: set[str] = set()
        if inbox is not None:
            await recovery.give_back_names(config, store)
            earlier = inbox.claimed()
        if self._errands:
            parts.restoring.nothing()
        else:
            parts.restoring.all(earlier)
        await recovery.hold_published(parts.lifecycle, parts.outboxes, parts.batches, parts.lot)
        status = None
        if inbox is not None:
            status = StatusFile(parts.current, parts.desk, store, parts.outboxes)
            undo.push_async_callback(status.stop)
        server = Server(state, parts.commands)
        undo.push_async_callback(server.stop)
        scratch_cleanup.prepare(config)
        pool.start(parts.reports)
        troubles.also(Action.WORKER_TROUBLE, lambda: pool.trouble)
        troubles.also(Action.NODE_TROUBLE, pool.machine_trouble)
        troubles.also(Action.WORKER_TROUBLE, lambda: parts.lot.placing.missing)
        troubles.also(Action.ANSWER_OVERLONG, parts.governor.estimates.overlong)
        undo.push_async_callback(self._drain)
        if inbox is not None:
            await inbox.start()
            troubles.also(Action.INBOX_TROUBLE, lambda: inbox.trouble)
            undo.push_async_callback(inbox.stop)
            loop.spawn(parts.intake.run(inbox, earlier), endless=True)
        if (cluster := parts.cluster) is not None:
            troubles.also(Action.CLUSTER_TROUBLE, lambda: cluster.trouble)
        await server.start()  # last, for who waits for it takes it for the sign that all is up
        for work in self._watches(server):
            loop.spawn(work, endless=True)
        if status is not None:
            loop.spawn(status.keep(), endless=True)
        get_logger().info(
            Action.DAEMON_STARTED,
            version=__version__,
            pid=os.getpid(),
            batches=len(parts.batches),
            limits=self._limits,
        )
        loop.spawn(parts.turns.watch(), endless=True)
        loop.wake()
        self._systemd.ready()

    def _watches(self, server: Server) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what looks at something for as long as the daemon runs."""
        p = self._parts
        if self._systemd.every_s:
            yield self._systemd.feed()
        yield writes.tidy(p.current, p.writes)
        yield writes.keep(p.store, p.troubles, server)
        yield heap.give_back()
        yield p.circuits.watch()
        if p.cluster is not None:
            yield p.cluster.run()
        yield p.lot.watch()
        yield SelfCheck(
            p.loop, p.lifecycle, p.troubles, p.governor, p.batches, p.turns, p.attempts, p.pool
        ).report_stalls()
        if self._reload is not None:
            yield self._reloads()

    async def _drain(self) -> None:
        """Let running tasks reach a durable point, then end the pool."""
        parts, pool = self._parts, self._parts.pool
        self._systemd.stopping()
        get_logger().info(Action.DAEMON_STOPPING, tasks=len(parts.attempts.active))
        parts.attempts.drain()
        await parts.loop.race(pool.drain(parts.current.config.pool.drain_s), self._at_once.wait())
        await pool.close()
        await parts.loop.settle()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle signals meanwhile, also one that came before: they only set flags."""
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            # With nothing to reload it means what it says: the terminal is gone.
            signal.SIGHUP: self._hangup.set if self._reload else self.stop,
        }
        loop = asyncio.get_running_loop()
        for signum, handler in handlers.items():
            loop.add_signal_handler(signum, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
        try:
            yield
        finally:
            for signum in handlers:
                loop.remove_signal_handler(signum)

    # While it runs

    async def _add(self, name: str, data: bytes, parsed: taskfile.Parsed) -> Batch:
        batch = new_batch(ulid(), name, self._parts.current.config.paths.outbox, time.time())
        return await self._parts.batches.take_up(as_asked(batch, parsed), parsed.tasks, data)

    async def _reloads(self) -> None:
        """Read the configuration again at each SIGHUP."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._systemd.reloading()
            await self._parts.reloader.reload()
            self._systemd.ready()
