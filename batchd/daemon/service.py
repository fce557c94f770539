"""The daemon: joins the rooms, and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchd import __version__, control
from batchd.config import Config
from batchd.daemon import lock, tuning
from batchd.daemon.batches import Batches
from batchd.daemon.commands import Commands
from batchd.daemon.core import Core
from batchd.daemon.dispatch import Dispatcher
from batchd.daemon.intake import Intake, new_batch, with_budget
from batchd.daemon.listener import Listener, Listeners
from batchd.daemon.systemd import Notifier
from batchd.errors import BatchdError
from batchd.governor import Governor
from batchd.log import Action
from batchd.pool.supervisor import Supervisor
from batchd.pricing import Prices
from batchd.records import Batch
from batchd.sandbox import Sandbox
from batchd.spool import outbox, taskfile
from batchd.spool.inbox import Inbox, ulid
from batchd.store import Store

_DAY_S = 86400.0
_PRUNE_S = 600.0


class Daemon:
    """Everything between inbox and outbox. Use it as a context, or call ``run`` or ``run_once``."""

    def __init__(
        self,
        config: Config,
        *,
        listeners: Sequence[Listener] = (),
        watch: bool = True,
        reload: Callable[[], Config] | None = None,
        agent: str = "batchd.agent:run",
    ) -> None:
        """``watch``: claim what lies in the inbox. ``reload``: what SIGHUP reads the configuration with.

        ``agent``: what works on a task, ``module:function``.
        """
        self._config = config
        self._listeners = Listeners(listeners)
        self._watch = watch
        self._reload = reload
        self._agent = agent
        self._systemd = Notifier()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._hangup = asyncio.Event()

    # Ways to run it

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT: then drain; a second one ends at once.

        Raises ``SpoolLockedError``, ``SandboxUnavailableError`` or ``StoreError`` where it cannot start.
        """
        with self._signals():
            async with self:
                await self._until_stopped()

    async def run_once(self, files: Sequence[tuple[str, bytes]]) -> list[str]:
        """Work on these files, names and contents, until all are done; return their batches' names.

        A signal cancels every task that has not ended, so that each has its result all the same; a second
        one ends at once. Raises ``TaskFileError``, before anything is done, and what ``run`` raises.
        """
        parsed = [taskfile.parse(data, name, self._config) for name, data in files]
        names: list[str] = []
        with self._signals():
            async with self:
                work = asyncio.ensure_future(self._work_off(files, parsed, names))
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
    ) -> None:
        """Take the files up, and wait for their end; when told to stop, bring that about."""
        for (name, data), tasks in zip(files, parsed, strict=True):
            if not self._stopping.is_set():
                names.append((await self._add(name, data, tasks)).name)
        done = asyncio.gather(*(self._batches.done(name) for name in names))
        stopping = asyncio.ensure_future(self._stopping.wait())
        await _first(done, stopping)
        stopping.cancel()
        for queued in [q for name in names for q in self._core.store.queued(name)]:
            self._dispatcher.cancel(queued.ref, "the run was interrupted")
        await done

    async def submit(self, name: str, data: bytes) -> Batch:
        """Take up a task file by its name and content. Raises ``TaskFileError``."""
        return await self._add(name, data, taskfile.parse(data, name, self._config))

    async def batch_done(self, name: str) -> None:
        """Wait until a batch's ``summary.json`` is written."""
        done = asyncio.ensure_future(self._batches.done(name))
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
        config, state = self._config, Path(self._config.paths.state)
        held = lock.acquire(state)
        undo.callback(lock.release, held)
        Sandbox(config.sandbox_policy())  # refuse to start where commands cannot run
        store = Store.open(state / "batchd.db", retention_s=config.store.retention_days * _DAY_S)
        undo.callback(store.close)
        endpoints, missing = tuning.endpoints(config)
        core = self._core = Core(
            config=config,
            prices=Prices(config.models),
            store=store,
            governor=Governor(config, missing),
            listeners=self._listeners,
        )
        batches = self._batches = Batches(core)
        dispatcher = self._dispatcher = Dispatcher(core, batches)
        dispatcher.pool = Supervisor(
            tuning.shape(config), tuning.settings(config, endpoints), dispatcher, held, self._agent
        )
        inbox = Inbox(config) if self._watch else None
        batches.restore(inbox.claimed() if inbox else set())
        server = control.Server(state, Commands(core, batches, dispatcher).table())
        undo.push_async_callback(server.stop)
        dispatcher.pool.start()
        undo.push_async_callback(self._drain)
        if inbox is not None:
            await inbox.start()
            undo.push_async_callback(inbox.stop)
            core.spawn(Intake(core, batches, inbox).run(), endless=True)
        await server.start()  # last, for who waits for it takes it for the sign that all is up
        core.spawn(self._tick(), endless=True)
        if self._reload is not None:
            core.spawn(self._reloads(self._reload), endless=True)
        core.log.info(
            Action.DAEMON_STARTED, version=__version__, pid=os.getpid(), batches=len(batches)
        )
        dispatcher.pump()
        self._systemd.ready()

    async def _drain(self) -> None:
        """Let running tasks reach a durable point, then end the pool."""
        core, pool = self._core, self._dispatcher.pool
        self._systemd.stopping()
        core.log.info(Action.DAEMON_STOPPING, tasks=len(self._dispatcher.active))
        self._dispatcher.drain()
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

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have signals set flags."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            # With nothing to reload it means what it says: the terminal is gone.
            signal.SIGHUP: self._hangup.set if self._reload else self.stop,
        }
        for signum, handler in handlers.items():
            loop.add_signal_handler(signum, handler)
        try:
            yield
        finally:
            for signum in handlers:
                loop.remove_signal_handler(signum)

    # While it runs

    async def _add(self, name: str, data: bytes, parsed: taskfile.Parsed) -> Batch:
        batch = new_batch(ulid(), name, self._config.paths.outbox, time.time())
        batch = await self._batches.add(with_budget(batch, parsed), parsed.tasks)
        request = Path(batch.folder) / batch.request
        await self._core.on_disk(lambda: outbox.publish(request, data, replace=True))
        self._batches.moved(batch.name)
        return batch

    async def _tick(self) -> None:
        """Feed the watchdog, and drop what nobody needs any more."""
        core, every_s = self._core, self._systemd.every_s or _PRUNE_S
        pruned = 0.0
        while True:
            self._systemd.alive()
            if time.monotonic() - pruned > _PRUNE_S:
                pruned = time.monotonic()
                await core.durable(lambda: core.store.prune(time.time()))
            await asyncio.sleep(every_s)

    async def _reloads(self, reload: Callable[[], Config]) -> None:
        """Read the configuration again at each SIGHUP; keep the old one where the new one is wrong."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._systemd.reloading()
            try:
                self._retune(await asyncio.to_thread(reload))
            except BatchdError as error:
                message = str(error)
                self._core.log.error(Action.CONFIG_RELOADED, kept_old=True, message=message)  # noqa: TRY400 (a user's mistake has no traceback)
            self._systemd.ready()

    def _retune(self, config: Config) -> None:
        """Take over a new configuration; inbox and state stay where they are."""
        old = self._config.paths
        paths = replace(config.paths, inbox=old.inbox, state=old.state)
        config = self._config = self._core.config = replace(config, paths=paths)
        endpoints, missing = tuning.endpoints(config)
        self._core.prices = Prices(config.models)
        self._core.governor.retune(config, missing)
        self._dispatcher.pool.retune(tuning.shape(config), tuning.settings(config, endpoints))
        self._core.log.info(Action.CONFIG_RELOADED, file=config.file)
        self._dispatcher.pump()


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
