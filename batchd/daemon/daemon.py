"""The daemon: joins the rooms, and runs them until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Coroutine, Iterator, Sequence, Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from batchd import log
from batchd.config import Config
from batchd.control import ControlRequest, OpenTrouble
from batchd.control.requests import A
from batchd.control.socket_server import Requester, Server
from batchd.daemon import (
    former_packs,
    lock,
    main_loop,
    recovery,
    scratch,
    tuning,
    writes,
)
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.commands import Commands
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.errands import Errands
from batchd.daemon.gates import Predecessors
from batchd.daemon.intake import Intake, move_claimed
from batchd.daemon.listeners import Finisher, Listener, StartReport
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.parking_lot import ParkingLot
from batchd.daemon.publisher import Publisher
from batchd.daemon.reloading import Reloader
from batchd.daemon.retry import Reruns
from batchd.daemon.scratch import ScratchCleanup
from batchd.daemon.self_check import SelfCheck
from batchd.daemon.status import Desk, HostCheck
from batchd.daemon.status_file import StatusFile
from batchd.daemon.systemd import SystemdNotifier
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.turns import Turns
from batchd.daemon.writes import DaemonStore
from batchd.governor import Governor
from batchd.governor.news import News
from batchd.lifecycle import Lifecycle
from batchd.log import Action, get_logger
from batchd.pool import threads
from batchd.pool.cluster import Cluster
from batchd.pool.local import LocalEngine
from batchd.pool.supervisor import PoolShape, Supervisor
from batchd.sandbox import Sandbox
from batchd.spool import claims, home, safety
from batchd.spool.inbox import Inbox
from batchd.spool.outbox import OwnOutboxes
from batchd.store import lookups
from batchd.store.rows import StoredWork
from batchd.version import __version__

_DAY_S = 86400.0


@dataclass(eq=False, repr=False)
class Daemon:
    """Everything between inbox and outbox. Use it as a context, or call ``run``."""

    config: Config
    _: KW_ONLY
    listeners: Sequence[Listener] = ()
    finishers: Sequence[Finisher] = ()
    #: Claim what lies in the inbox.
    watch: bool = True
    #: Run tasks, and answer on the control socket; without it there is only ``command``.
    work: bool = True
    #: Whether what 0.2.0 left of directories elsewhere may go.
    drop_packs: bool = False
    #: Work on what is handed over by ``submit`` on the socket, and on nothing else.
    only_errands: bool = False
    #: What SIGHUP reads the configuration with.
    reload: Callable[[], Config] | None = None
    #: What ``check`` looks with.
    look: HostCheck | None = None
    #: What works on a task, ``module:function``.
    agent: str = "batchd.agent.loop:run"
    #: The trouble that keeps what a ``command`` brought about from the outbox;
    #: the next daemon writes it.
    left: tuple[OpenTrouble, ...] = field(default=(), init=False)
    #: What holds commands to their limits together.
    _limits: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._listeners = [*self.listeners]
        self._systemd = SystemdNotifier()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._hangup = asyncio.Event()

    # Ways to run it

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT: then drain; a second one ends at once.

        With ``only_errands`` also until what a ``run`` hands over is done, or no one waits for it.

        Raises ``SpoolLockedError``, ``SandboxUnavailableError``
        or ``StoreError`` where it cannot start.
        """
        with self._signals():
            async with self:
                over = [self.errands.over()] if self.only_errands else []
                await self.loop.first(*over, self._stopping.wait())

    async def command(self, request: ControlRequest[A]) -> A:
        """Carry out one request, with all that it causes,
        where no daemon runs: see ``Commands``.

        Raises what ``run`` raises, but needs no sandbox; and ``BatchdError`` where it is refused.
        """
        async with self:
            answer = await self.commands.carry_out(request, Requester(os.getuid(), os.getpid()))
            troubles = self.troubles
            self.left = await self.loop.idle(lambda: troubles.open)
        return answer

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
        config, state = self.config, Path(self.config.paths.state)
        safety.refuse_seen(config)
        safety.insist(config)
        after_crash = lock.left_behind(state)
        held = lock.acquire(state)
        undo.callback(lock.release, held)
        home.enter_home(state)
        undo.callback(claims.keep_mark, state, claims.mark(state))
        if self.work:
            former_packs.insist(state, drop=self.drop_packs)
            # Refuse to start where commands cannot run.
            sandbox = Sandbox(config.sandbox_policy())
            self._limits = sandbox.limits
            sandbox.rest()
            safety.warn_of_seen(config)
        self.loop = main_loop.MainLoop(self._listeners)
        self.troubles = TroubleLog(get_logger(), ended=self.loop.woken.set)
        self.outboxes = Outboxes(self.troubles, OwnOutboxes(state, claims.mark(state)))
        undo.callback(self.outboxes.close)
        self.store = DaemonStore(state / "batchd.db", self.troubles)
        undo.callback(self.store.close)
        for each in self._listeners:
            undo.push_async_callback(each.close)
        log.hide(config.hidden())
        for finisher in self.finishers:
            undo.push_async_callback(finisher.close)
        self._make(held)
        undo.push_async_callback(self.intake.parser.close)
        undo.push_async_callback(self.attempts.bases.children.close)
        if self.work:
            for listener in self._listeners:
                listener.opened(self.desk, self.store)
            await self._begin(undo, state)
            for listener in self._listeners:
                listener.daemon_started(
                    StartReport(
                        after_crash=after_crash,
                        batches=len(self.batches),
                        tasks=self.lifecycle.unended,
                    )
                )
        else:
            undo.push_async_callback(self.loop.settle)
            self._take_up_all(await move_claimed(config, self.store, self.outboxes))

    def _make(self, held: int) -> None:
        """Make the parts, each of those before it; nothing runs yet.

        ``held``: the spool's lock, which workers hold too.
        """
        config, state = self.config, Path(self.config.paths.state)
        store, outboxes = self.store, self.outboxes
        self.current = current = CurrentConfig(config)
        self.lifecycle = lifecycle = Lifecycle()
        endpoints, missing = tuning.endpoints(config)

        def tell(news: News) -> None:
            self.lot.news.put_nowait(news)

        def booked(day: int) -> float:
            return store.read(lookups.day_money, day).total

        self.governor = governor = Governor(config, missing, tell, booked=booked)
        self.pool = pool = Supervisor(
            self._shape(config),
            tuning.settings(config, endpoints),
            LocalEngine(held, self.agent, state / "pool"),
        )
        self.reloader = reloader = Reloader(
            current, governor, pool, outboxes, self.reload, self._shape
        )
        # Batches, results, and attempts at tasks.
        self.batches = batches = OpenBatches(
            current, lifecycle, store, outboxes, governor, self.finishers
        )
        self.publisher = publisher = Publisher(lifecycle, store, outboxes, batches)
        self.attempts = attempts = Attempts(
            current, lifecycle, store, outboxes, governor, batches, publisher, pool
        )
        self.intake = intake = Intake(current, store, outboxes, batches)
        # What waits, and whose turn it is.
        self.lot = lot = ParkingLot(
            current, lifecycle, store, governor, batches, publisher, attempts, reloader.again
        )
        self.turns = Turns(lifecycle, store, governor, batches, attempts, lot)
        self.predecessors = Predecessors(lifecycle, store, batches, publisher)
        self.scratch = ScratchCleanup(current)
        # What people ask for.
        self.reruns = Reruns(current, lifecycle, store, outboxes, batches, attempts)
        self.errands = Errands(current, lifecycle, store, batches, attempts, intake, self._take_up)
        conditions = "" if self.watch else config.conditions()
        self.desk = Desk(
            *(current, lifecycle, store, governor, batches, attempts, reloader, self.look),
            *(self.watch, conditions),
        )
        self.commands = Commands(
            *(current, lifecycle, store, outboxes, batches, attempts, lot, reloader),
            *(self.reruns, self.errands, self.desk),
        )
        self._listeners += [self.scratch, attempts.bases, lot, self.predecessors, self.commands]

    def _shape(self, config: Config) -> PoolShape:
        """Return how large the pool is; without processes it has no slots, so nothing starts."""
        shape = tuning.shape(config)
        if not self.work:
            return replace(shape, processes=0, machines=())
        # For `batchd run` alone all workers are of this machine.
        here = max(1, config.pool.processes)
        return shape if self.watch else replace(shape, processes=here)

    async def _begin(self, undo: contextlib.AsyncExitStack, state: Path) -> None:
        """Take up what the last daemon left, and begin to work, to watch and to answer."""
        config, store, troubles, pool = self.config, self.store, self.troubles, self.pool
        inbox = None
        if self.watch:
            inbox = Inbox(config, await self.outboxes.threads(config.paths.inbox))
        earlier: set[str] = set()
        if inbox is not None:
            await recovery.give_back_names(config, store)
            earlier = inbox.claimed()
        if self.only_errands:
            self._restore(recovery.part(store.read(lookups.restore), ""), frozenset())
        else:
            self._take_up_all(earlier)
        await recovery.hold_published(self.lifecycle, self.outboxes, self.batches, self.lot)
        status = None
        if inbox is not None:
            status = StatusFile(self.desk, store, self.outboxes)
            undo.push_async_callback(status.stop)
        server = Server(state, self.commands)
        undo.push_async_callback(server.stop)
        scratch.above(config).mkdir(mode=0o700, exist_ok=True)
        pool.start(self.attempts)
        troubles.also(Action.WORKER_TROUBLE, lambda: pool.trouble)
        troubles.also(Action.NODE_TROUBLE, pool.machine_trouble)
        troubles.also(Action.WORKER_TROUBLE, lambda: self.turns.placing.missing)
        troubles.also(Action.ANSWER_OVERLONG, self.governor.estimates.overlong)
        undo.push_async_callback(self._drain)
        if inbox is not None:
            await inbox.start()
            troubles.also(Action.INBOX_TROUBLE, lambda: inbox.trouble)
            undo.push_async_callback(inbox.stop)
            self.loop.spawn(self.intake.run(inbox, earlier), endless=True)
        if self.watch and config.pool.engine == "ray":
            cluster = Cluster(lambda: self.current.config, pool, self._workload)
            troubles.also(Action.CLUSTER_TROUBLE, lambda: cluster.trouble)
            self.loop.spawn(cluster.run(), endless=True)
        await server.start()  # last, for who waits for it takes it for the sign that all is up
        for work in self._watches(server):
            self.loop.spawn(work, endless=True)
        if status is not None:
            self.loop.spawn(status.keep(), endless=True)
        get_logger().info(
            Action.DAEMON_STARTED,
            version=__version__,
            pid=os.getpid(),
            batches=len(self.batches),
            limits=self._limits,
        )
        self.loop.spawn(self.turns.watch(), endless=True)
        self.loop.woken.set()
        self._systemd.ready()

    def _workload(self) -> int:
        """Return how many tasks are at work, or could be."""
        if self.loop.closing:
            return 0
        return len(self.attempts.active) + self.lifecycle.startable

    def _watches(self, server: Server) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what looks at something for as long as the daemon runs."""
        if self._systemd.every_s:
            yield self._systemd.feed()
        yield writes.tidy(self.current, self.store)
        yield writes.keep(self.store, self.troubles, server)
        yield threads.give_back()
        yield self.lot.follow()
        yield self.lot.watch()
        yield SelfCheck(
            self.lifecycle,
            self.troubles,
            self.governor,
            self.batches,
            self.turns,
            self.attempts,
        ).report_stalls()
        if self.reload is not None:
            yield self._reloads()

    async def _drain(self) -> None:
        """Let running tasks reach a durable point, then end the pool."""
        pool = self.pool
        self._systemd.stopping()
        get_logger().info(Action.DAEMON_STOPPING, tasks=len(self.attempts.active))
        self.attempts.drain()
        await self.loop.race(pool.drain(self.current.config.pool.drain_s), self._at_once.wait())
        await pool.close()
        await self.loop.settle()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle signals meanwhile, also one that came before: they only set flags."""
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            # With nothing to reload it means what it says: the terminal is gone.
            signal.SIGHUP: self._hangup.set if self.reload else self.stop,
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

    # What an earlier daemon left

    def _take_up_all(self, claimed: AbstractSet[str]) -> None:
        """Take everything up; ``claimed``: the claims whose files are still to be moved."""
        # Of 100,000 queued tasks nothing is garbage:
        # to look for it again and again takes half of the time.
        gc.disable()
        restored = self.store.read(lookups.restore)
        self._restore(restored, claimed)
        queued = [task.ref for task in restored.queued]
        self.scratch.sweep(queued)
        former_packs.forget(Path(self.config.paths.state), queued)
        gc.freeze()
        gc.enable()

    def _take_up(self, name: str, claimed: AbstractSet[str]) -> None:
        """Take one batch up, unless that is done."""
        if self.batches.get(name) is None:
            self._restore(recovery.part(self.store.read(lookups.restore), name), claimed)

    def _restore(self, restored: StoredWork, claimed: AbstractSet[str]) -> None:
        """Hand what the store has to the parts that work on it."""
        self.attempts.starting.restore()
        torn = self.reruns.torn(restored.batches)
        self.batches.restore(restored, claimed | {batch.claim for batch in torn})
        self.publisher.restore(restored)
        for batch in torn:
            self.loop.spawn(self.reruns.bring_again(batch))
        self.predecessors.restore(restored.batches)
        self.lot.restore(restored.parked, restored.given_back)

    # While it runs

    async def _reloads(self) -> None:
        """Read the configuration again at each SIGHUP."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._systemd.reloading()
            await self.reloader.reload()
            self._systemd.ready()
