"""Attempts at tasks: performs what follows for those that have a slot, and takes what
their workers report.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from batchd import free_room, wire
from batchd.daemon import main_loop
from batchd.daemon.active import ActiveAttempt
from batchd.daemon.bases import Bases
from batchd.daemon.batches import OpenBatches
from batchd.daemon.calls import Calls
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.lessons import Lessons
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.publisher import Publisher
from batchd.daemon.starting import AttemptStarter, PlaceLook
from batchd.daemon.writes import DaemonStore
from batchd.errors import NotPossibleError, StaleAttemptError
from batchd.events import CancelRequested, Suspended, TaskStarted
from batchd.governor import Governor
from batchd.lifecycle import Input, Lifecycle, inputs
from batchd.lifecycle.effects import (
    Confirm,
    Effect,
    End,
    Free,
    HandOver,
    Publish,
    Recover,
    Start,
    Stop,
    Suspend,
)
from batchd.log import Action, get_logger
from batchd.pool.pool_worker import PoolWorker
from batchd.pool.supervisor import Supervisor
from batchd.records import Base, Cause, HoldKey, Origin, Reason, Ref, Scope, TaskStatus
from batchd.sandbox import check_user
from batchd.silent_paths import SilentPathError
from batchd.store import lookups, operations
from batchd.store.operations import wanted

#: What the result says of a task at which an agent broke.
_BROKE = "an error inside batchd ended this task; the log has the details"


@dataclass(slots=True, eq=False, repr=False)
class Attempts:
    """The tasks that have a slot; the pool's ``PoolHandler``."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _outboxes: Outboxes
    _governor: Governor
    _batches: OpenBatches
    _publisher: Publisher
    pool: Supervisor
    #: What clones and copies begin at.
    bases: Bases = field(init=False)
    #: The calls of tasks at work.
    calls: Calls = field(init=False)
    starting: AttemptStarter = field(init=False)
    _active: dict[Ref, ActiveAttempt] = field(default_factory=dict)
    #: Slots whose pause between two tasks is not over.
    _resting: int = 0

    def __post_init__(self) -> None:
        self.bases = Bases(self._current, self._lifecycle, self._publisher, self._outboxes)
        lessons = Lessons(self._current, self._store)
        self.calls = Calls(self._lifecycle, self._store, self._governor, lessons)
        self.starting = AttemptStarter(self._current, self._store, self._governor, lessons)

    @property
    def active(self) -> tuple[ActiveAttempt, ...]:
        """The tasks that workers work on."""
        return tuple(self._active.values())

    def get(self, ref: Ref) -> ActiveAttempt | None:
        """Return the attempt at a task; None: it has no slot."""
        return self._active.get(ref)

    @property
    def free(self) -> int:
        """How many tasks may start now; slots that rest do not count."""
        return self.pool.slots() - self._resting

    def _rest(self) -> None:
        """Keep a slot free for the pause between two tasks."""
        if pause := self._current.config.pool.rest_s:
            self._resting += 1
            asyncio.get_running_loop().call_later(pause, self._rested)

    def _rested(self) -> None:
        self._resting -= 1
        main_loop.wake()

    def reserve(self, ref: Ref, *, alone: bool = False) -> None:
        """Begin an attempt at a task whose turn it is; ``alone``: in a process of its own.

        There must be a slot.
        """
        worker = self.pool.reserve(ref, self._lifecycle.place_of(ref), alone=alone)
        self._active[ref] = ActiveAttempt(ref, worker)
        self.take(inputs.SlotFree(ref))

    def drain(self) -> None:
        """Start nothing more, and have requests that wait answered with a suspension."""
        main_loop.current().closing = True
        for active in self.active:
            self.take(inputs.Halt(active.ref, Suspended(at=time.time(), cause="drain")))

    def cancel(self, ref: Ref, message: str) -> None:
        """End a task that has not ended."""
        self.take(inputs.CancelOrdered(ref, CancelRequested(at=time.time(), message=message)))

    async def end_all(
        self, refs: Sequence[Ref], message: str, check: Callable[[], None] = wanted
    ) -> None:
        """End tasks: those at work at their next durable point, the others now, most of them
        together. ``check``: raises ``WithdrawnError`` where that is not wanted any more.

        Once the first are durable the order is, also where its giver leaves. Raises
        ``WithdrawnError`` before that, and ``NotPossibleError``
        with what was done where the store takes no more.
        """
        active = {*self._active}
        wish = CancelRequested(at=time.time(), message=message)
        # All at once: nothing of them starts any more.
        orders = (inputs.CancelOrdered(ref, wish) for ref in refs if ref not in active)
        effects = [effect for each in orders for effect in self._lifecycle.take(each)]
        ends = [effect for effect in effects if isinstance(effect, End)]

        def stop() -> None:
            for ref in refs:
                if ref in active:
                    self.cancel(ref, message)

        if not ends:
            stop()
            return
        try:
            with self._publisher.ending_many():
                await self._publisher.finish_all(ends, self._store.order, check=check, begun=stop)
        except NotPossibleError as error:
            done = sum(not self._lifecycle.open(end.ref) for end in ends)
            if not done:
                raise
            raise NotPossibleError(f"{done:,} tasks are cancelled, no others: {error}") from None

    def halt(self, ref: Ref, message: str) -> None:
        """Ask a task that runs for its slot, at its next durable point."""
        wish = Suspended(at=time.time(), cause="park", message=message)
        self.take(inputs.Halt(ref, wish))

    # What follows

    def take(self, given: Input) -> None:
        """Take what has happened to a task, and do what follows."""
        self.perform(self._lifecycle.take(given))

    def perform(self, effects: Iterable[Effect]) -> None:
        """Perform what follows from an input."""
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        active = self._active.get(effect.ref)
        if active is not None and isinstance(effect, End | Publish | Confirm):
            self._forget(active)  # no worker works on it any more
        match effect:
            case End():
                main_loop.spawn(self._publisher.finish(effect))
            case Publish():
                main_loop.spawn(self._publisher.publish(effect.ref))
            case _ if active is None:
                raise ValueError(f"{effect}: no worker has it")
            case Confirm():
                assert active.finished is not None, "it has ended"
                main_loop.spawn(self._publisher.confirm(effect.ref, active.finished))
            case Start():
                main_loop.spawn(self._start(active))
            case Free():
                self.pool.release(active.worker, active.ref)
            case HandOver():
                self._run(active)
            case Stop():
                self._stop(active)
            case Suspend(wish=wish):
                main_loop.spawn(self._suspend(active, wish))
            case Recover(counted=counted, alone=alone):
                main_loop.spawn(self._recover(active, counted=counted, alone=alone))

    # Starting

    async def _start(
        self, active: ActiveAttempt
    ) -> None:  # one step after the other, and each may end it
        """See whether a task can start, and number its attempt."""
        ref = active.ref
        # In a thread: who a user is may be answered over a network.
        await self._outboxes.patiently(
            lambda: asyncio.to_thread(check_user, self._current.config.sandbox_policy()),
            Action.SANDBOX_TROUBLE,
        )
        if not await active.worker.up():
            self.take(inputs.Lost(ref))
            return
        await self.starting.fence(active)
        batch = self._batches.get(ref.batch)
        if batch and not await self._batches.folders.takes_files(batch):
            # Without a folder, or room in it, it could not leave a result:
            # it waits, and does not fail.
            self._put_back(active)
            return
        task = active.task = self._store.read(lookups.find_task, ref)
        try:
            if task.origin is not None:
                active.base = await self._base(ref, task.origin)
            seen: PlaceLook = "", {}
            if task.dir or task.secrets:
                look = partial(self.starting.look, task)
                seen = await self._outboxes.look(look, task.dir or "/")
        except SilentPathError as error:
            # A disk that hangs is the machine's: no attempt is counted.
            self._put_back(active)
            self._keep_until(error.path, ref)
            return
        if task.origin is not None and active.base is None:
            self._put_back(active)
            if batch := self._batches.get(ref.batch):
                self.bases.keep(ref, batch, task.origin)
            return
        try:
            active.given = await self._store.write(operations.dispatch, ref, active.worker.label)
        except StaleAttemptError:  # it has ended meanwhile
            self.take(inputs.Stale(ref))
            return
        active.attempt = active.given.attempt
        self.take(inputs.Dispatched(ref, active.attempt))
        if self._lifecycle.entries[ref].wish is not None:
            self.take(inputs.Ready(ref))  # it stops before it starts, whatever else keeps it
            return
        self.take(self.starting.prepared(active, task, active.given, seen))

    async def _base(self, ref: Ref, origin: Origin) -> Base | None:
        """Return what a task with an origin begins at, or began at;
        None: that is yet to be fetched.
        """
        if not self._lifecycle.begins(ref):
            first = next(iter(self._store.read(lookups.events, ref)), None)
            base = first.terms.base if isinstance(first, TaskStarted) else None
            # Without its mirror, that is fetched again.
            if base is not None and await self._outboxes.look(
                Path(base.mirror).is_dir, base.mirror
            ):
                return base
        return self.bases.of(ref, origin)

    def _keep_until(self, path: str, ref: Ref) -> None:
        """Keep a task from starting until a path answers."""
        hold = HoldKey(Scope.BATCH, path, Cause.SILENT)
        if not self._lifecycle.holds.keeps(hold):
            main_loop.spawn(self._lift(hold))
        self._lifecycle.take(inputs.Held(ref, hold))

    async def _lift(self, hold: HoldKey) -> None:
        await self._outboxes.answers(hold.name)
        self._lifecycle.lift(hold)
        main_loop.wake()

    def _put_back(self, active: ActiveAttempt) -> None:
        """Let a task wait that cannot start yet: its slot is free for others."""
        self.take(inputs.Unready(active.ref))
        if active.ref in self._active:
            self._forget(active)
        main_loop.wake()

    def _run(self, active: ActiveAttempt) -> None:
        """Hand a task to its worker."""
        ref = active.ref
        batch = self._batches.get(ref.batch)
        assert batch is not None, "a batch is open while its tasks are"
        assert active.given is not None, "it has an attempt"
        run = self.starting.order(active, batch, active.given)
        main_loop.tell(lambda listener: listener.task_dispatched(ref, batch, run.terms))
        if not self.pool.run(active.worker, run):
            self.take(inputs.Lost(ref))

    def _stop(self, active: ActiveAttempt) -> None:
        """Stop a task at work, with the answer to its request or at its next durable point."""
        ref, wish = active.ref, self._lifecycle.entries[active.ref].wish
        assert wish is not None, "it is to stop"
        if self.calls.stop(active, wish):
            return
        if isinstance(wish, CancelRequested):
            self.pool.send(ref, wire.CancelTask(ref, active.attempt, wish.message))
        elif wish.cause == "park":  # a pool that drains says so itself
            self.pool.send(ref, wire.Park(ref, active.attempt, wish.message))

    async def _suspend(self, active: ActiveAttempt, wish: Suspended | None) -> None:
        """Note that a task gave its slot back."""
        ref, event = active.ref, wish or active.suspended
        assert event is not None, "its worker has said so"
        status = TaskStatus.PARKED if event.cause == "park" else TaskStatus.QUEUED
        await self._store.write(operations.suspend, ref, active.attempt, status, event.message)
        # Only now: who cancels it meanwhile must find it, and not end it under our hands.
        self._settled(active, inputs.Settled(ref, given_back=status is TaskStatus.PARKED))
        if status is TaskStatus.PARKED and self._lifecycle.open(ref):
            main_loop.tell(lambda listener: listener.task_parked(ref, active.park))
        main_loop.wake()

    async def _recover(self, active: ActiveAttempt, *, counted: bool, alone: bool) -> None:
        """Note that a task's worker is gone.

        ``counted``: it may have killed it; ``alone``: no other can.
        """
        ref = active.ref
        crashes = 0
        # What it said comes first, and may have been the end:
        # after a full disk, each write is tried again by itself.
        await active.written()
        try:
            if counted:
                crashes = await self._store.write(
                    operations.worker_lost, ref, active.attempt, alone=alone
                )
            elif active.attempt:
                # Where the daemon ends before its fence is over, the next one has to know.
                left = active.worker.fence_left_s > 0
                await self._store.write(
                    operations.suspend, ref, active.attempt, TaskStatus.QUEUED, left=left
                )
        except StaleAttemptError:
            pass  # it has ended: `finished` has what it ended with
        worn_out = None
        if alone and crashes >= self._current.config.pool.max_attempts:
            message = f"its worker died {crashes} times; the last time: {active.worker.cause}"
            error, reason = TaskStatus.ERROR, Reason.WORKER_CRASHED
            worn_out = End(ref, error, reason, message, attempts=active.attempt)
        self._settled(active, inputs.Settled(ref, counted, worn_out))
        main_loop.wake()

    def _settled(self, active: ActiveAttempt, settled: inputs.Settled) -> None:
        """Take how an attempt ended, now that it is durable."""
        self._forget(active)
        self.take(settled)

    def _forget(self, active: ActiveAttempt) -> None:
        """Forget an attempt that is over."""
        self._active.pop(active.ref, None)
        self._governor.close_task(active.ref)
        main_loop.tell(lambda listener: listener.task_left(active.ref))

    # What the pool reports

    def message(self, worker: PoolWorker, message: Any) -> None:
        """Serve a message of a worker."""
        ask = message.ask if isinstance(message, wire.Failed) else message
        ref, attempt = ask.ref, ask.attempt
        active = self.get(ref)
        if active is None or active.attempt != attempt or active.worker is not worker:
            if not isinstance(message, wire.Progress | wire.Done):
                worker.channel.send(wire.Nack(ref, attempt))
            return
        match message:
            case wire.Record():
                self.calls.record(active, message)
            case wire.Ask():
                self.calls.ask(active, message)
            case wire.Failed():
                self.calls.failed(active, message)
            case wire.Progress(step=step, detail=detail):
                active.step, active.detail, active.since = step, detail, time.time()
                active.lines().step(step, detail)
            case wire.Done():
                self._done(active, message)

    def started(self, worker: PoolWorker) -> None:
        """Note that a worker is up."""
        get_logger().info(Action.WORKER_STARTED, **worker.fields())
        main_loop.wake()  # tasks may have waited for one to come up

    def suits_more(self) -> None:
        """Let tasks that waited for a key have their turn."""
        main_loop.wake()

    def broke(self, error: BaseException) -> None:
        """End the daemon where a part of the pool ended: a bug."""
        main_loop.current().broke(error)

    def cut_off(self, worker: PoolWorker) -> None:
        """Take the requests of a worker that is reached no more back from the governor."""
        for active in self.active:
            if active.worker is worker:
                self.calls.lost(active)
                active.fences(f"{worker.node}, which is not reached", worker.fence_left_s)

    def died(self, worker: PoolWorker, lost: Mapping[Ref, int], *, counted: bool) -> None:
        """Take the tasks of a dead worker back."""
        # One elsewhere may leave as it likes while a task is only about to be its.
        tasks = [str(ref) for ref, number in lost.items() if number or not worker.remote]
        # Why none comes up on a machine, that says.
        if (tasks or not (worker.greeted or worker.remote)) and not main_loop.current().closing:
            get_logger().error(
                Action.WORKER_DIED,
                **worker.fields(),
                cause=worker.cause,
                tasks=tasks,
            )
            main_loop.tell(lambda listener: listener.worker_died(worker.cause))
        # Without an attempt it is still being started: that finds the worker dead by itself.
        known = [self.get(ref) for ref, number in lost.items() if number]
        theirs = [active for active in known if active is not None and active.worker is worker]
        # Who waits for an answer of ours cannot have killed it.
        at_work = (
            [] if main_loop.current().closing or not counted else [a for a in theirs if not a.idle]
        )
        for active in theirs:
            self.calls.lost(active)
            self.take(inputs.Lost(active.ref, active in at_work, len(at_work) == 1))
        main_loop.wake()

    def _done(self, active: ActiveAttempt, done: wire.Done) -> None:
        if done.outcome == "refused":
            get_logger().error(
                Action.SANDBOX_TROUBLE,
                **active.worker.fields(),
                message=done.message,
                task=str(active.ref),
            )
        if done.outcome == "failed" and active.finished is not None:  # in how it is written
            get_logger().error(Action.OUTBOX_TROUBLE, task=str(active.ref), message=done.message)
        self.take(_said(active, done))
        batch = self._batches.get(active.ref.batch)
        if batch and done.outcome == "unopened" and free_room.refused(done.message):
            self._batches.folders.refuses(batch, done.message)
        self._rest()
        main_loop.wake()


def _said(active: ActiveAttempt, done: wire.Done) -> Input:
    """Return what a worker's last word on a task means."""
    ref, ended = active.ref, active.finished is not None
    match done.outcome:
        case "published" if ended:
            return inputs.Confirmed(ref)
        case "unpublished" if ended:
            return inputs.Unconfirmed(ref)
        case "suspended" if active.suspended is not None:
            return inputs.GaveBack(ref)
        case "failed":
            end = End(ref, TaskStatus.ERROR, Reason.INTERNAL, _BROKE, details=done.message)
            return inputs.Broke(end)
        case outcome:  # "refused" and "unopened": before it began, no attempt of the task's
            return inputs.Lost(ref, outcome not in {"refused", "unopened"})
