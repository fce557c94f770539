"""The daemon's half of the pool: starts workers, gives them tasks, watches them, buries them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from batchd import __version__, pauses, wire
from batchd.errors import NotPossibleError, cut
from batchd.pauses import doubled
from batchd.pool import code
from batchd.pool.engines import Engine
from batchd.pool.handler import PoolHandler
from batchd.pool.joining.remote_worker import RemoteWorker
from batchd.pool.pool_worker import PoolWorker
from batchd.pool.roster import Roster
from batchd.pool.shape import PoolShape
from batchd.pool.unfit import UnfitNodes
from batchd.records import Needs, Ref
from batchd.records.tasks import NOTHING

#: A worker that has not said Hello by then is killed:
#: loading everything without the fork server takes a second.
_START_S = 60.0
#: What one that is being forked gets when all are to end,
#: and what the others get once they are killed.
_FORK_S, _END_S = 2.0, 20.0
#: A worker without a task for so long ends, the last one apart.
_IDLE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
#: No worker has more memory, whatever it says: bytes.
_MOST_RSS = 1 << 44
#: So many workers in a row that do not come up are a trouble: tasks wait for another.
_HOPELESS = 3
#: What helps where the files on the disk are not those that the daemon runs.
RESTART = "restart the daemon; what waits goes on then"
#: What helps where no sandbox is as strong as asked for.
_SANDBOX = "give it what the sandbox needs, and start its worker again"
#: What helps otherwise.
_AGAIN = "see the log; batchd tries again by itself"


class Supervisor:
    """The pool. ``start`` it within a running loop; ``close`` ends every worker."""

    def __init__(self, shape: PoolShape, settings: wire.WorkerSettings, engine: Engine) -> None:
        self._shape = shape
        self._settings = settings
        self._engine = engine
        #: Set by ``start``, before there is a worker.
        self._handler: PoolHandler
        self._roster = Roster(shape.has)
        self._lives: set[asyncio.Task[None]] = set()
        #: Workers that ended before they were up, running.
        self._failures = 0
        self.unfit = UnfitNodes()
        #: Why no worker comes up, with the fix, and since when;
        #: None: they do. Tasks get only those that are up.
        self.trouble: tuple[NotPossibleError, float] | None = None
        self._closing = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def workers(self) -> tuple[PoolWorker, ...]:
        """The workers that live."""
        return self._roster.all

    def start(self, handler: PoolHandler) -> None:
        """Begin to watch, and keep one worker warm; ``handler`` learns what workers say."""
        self._handler = handler
        code.fingerprint()  # of what this process runs, before an upgrade can change it
        self._engine.prepare()
        self._watch = asyncio.get_running_loop().create_task(self._watch_workers())
        self._watch.add_done_callback(self._ended)
        if self._shape.processes:
            self._start_worker()

    def admit(self, life: RemoteWorker) -> None:
        """Take in a worker that came from another machine."""
        worker = PoolWorker(
            self._received,
            life,
            joined=True,
            badge=life.badge,
            has=life.has,
            most=self._shape.max_frame,
        )
        self._take_in(worker, self._attend(worker, life))

    def idle(self, for_s: float) -> list[int]:
        """Return the badges of workers that joined and have had no task for so long,
        those idle for longest first.
        """
        return self._roster.idle(asyncio.get_running_loop().time() - for_s)

    def dismiss(self, badge: int) -> None:
        """Retire a worker that joined: it ends once it has no task."""
        for worker in self.workers:
            if worker.badge == badge:
                self._retire(worker)

    def send_away(self, worker: PoolWorker, problem: str, fix: str) -> None:
        """End a worker that joined for what is wrong on its machine;
        its tasks go on elsewhere once its lease is over.
        """
        if not worker.retiring:
            self.unfit.add(worker.node, problem, fix)
            self._handler.unfit(worker, problem)
        worker.kill(problem)

    @property
    def agents(self) -> int:
        """How many tasks can be at work at once."""
        workers = self._shape.processes + sum(each.joined for each in self.workers)
        return workers * self._settings.agents_per_process

    def slots(self) -> int:
        """Return how many tasks could be run now."""
        each = self._settings.agents_per_process
        return self._room() * each + sum(each - len(w.tasks) for w in self._open(NOTHING))

    def slot_alone(self, needs: Needs) -> bool:
        """Return whether a task could have a process of its own now,
        on a machine that has what it needs.
        """
        return self._room(needs) > 0 or self._empty(needs) is not None

    def fits(self, needs: Needs, *, alone: bool = False) -> bool:
        """Return whether a task could be run now on a machine that has what it needs;
        ``alone``: in a process of its own.
        """
        return self.slot_alone(needs) if alone else self._room(needs) > 0 or any(self._open(needs))

    def has(self, needs: Needs) -> bool:
        """Return whether any worker's machine has what a task needs, whatever it does now."""
        here = self._shape.processes and self._shape.has.covers(needs)
        return bool(here) or any(self.could(worker, needs) for worker in self.workers)

    def could(self, worker: PoolWorker, needs: Needs) -> bool:
        """Return whether a task could be given to a worker once that has nothing else to do."""
        return not worker.retiring and self._roster.of(worker).covers(needs)

    @property
    def clearing(self) -> PoolWorker | None:
        """The worker that gets no more tasks, so that one task can have it alone."""
        return self._roster.clearing

    def clear(self, worker: PoolWorker | None) -> bool:
        """Give a worker no more tasks until it has none, and no other one;
        return whether another one gets tasks again.
        """
        return self._roster.clear(worker)

    def reserve(self, ref: Ref, needs: Needs, *, alone: bool = False) -> PoolWorker:
        """Give a slot to a task; there must be one, by ``fits``,
        or for one that needs nothing ``slots`` or ``slot_alone``.
        """
        worker = self._empty(needs) if alone else None
        # Of machines that have as little to do, one without what others may need.
        worker = worker or min(
            self._open(needs),
            key=lambda w: (len(w.tasks), bool(self._roster.of(w))),
            default=None,
        )
        if worker is None or (worker.tasks and self._room(needs)):
            worker = self._start_worker()
        worker.alone, worker.clearing = alone, False
        worker.reserve(ref, needs)
        return worker

    def run(self, worker: PoolWorker, run: wire.Run) -> bool:
        """Start a task in its slot; False if the worker has died meanwhile."""
        leaving = worker.joined and worker.retiring
        if run.ref not in worker.tasks or worker not in self._roster or leaving:
            return False
        worker.give(run, self._settings)
        return True

    def release(self, worker: PoolWorker, ref: Ref) -> None:
        """Take a slot back in which nothing was started."""
        if worker.tasks.pop(ref, None) is not None:
            self._slot_freed(worker)

    def send(self, ref: Ref, message: wire.Down) -> bool:
        """Send a message to the worker that works on a task; False if none does."""
        worker = self._roster.at(ref)
        if worker is not None:
            worker.channel.send(message)
        return worker is not None

    def retune(self, shape: PoolShape, settings: wire.WorkerSettings) -> None:
        """Take over a new configuration; running tasks go on under it where they are."""
        shorter = shape.heartbeat_timeout_s < self._shape.heartbeat_timeout_s
        self._shape, self._settings, self._roster.here = shape, settings, shape.has
        for worker in self.workers:
            if shorter and not worker.joined:  # until now it was right to beat more slowly
                worker.heard()
            worker.channel.send(wire.Retune(worker.settings(settings)))
        for worker in self._roster.started[shape.processes :]:
            self._retire(worker)

    async def drain(self, timeout_s: float) -> None:
        """Let agents reach a durable point, and workers end by themselves,
        for at most ``timeout_s``.
        """
        for worker in self.workers:
            worker.retire()
            worker.channel.send(wire.Drain())
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=timeout_s)

    async def close(self) -> None:
        """End every worker at once."""
        if self._watch is not None:
            self._watch.cancel()
        self._closing.set()
        for worker in self.workers:
            worker.retire()
            worker.kill("the daemon stops")
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=_FORK_S)
        if any(not worker.pid for worker in self.workers):
            self._engine.renew()  # it does not answer: to wait for it would last for ever
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=_END_S)
        for worker in self.workers:
            worker.leave()  # a system call that nothing ends, on a disk that hangs, keeps it

    def _room(self, needs: Needs = NOTHING) -> int:
        """Return how many workers may be started for tasks with these needs."""
        if self.trouble or not self._roster.covers_here(needs):
            return 0
        return max(0, self._shape.processes - len(self._roster.started))

    def _open(self, needs: Needs) -> Iterator[PoolWorker]:
        """Yield the workers that may get a task: while none comes up, only those that have."""
        return self._roster.open(self._settings.agents_per_process, needs, up=bool(self.trouble))

    def _empty(self, needs: Needs) -> PoolWorker | None:
        """Return one of them that has no task."""
        return self._roster.empty(needs, up=bool(self.trouble))

    def _retire(self, worker: PoolWorker) -> None:
        worker.retire()
        if worker.joined:
            worker.channel.send(wire.Drain())
        elif not worker.tasks:
            worker.channel.close()

    # A worker's life

    def _start_worker(self) -> PoolWorker:
        worker = PoolWorker(self._received, self._engine.life())
        self._take_in(worker, self._live(worker))
        return worker

    def _take_in(self, worker: PoolWorker, living: Coroutine[Any, Any, None]) -> None:
        """Greet a worker, and see to its life."""
        settings = worker.settings(self._settings)
        worker.channel.send(wire.Hello(version=__version__, settings=settings))
        self._roster.add(worker)
        life = asyncio.get_running_loop().create_task(living)
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        life.add_done_callback(self._ended)

    async def _attend(self, worker: PoolWorker, life: RemoteWorker) -> None:
        """Wait for the end of a worker that joined,
        and report it when what it worked on cannot change any more.
        """
        await worker.start()
        await worker.ended()
        self._handler.cut_off(worker)
        over = [asyncio.ensure_future(life.unfenced()), asyncio.ensure_future(self._closing.wait())]
        _, others = await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        # A machine that is lost or cut off says nothing of its tasks:
        # only its keeper has seen a worker die of one.
        self._bury(worker, counted=life.died)

    def _ended(self, part: asyncio.Task[None]) -> None:
        """Report the end of a task of the pool: without it, a worker that hangs would do so for
        ever.
        """
        if not part.cancelled() and (error := part.exception()):
            self._handler.broke(error)

    async def _live(self, worker: PoolWorker) -> None:
        """Start a worker, wait for its end, and report it."""
        if self._failures:
            pause = doubled(_FIRST_PAUSE_S, _LONGEST_PAUSE_S, self._failures)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
        try:
            if not self._closing.is_set():
                await worker.start()
                await worker.ended()
        except Exception as error:  # noqa: BLE001 (its tasks must come back, whatever it is: the fork server died, no thread, no descriptor)
            said = str(error) or "the fork server died"
            worker.cause = f"it could not be started: {said}"
            worker.kill(worker.cause)
            worker.channel.close()
        self._failures = 0 if worker.greeted else self._failures + 1
        if self._failures >= _HOPELESS and not self.trouble:
            self._fails(f"{self._failures} in a row ended at once: {worker.cause}", _AGAIN)
        self._bury(worker, counted=worker.greeted)

    def _bury(self, worker: PoolWorker, *, counted: bool) -> None:
        self._roster.remove(worker)
        worker.gone()
        self._handler.died(worker, worker.tasks, counted=counted)

    def _received(self, worker: PoolWorker, message: Any) -> None:
        worker.heard()
        match message:
            case wire.Heartbeat():
                worker.rss = min(message.rss, _MOST_RSS)
                if worker.joined:
                    worker.channel.send(wire.LeaseRenewed(message.number))
            case wire.Hello():
                self._greeted(worker, message)
            case wire.Leaving():
                self._retire(worker)
            case wire.Done(ref=ref, attempt=attempt, outcome=outcome):
                if outcome == "refused":
                    worker.retire()
                if worker.tasks.get(ref) == attempt:
                    del worker.tasks[ref]
                    worker.tasks_done += 1
                    self._slot_freed(worker)
                self._handler.message(worker, message)
            case _:
                self._handler.message(worker, message)

    def _greeted(self, worker: PoolWorker, hello: wire.Hello) -> None:
        if worker.joined:  # the gate has compared the code
            self._joined(worker, hello)
            return
        if (hello.version, hello.code) == (__version__, code.fingerprint()):
            self.trouble = None
            worker.hello()
            self._handler.started(worker)
            return
        # The fork server has died, and the one in its place has loaded what an upgrade left.
        which = "of other files" if hello.version == __version__ else f"batchd {hello.version}"
        cause = f"it is {which}, the daemon {__version__}"
        self._fails(f"a new worker does not fit: {cause}", RESTART)
        worker.kill(f"{cause}: {RESTART}")
        self._engine.renew()  # so that the next try sees whether the files are the daemon's again

    def _joined(self, worker: PoolWorker, hello: wire.Hello) -> None:
        """Take a worker that joined for what it is: one that can run tasks, or not."""
        if hello.problem:
            self.send_away(worker, cut(hello.problem), _SANDBOX)
            return
        self.unfit.discard(worker.node)
        worker.hello()
        self._handler.started(worker)

    def _fails(self, cause: str, fix: str) -> None:
        since = self.trouble[1] if self.trouble else time.time()
        self.trouble = NotPossibleError(f"{cause}: {fix}"), since

    def _slot_freed(self, worker: PoolWorker) -> None:
        worker.alone = False
        worker.idle_since = worker.heard_at
        tasks, rss = self._shape.max_tasks_per_process, self._shape.max_rss_bytes
        if worker.joined and not worker.badge:
            tasks = rss = 0  # who started it by hand would have to start another
        if worker.retiring or 0 < tasks <= worker.tasks_done or 0 < rss < worker.rss:
            self._retire(worker)

    async def _watch_workers(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            every_s = self._settings.heartbeat_s
            due = loop.time() + pauses.until_next(every_s, loop.time())
            await asyncio.sleep(due - loop.time())
            now = loop.time()
            if now - due > every_s:
                continue  # this loop was late itself: what the workers sent is yet to be read
            for worker in self.workers:
                silent_s = worker.lease_s or self._shape.heartbeat_timeout_s
                limit = silent_s if worker.greeted else _START_S
                if now - worker.heard_at > limit:
                    if not worker.pid:
                        self._engine.renew()
                    worker.kill(f"no sign of life for {now - worker.heard_at:.0f} s")
                elif self._superfluous(worker, now):
                    self._retire(worker)
            started = self._roster.started
            trying = any(not worker.greeted for worker in started)
            room = len(started) < self._shape.processes
            if room and (not started or (self.trouble and not trying)):
                self._start_worker()

    def _superfluous(self, worker: PoolWorker, now: float) -> bool:
        idle = not worker.tasks and not worker.retiring and now - worker.idle_since > _IDLE_S
        if worker.joined or not idle:
            return False
        return sum(not each.retiring for each in self._roster.started) > 1
