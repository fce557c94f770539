"""The daemon's half of the pool: starts workers, gives them tasks, watches them, buries them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from batchd import pauses, wire
from batchd.config.sections import MachineSection
from batchd.errors import NotPossibleError
from batchd.pauses import doubled
from batchd.pool import code
from batchd.pool.local import LocalEngine
from batchd.pool.pool_worker import PoolWorker
from batchd.pool.remote import (
    CLOCK_FIX,
    Machine,
    RemoteTerms,
    RemoteWorker,
    Trouble,
    clock_problem,
)
from batchd.records import Place, Ref
from batchd.records.tasks import ANYWHERE
from batchd.version import __version__

#: A worker that has not said Hello by then is killed:
#: loading everything without the fork server takes a second.
_START_S = 60.0
#: What one that is being forked gets when all are to end,
#: and what the others get once they are killed.
_FORK_S, _END_S = 2.0, 20.0
#: A worker without a task for so long ends, the last one apart.
_IDLE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_FIRST_START_S, _LAST_START_S = 1.0, 300.0
#: No worker has more memory, whatever it says: bytes.
_MOST_RSS = 1 << 44
#: So many workers in a row that do not come up are a trouble: tasks wait for another.
_HOPELESS = 3
#: What helps where other files on the disk are not the reason.
_AGAIN = "see the log; batchd tries again by itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolShape:
    """The size of the pool, and when a worker is replaced: ``[pool]`` of the configuration."""

    processes: int = 4
    #: A worker silent for longer is killed.
    heartbeat_timeout_s: float = 30.0
    #: A worker is replaced after so many tasks; 0: never.
    max_tasks_per_process: int = 0
    #: A worker is replaced when its resident memory passes this; 0: never.
    max_rss_bytes: int = 0
    #: The provider that judges tasks of any model; empty: none does.
    judge: str = ""
    #: The machines that workers are kept on beside those here, and the folders that all share.
    machines: tuple[MachineSection, ...] = ()
    folders: tuple[str, ...] = ()


class PoolHandler(Protocol):
    """The handler of what the pool reports to the daemon; called on the loop."""

    def message(self, worker: PoolWorker, message: Any) -> None:
        """``Ask``, ``Failed``, ``Record``, ``Progress`` or ``Done`` came;
        a ``Done`` has freed its slot.
        """

    def started(self, worker: PoolWorker) -> None:
        """A worker is up."""

    def suits_more(self) -> None:
        """Tasks that no worker suited may be given to one now."""

    def broke(self, error: BaseException) -> None:
        """A part of the pool has ended that must not: a bug."""

    def cut_off(self, worker: PoolWorker) -> None:
        """A worker of another machine is reached no more:
        what it waits for is not for it; ``died`` follows when it is over.
        """

    def died(self, worker: PoolWorker, lost: Mapping[Ref, int], *, counted: bool) -> None:
        """A worker has ended with tasks ``lost``, by attempt; 0 where none was started.

        ``counted``: they may have killed it.
        """


class Supervisor:
    """The pool. ``start`` it within a running loop; ``close`` ends every worker."""

    def __init__(
        self, shape: PoolShape, settings: wire.WorkerSettings, engine: LocalEngine
    ) -> None:
        self._shape = shape
        self._settings = settings
        self._engine = engine
        #: Set by ``start``, before there is a worker.
        self._handler: PoolHandler
        #: Those that live, the oldest first.
        self._members: list[PoolWorker] = []
        self._lives: set[asyncio.Task[None]] = set()
        #: Workers that ended before they were up, running.
        self._failures = 0
        #: Why no worker comes up, with the fix, and since when;
        #: None: they do. Tasks get only those that are up.
        self.trouble: Trouble | None = None
        self._closing = asyncio.Event()
        #: By name.
        self.machines: dict[str, Machine] = {}
        self._watch: asyncio.Task[None] | None = None

    @property
    def workers(self) -> tuple[PoolWorker, ...]:
        """The workers that live, the oldest first."""
        return tuple(self._members)

    @property
    def _started(self) -> tuple[PoolWorker, ...]:
        """Those of this machine."""
        return tuple(member for member in self._members if not member.remote)

    def start(self, handler: PoolHandler) -> None:
        """Begin to watch, and keep one worker warm; ``handler`` learns what workers say."""
        self._handler = handler
        code.fingerprint()  # of what this process runs, before an upgrade can change it
        code.content()
        self._engine.prepare()
        self._watch = asyncio.get_running_loop().create_task(self._watch_workers())
        self._watch.add_done_callback(self._ended)
        if self._shape.processes:
            self._start_worker()
        self._man()

    def _man(self) -> None:
        """Keep workers on the machines of the configuration, and on no others."""
        wanted = {section.called: section for section in self._shape.machines}
        for name, machine in [*self.machines.items()]:
            if machine.section != wanted.get(name):
                del self.machines[name]
                machine.end()
                for worker in self.workers:
                    if worker.machine == name:
                        self.retire(worker)
        for machine in self.machines.values():  # for those who start from now on
            machine.terms = self.remote_terms
        for worker in self.workers:
            if isinstance(worker, RemoteWorker) and worker.greeted:
                proved = worker.terms.folders, worker.terms.policy.user
                if proved != (self._shape.folders, self._settings.sandbox.user):
                    self.retire(worker)  # another one proves what is shared now
        for name in wanted.keys() - self.machines.keys():
            self.machines[name] = machine = Machine(wanted[name], self.remote_terms)
            for _ in range(machine.section.processes):
                self._begin(self._keep(machine))

    @property
    def remote_terms(self) -> RemoteTerms:
        """The terms of workers elsewhere that start now."""
        shape = self._shape
        return RemoteTerms(shape.folders, self._settings.sandbox, shape.heartbeat_timeout_s)

    def machine_trouble(self) -> Trouble | None:
        """Return the trouble that machines have no workers, and since when; None: all have some."""
        found = [each.trouble for each in self.machines.values() if each.trouble]
        if not found:
            return None
        others = [name for name, each in self.machines.items() if each.trouble][1:]
        more = f"{', '.join(others)} too; " * bool(others)
        return NotPossibleError(f"{more}{found[0][0]}"), min(since for _, since in found)

    async def _keep(self, machine: Machine) -> None:
        """Keep one worker of a machine, for as long as the configuration has it."""
        failures = 0
        while not machine.over.is_set():
            async with machine.starts:
                if machine.over.is_set():
                    return
                worker = machine.worker(self.received)
                living = self.admit(worker)
                came = await worker.up()
            await asyncio.wait({living})
            failures = 0 if came else failures + 1
            if failures:
                machine.hurry.clear()
                pause_s = doubled(_FIRST_START_S, _LAST_START_S, failures)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(machine.hurry.wait(), pause_s)
                    failures = 0

    def admit(self, worker: RemoteWorker) -> asyncio.Task[None]:
        """Take in a worker elsewhere; return what sees to its life."""
        self._members.append(worker)
        return self._begin(self._attend(worker))

    @property
    def agents(self) -> int:
        """How many tasks can be at work at once."""
        workers = self._shape.processes + sum(each.remote for each in self.workers)
        return workers * self._settings.agents_per_process

    def slots(self) -> int:
        """Return how many tasks could be run now."""
        each = self._settings.agents_per_process
        return self._room() * each + sum(each - len(w.tasks) for w in self._open(ANYWHERE))

    def slot_alone(self, place: Place) -> bool:
        """Return whether a task could have a process of its own now."""
        return self._room(place) > 0 or self._empty(place) is not None

    def fits(self, place: Place, *, alone: bool = False) -> bool:
        """Return whether a task could be run now; ``alone``: in a process of its own."""
        return self.slot_alone(place) if alone else self._room(place) > 0 or any(self._open(place))

    def has(self, place: Place) -> bool:
        """Return whether any worker suits a task, whatever it does now."""
        here = self._shape.processes and not place.machine
        return bool(here) or any(self.could(worker, place) for worker in self.workers)

    def could(self, worker: PoolWorker, place: Place) -> bool:
        """Return whether a task could be given to a worker once that has nothing else to do."""
        return not worker.retiring and worker.suits(place)

    @property
    def clearing(self) -> PoolWorker | None:
        """The worker that gets no more tasks, so that one task can have it alone."""
        return next((m for m in self._members if m.clearing and not m.retiring), None)

    def clear(self, worker: PoolWorker | None) -> bool:
        """Give a worker no more tasks until it has none, and no other one;
        return whether another one gets tasks again.
        """
        again = [m for m in self._members if m.clearing and m is not worker]
        for each in again:
            each.clearing = False
        if worker is not None:
            worker.clearing = True
        return bool(again)

    def reserve(self, ref: Ref, place: Place, *, alone: bool = False) -> PoolWorker:
        """Give a slot to a task; there must be one, by ``fits`` or ``slot_alone``."""
        worker = self._empty(place) if alone else None
        worker = worker or min(self._open(place), key=lambda w: len(w.tasks), default=None)
        if worker is None or (worker.tasks and self._room(place)):
            worker = self._start_worker()
        worker.alone, worker.clearing = alone, False
        worker.tasks[ref] = 0
        return worker

    def run(self, worker: PoolWorker, run: wire.Run) -> bool:
        """Start a task in its slot; False if the worker has died meanwhile."""
        leaving = worker.remote and worker.retiring
        if run.ref not in worker.tasks or worker not in self._members or leaving:
            return False
        worker.give(run)
        return True

    def release(self, worker: PoolWorker, ref: Ref) -> None:
        """Take a slot back in which nothing was started."""
        if worker.tasks.pop(ref, None) is not None:
            self._slot_freed(worker)

    def send(self, ref: Ref, message: wire.Down) -> bool:
        """Send a message to the worker that works on a task; False if none does."""
        worker = next((member for member in self._members if ref in member.tasks), None)
        if worker is not None:
            worker.channel.send(message)
        return worker is not None

    def retune(self, shape: PoolShape, settings: wire.WorkerSettings) -> None:
        """Take over a new configuration; running tasks go on under it where they are."""
        shorter = shape.heartbeat_timeout_s < self._shape.heartbeat_timeout_s
        self._shape, self._settings = shape, settings
        for worker in self.workers:
            if shorter and not worker.remote:  # until now it was right to beat more slowly
                worker.heard()
            if worker.greeted or not worker.remote:
                worker.channel.send(wire.Retune(worker.settings(settings)))
        for worker in self._started[shape.processes :]:
            self.retire(worker)
        for machine in self.machines.values():  # what was wrong may have been put right
            machine.hurry.set()
        self._man()

    async def drain(self, timeout_s: float) -> None:
        """Let agents reach a durable point, and workers end by themselves,
        for at most ``timeout_s``.
        """
        for machine in self.machines.values():
            machine.end()
        for worker in self.workers:
            worker.retire()
            if worker.remote and not worker.greeted:
                worker.kill("the daemon stops")
            worker.channel.send(wire.Drain())
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=timeout_s)

    async def close(self) -> None:
        """End every worker at once."""
        if self._watch is not None:
            self._watch.cancel()
        self._closing.set()
        for machine in self.machines.values():
            machine.end()
        for worker in self.workers:
            worker.retire()
            worker.kill("the daemon stops")
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=_FORK_S)
        if any(not worker.pid for worker in self._started):
            self._engine.renew()  # it does not answer: to wait for it would last for ever
        if self._lives:
            await asyncio.wait(set(self._lives), timeout=_END_S)
        for worker in self.workers:
            worker.leave()  # a system call that nothing ends, on a disk that hangs, keeps it

    def _room(self, place: Place = ANYWHERE) -> int:
        """Return how many workers of this machine may be started for a task."""
        if self.trouble or place.machine:
            return 0
        return max(0, self._shape.processes - len(self._started))

    def _open(self, place: Place) -> Iterator[PoolWorker]:
        """Yield the workers that have room for another task."""
        for worker in self._usable(place):
            if not worker.clearing and len(worker.tasks) < self._settings.agents_per_process:
                yield worker

    def _empty(self, place: Place) -> PoolWorker | None:
        """Return a worker without a task, best one that was cleared."""
        empty = (worker for worker in self._usable(place) if not worker.tasks)
        return max(empty, key=lambda worker: worker.clearing, default=None)

    def _usable(self, place: Place) -> Iterator[PoolWorker]:
        """Yield the workers that may get a task: while none comes up, only those that have."""
        for worker in self._members:
            closed = worker.retiring or worker.alone or worker.channel.clogged
            up = worker.greeted or not (self.trouble or worker.remote)
            if up and not closed and worker.suits(place):
                yield worker

    def retire(self, worker: PoolWorker) -> None:
        """Give a worker no more tasks: it ends once it has none."""
        worker.retire()
        if worker.remote and not worker.greeted:
            worker.kill("it was to end before it had started")
        elif worker.remote:
            worker.channel.send(wire.Drain())
        elif not worker.tasks:
            worker.channel.close()

    # A worker's life

    def _start_worker(self) -> PoolWorker:
        worker = self._engine.worker(self.received)
        self._greet(worker)
        self._members.append(worker)
        self._begin(self._live(worker))
        return worker

    def _greet(self, worker: PoolWorker, **more: Any) -> None:
        settings = worker.settings(self._settings)
        worker.channel.send(wire.Hello(version=__version__, settings=settings, **more))

    def _begin(self, part: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a part of the pool, which must not end in an error."""
        life = asyncio.get_running_loop().create_task(part)
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        life.add_done_callback(self._ended)
        return life

    async def _attend(self, worker: RemoteWorker) -> None:
        """Wait for the end of a worker elsewhere,
        and report it when what it worked on cannot change any more.
        """
        try:
            await worker.start()
            self._greet(worker, salt=worker.salt, proofs=tuple(worker.words))
            await worker.ended()
        except Exception as error:  # noqa: BLE001 (its tasks must come back, whatever it is)
            worker.cause = worker.cause or str(error) or type(error).__name__
            worker.kill(worker.cause)
        if not worker.greeted:
            worker.fails(worker.cause, worker.fix)
            self._bury(worker, counted=False)
            return
        self._handler.cut_off(worker)
        over = {asyncio.ensure_future(e) for e in (worker.unfenced(), self._closing.wait())}
        _, others = await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        # A machine that is lost or cut off says nothing of its tasks:
        # only its parent has seen a worker die of one.
        self._bury(worker, counted=worker.died)

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
        self._members.remove(worker)
        worker.gone()
        self._handler.died(worker, worker.tasks, counted=counted)

    def received(self, worker: PoolWorker, message: Any) -> None:
        """Take what a worker says."""
        worker.heard()
        match message:
            case wire.Heartbeat():
                worker.rss = min(message.rss, _MOST_RSS)
                if isinstance(worker, RemoteWorker):
                    worker.channel.send(wire.LeaseRenewed(message.number))
                    if why := clock_problem(message.at):
                        worker.fails(why, CLOCK_FIX)
                        worker.kill(why)
            case wire.Hello() if isinstance(worker, RemoteWorker):
                self._begin(self._examine(worker, message))
            case wire.Hello():
                self._greeted(worker, message)
            case wire.KeysFound(keys=keys) if isinstance(worker, RemoteWorker):
                worker.has_keys(keys, self._settings, self._shape.judge)
                self._eased(worker)
                self._handler.suits_more()
            case wire.Parted(died=died) if isinstance(worker, RemoteWorker):
                worker.over_there(died=died)
            case wire.Leaving():
                self.retire(worker)
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
        if (hello.version, hello.code) == (__version__, code.fingerprint()):
            self.trouble = None
            worker.hello()
            self._handler.started(worker)
            return
        # The fork server has died, and the one in its place has loaded what an upgrade left.
        which = "of other files" if hello.version == __version__ else f"batchd {hello.version}"
        cause = f"it is {which}, the daemon {__version__}"
        self._fails(f"a new worker does not fit: {cause}", code.RESTART)
        worker.kill(f"{cause}: {code.RESTART}")
        self._engine.renew()  # so that the next try sees whether the files are the daemon's again

    async def _examine(self, worker: RemoteWorker, hello: wire.Hello) -> None:
        """Take a worker of a machine, unless no task can run there."""
        try:
            problem, worker.fix = await worker.problem(hello)
        except Exception as error:  # noqa: BLE001 (it is that machine's trouble, whatever it is)
            problem = str(error) or type(error).__name__
        if problem or worker not in self._members:
            worker.kill(problem)
            return
        assert hello.machine is not None, "it has said what it finds"
        worker.has_keys(hello.machine.keys, self._settings, self._shape.judge)
        self._eased(worker)
        worker.hello()
        # What was changed while it started.
        worker.channel.send(wire.Retune(worker.settings(self._settings)))
        self._handler.started(worker)

    def _eased(self, worker: RemoteWorker) -> None:
        """Take a machine's trouble for over, unless a key that is there was refused."""
        machine = self.machines.get(worker.machine)
        elsewhere = (each for each in self.workers if isinstance(each, RemoteWorker))
        if machine and all(e.keys_fit for e in elsewhere if e.machine == worker.machine):
            machine.trouble = None

    def _fails(self, cause: str, fix: str) -> None:
        since = self.trouble[1] if self.trouble else time.time()
        self.trouble = NotPossibleError(f"{cause}: {fix}"), since

    def _slot_freed(self, worker: PoolWorker) -> None:
        worker.alone = False
        worker.idle_since = worker.heard_at
        tasks, rss = self._shape.max_tasks_per_process, self._shape.max_rss_bytes
        if worker.retiring or 0 < tasks <= worker.tasks_done or 0 < rss < worker.rss:
            self.retire(worker)

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
                    if not (worker.pid or worker.remote):
                        self._engine.renew()
                    worker.kill(f"no sign of life for {now - worker.heard_at:.0f} s")
                elif self._superfluous(worker, now):
                    self.retire(worker)
            started = self._started
            trying = any(not worker.greeted for worker in started)
            room = len(started) < self._shape.processes
            if room and (not started or (self.trouble and not trying)):
                self._start_worker()

    def _superfluous(self, worker: PoolWorker, now: float) -> bool:
        idle = not worker.tasks and not worker.retiring and now - worker.idle_since > _IDLE_S
        if worker.remote or not idle:
            return False
        return sum(not each.retiring for each in self._started) > 1
