"""A task that a worker works on, as the daemon sees it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from batchd import wire
from batchd.daemon.task_log import TaskLog
from batchd.events import CancelRequested, Suspended, TaskFinished, Terms
from batchd.governor import ParkDecision
from batchd.pool.pool_worker import PoolWorker
from batchd.records import Activity, Base, ModelSetup, Purpose, Ref, Task
from batchd.store.rows import DispatchedTask


@dataclass(slots=True, eq=False)
class ActiveAttempt:
    """One attempt at one task."""

    ref: Ref
    worker: PoolWorker
    #: 0 until the store has given it one; then the rest is known too.
    attempt: int = 0
    #: What the store gave with it.
    given: DispatchedTask | None = None
    task: Task | None = None
    terms: Terms | None = None
    #: What its directory begins as, where that is a clone or a copy.
    base: Base | None = None
    log: TaskLog | None = None
    #: What it is doing, for people, and since when.
    step: Activity = "starting"
    detail: str = ""
    since: float = field(default_factory=time.time)
    #: How long that may take beyond what such a step may:
    #: the lease of a machine that is not reached, in seconds.
    fence_s: float = 0.0
    #: What it was asked to end with.
    stop: CancelRequested | Suspended | None = None
    #: Its request that waits at the governor; the events are committed by ``flushed``.
    waiting: wire.Ask | None = None
    #: When it last made one, by the loop's clock.
    asked_at: float = 0.0
    #: Whether it waits for an answer of ours: until then nothing of it is at work in its worker.
    idle: bool = False
    flushed: asyncio.Task[object] | None = None
    #: What its worker has said that is yet to become durable.
    writes: set[asyncio.Task[object]] = field(default_factory=set)
    #: Why its call has to wait for long.
    park: ParkDecision | None = None
    #: The durable ends of the attempt.
    finished: TaskFinished | None = None
    suspended: Suspended | None = None

    def fences(self, lease_of: str, fence_s: float) -> None:
        """Note that it waits until nothing there changes its directory any more."""
        self.step, self.detail, self.since = "waiting", f"the lease of {lease_of}", time.time()
        self.fence_s = fence_s

    def lines(self) -> TaskLog:
        """Return what writes its lines, once it has begun."""
        if self.log is None:
            assert self.task is not None, "it has begun"
            self.log = TaskLog(self.ref, self.worker.fields(), self.task.model)
        return self.log

    def asks(self) -> None:
        """Note that it has made a request, and waits for its answer from now on."""
        self.asked_at, self.idle = asyncio.get_running_loop().time(), True

    def writing(self, task: asyncio.Task[object]) -> asyncio.Task[object]:
        """Note, and return, what makes something durable that its worker has said."""
        self.writes.add(task)
        task.add_done_callback(self.writes.discard)
        return task

    async def written(self) -> None:
        """Return when all that its worker has said is durable, or never will be."""
        while self.writes:
            await asyncio.wait(set(self.writes))

    def answer(self, message: wire.Down) -> None:
        """Send it the answer: it is at work again."""
        self.idle = False
        self.worker.channel.send(message)

    def waited_s(self) -> float:
        """Return how long it has waited: for its turn, and for what must be durable before."""
        return asyncio.get_running_loop().time() - self.asked_at

    def setup(self, purpose: Purpose) -> ModelSetup:
        """Return how the model for ``purpose`` is called."""
        assert self.terms is not None
        return self.terms.setup(purpose)
