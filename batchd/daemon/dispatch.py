"""Running tasks: what starts next, what workers say, what happens when they die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from batchd import wire
from batchd.daemon import starting
from batchd.daemon.active import Active
from batchd.daemon.batches import Batches
from batchd.daemon.calls import Calls
from batchd.daemon.core import Core
from batchd.daemon.parking import ParkingLot
from batchd.daemon.publisher import Publisher
from batchd.daemon.rooms import Rooms
from batchd.daemon.suspects import Suspects
from batchd.errors import StaleAttemptError
from batchd.events import CancelRequested, Suspended
from batchd.governor import Park
from batchd.lifecycle import effects, inputs
from batchd.log import Action
from batchd.pool.process import Worker
from batchd.pool.supervisor import Supervisor
from batchd.records import Reason, Ref, Status
from batchd.sandbox import check_user

#: What the result says of a task at which an agent broke.
_BROKE = "an error inside batchd ended this task; the log has the details"


class Dispatcher:
    """Fills the pool's slots; the pool's ``Handler``."""

    def __init__(self, core: Core, batches: Batches, publisher: Publisher, lot: ParkingLot) -> None:
        self._core = core
        self._batches = batches
        self._publisher = publisher
        self._lot = lot
        self._calls = Calls(core)
        self._suspects = Suspects(core, self.halt)
        self._rooms = Rooms(core, batches)
        self._active: dict[Ref, Active] = {}
        #: Slots whose pause between two tasks is not over.
        self._resting = 0
        self.pool: Supervisor
        core.wake = self.pump
        lot.halt = self.halt

    @property
    def active(self) -> tuple[Active, ...]:
        """The tasks that workers work on."""
        return tuple(self._active.values())

    def pump(self) -> None:
        """Start whatever can start: nothing while results cannot be written or commands not run."""
        core = self._core
        if core.closing or self._lot.stopped or self._rooms.closed:
            return
        queue, trials, pool = self._core.lifecycle.queue, self._lot.trials, self.pool
        self._try_alone()
        self._start_suspects()
        while self._free() > 0 and (ref := trials.pick(alone=False)):
            self._reserve(ref)
        self._try_alone()  # no other one may be left
        free = self._free()
        ready = queue.draw(max(0, free), self._core.governor.crowded)
        begins = [ref for ref in ready if not self._lot.keeps(ref)]
        for ref in begins:
            self._reserve(ref)
        self._start_suspects()  # no better task may be left
        reopened = self._suspects.make_room(pool)
        kept = len(begins) < len(ready)  # others may be cheaper: 100,000 are looked at by and by
        if reopened or kept:
            asyncio.get_running_loop().call_soon(self.pump)
        elif free > 0 and not self._active:
            self._lot.shortage.nothing_goes_on()

    def _try_alone(self) -> None:
        while self.pool.slot_alone() and (ref := self._lot.trials.pick(alone=True)):
            self._reserve(ref, alone=True)

    def _start_suspects(self) -> None:
        while ref := self._suspects.take(self.pool):
            if not self._lot.keeps(ref):
                self._reserve(ref, alone=True)

    def startable(self) -> Ref | None:
        """Return a task that ``pump`` would start now; None after each call of it."""
        stopped = self._core.closing or self._lot.stopped or self._rooms.closed
        return None if stopped or self._free() <= 0 else self._core.lifecycle.queue.next()

    def _free(self) -> int:
        """Return how many tasks may start now; slots that rest do not count."""
        return self.pool.slots() - self._resting

    def drain(self) -> None:
        """Start nothing more, and have requests that wait answered with a suspension."""
        self._core.closing = True
        for active in self.active:
            if active.stop is None:
                event = Suspended(at=time.time(), cause="drain")
                self._core.note(inputs.Halt(active.ref, event))
                self._calls.stop(active, event)

    def cancel(self, ref: Ref, message: str) -> None:
        """End a task that has not ended."""
        active = self._active.get(ref)
        event = CancelRequested(at=time.time(), message=message)
        if active is not None:
            self._core.note(inputs.Cancel(ref, event))
            if not self._calls.stop(active, event):
                self.pool.send(ref, wire.Cancel(ref, active.attempt, message))
        elif self._core.lifecycle.open(ref):
            self._core.note(inputs.Cancel(ref, event))
            self._core.spawn(self._cancelled(ref, message))

    def halt(self, ref: Ref, message: str) -> None:
        """Have a task that runs give its slot back at its next durable point."""
        active = self._active.get(ref)
        if active is not None and active.stop is None:
            event = Suspended(at=time.time(), cause="park", message=message)
            self._core.note(inputs.Halt(ref, event))
            if not self._calls.stop(active, event):
                self.pool.send(ref, wire.Park(ref, active.attempt, message))

    async def _cancelled(self, ref: Ref, message: str) -> None:
        await self._publisher.finish(
            ref, Status.CANCELLED, Reason.USER, message or starting.CANCELLED
        )

    # Starting

    def _reserve(self, ref: Ref, *, alone: bool = False) -> None:
        self._lot.shortage.something_goes_on()
        active = self._active[ref] = Active(ref, self.pool.reserve(ref, alone=alone))
        self._core.note(inputs.SlotFree(ref))
        self._core.spawn(self._start(active))

    async def _start(self, active: Active) -> None:
        core, ref = self._core, active.ref
        await core.patiently(self._user_there, Action.SANDBOX_TROUBLE)
        if not await active.worker.up():
            core.note(inputs.Lost(ref))
            await self._recover(active, counted=False)
            return
        if not await self._rooms.open_for(ref.batch):
            # Without a folder, or room in it, it could not leave a result: it waits, and does not fail.
            self._drop(active)
            core.note(inputs.FolderShut(ref))
            if isinstance(active.stop, CancelRequested):
                await self._cancelled(ref, active.stop.message)
            self.pump()  # its slot is free for others
            return
        worker = str(active.worker.pid or "")
        try:
            given = await core.durable(partial(core.store.dispatch, ref, worker))
        except StaleAttemptError:  # it has ended meanwhile
            self._drop(active)
            core.note(inputs.Stale(ref))
            await self._publisher.publish(ref)
            return
        batch = self._batches.get(ref.batch)
        assert batch is not None, "a batch is open while its tasks are"
        task = active.task = core.store.task(ref)
        active.attempt = given.attempt
        core.note(inputs.Dispatched(ref, given.attempt))
        closed = await starting.closed(core, task)
        if isinstance(active.stop, Suspended):
            self.pool.release(active.worker, ref)
            core.note(inputs.Ready(ref))
            await self._suspend(active, active.stop)
            return
        if refusal := starting.refusal(core, active, task, given, closed):
            if isinstance(refusal, Park):
                self.pool.release(active.worker, ref)
                active.park = refusal
                event = Suspended(at=time.time(), cause="park", message=refusal.message)
                core.note(inputs.TurnedAway(ref, event))
                await self._suspend(active, event)
                return
            self._drop(active)
            core.note(inputs.Refused(effects.End(ref, *refusal)))
            # This dispatch is none that was tried.
            await self._publisher.finish(ref, *refusal, attempts=given.attempt - 1)
            return
        run = starting.order(core, active, batch, given)
        core.listeners.task_dispatched(ref, batch, run.terms)
        core.note(inputs.Ready(ref))
        if not self.pool.run(active.worker, run):
            core.note(inputs.Lost(ref))
            await self._recover(active, counted=False)

    async def _user_there(self) -> None:
        """See to it that commands can run as whom they should. Raises ``SandboxUnavailableError``."""
        # In a thread: the answer may come over a network.
        await asyncio.to_thread(check_user, self._core.config.sandbox_policy())

    def _drop(self, active: Active) -> None:
        """Give a slot back in which nothing was started."""
        del self._active[active.ref]
        self.pool.release(active.worker, active.ref)
        self._lot.left(active.ref)

    # What the pool tells

    def message(self, worker: Worker, message: Any) -> None:
        """Serve a message of a worker."""
        ref, attempt = _address(message)
        active = self._active.get(ref)
        if active is None or active.attempt != attempt or active.worker is not worker:
            if not isinstance(message, wire.Progress | wire.Done):
                worker.channel.send(wire.Nack(ref, attempt))
            return
        match message:
            case wire.Record():
                self._calls.record(active, message)
            case wire.Ask():
                self._calls.ask(active, message)
            case wire.Failed():
                self._calls.failed(active, message)
            case wire.Progress(step=step, detail=detail):
                active.step, active.detail, active.since = step, detail, time.time()
                self._core.listeners.task_progress(ref, step, detail)
            case wire.Done():
                self._done(active, message)

    def started(self, worker: Worker) -> None:
        """Note that a worker is up."""
        self._core.log.info(Action.WORKER_STARTED, worker=worker.pid)
        self.pump()  # tasks may have waited for one to come up

    def broke(self, error: BaseException) -> None:
        """End the daemon where a part of the pool ended: a bug."""
        if not self._core.broken.done():
            self._core.broken.set_exception(error)

    def died(self, worker: Worker, lost: Mapping[Ref, int], *, counted: bool) -> None:
        """Take the tasks of a dead worker back."""
        core = self._core
        if (lost or not worker.greeted) and not core.closing:
            tasks = [str(ref) for ref in lost]
            core.log.error(Action.WORKER_DIED, worker=worker.pid, cause=worker.cause, tasks=tasks)
            core.listeners.worker_died(worker.cause)
        # Without an attempt it is still being started: that finds the worker dead by itself.
        known = [self._active[ref] for ref, n in lost.items() if n and ref in self._active]
        theirs = [active for active in known if active.worker is worker]
        # Who waits for an answer of ours cannot have killed it.
        at_work = [] if core.closing or not counted else [a for a in theirs if not a.idle]
        for active in theirs:
            counts, alone = active in at_work, len(at_work) == 1
            core.note(inputs.Lost(active.ref, counts, alone))
            core.spawn(self._recover(active, counted=counts, alone=alone))
        self.pump()

    def _done(self, active: Active, done: wire.Done) -> None:
        core, ref = self._core, active.ref
        if done.outcome == "published" and active.finished is not None:
            self._forget(active)
            core.note(inputs.Confirmed(ref))
            core.spawn(self._publisher.confirm(ref, active.finished))
        elif done.outcome == "unpublished" and active.finished is not None:
            self._forget(active)
            core.note(inputs.Unconfirmed(ref))
            core.spawn(self._publisher.publish(ref))
        elif done.outcome == "suspended" and active.suspended is not None:
            core.note(inputs.GaveBack(ref))
            core.spawn(self._suspend(active, active.suspended))
        elif done.outcome == "refused":  # before it began: no attempt of the task's
            core.log.error(
                Action.SANDBOX_TROUBLE,
                worker=active.worker.pid,
                message=done.message,
                task=str(ref),
            )
            core.note(inputs.Lost(ref))
            core.spawn(self._recover(active, counted=False))
        elif done.outcome == "failed":
            core.note(inputs.Broke(effects.End(ref, Status.ERROR, Reason.INTERNAL, _BROKE)))
            core.spawn(self._fail(active, done.message))
        else:
            core.note(inputs.Lost(ref, done.outcome != "unopened"))
            core.spawn(self._recover(active, counted=done.outcome != "unopened"))
        self._rest()
        self.pump()

    def _rest(self) -> None:
        """Keep a slot free for the pause between two tasks."""
        if pause := self._core.config.pool.rest_s:
            self._resting += 1
            asyncio.get_running_loop().call_later(pause, self._rested)

    def _rested(self) -> None:
        self._resting -= 1
        self.pump()

    def _forget(self, active: Active) -> None:
        self._active.pop(active.ref, None)
        self._core.governor.close_task(active.ref)
        self._lot.left(active.ref)

    async def _suspend(self, active: Active, event: Suspended) -> None:
        """Note that a task gave its slot back."""
        status = Status.PARKED if event.cause == "park" else Status.QUEUED
        await self._core.durable(
            partial(self._core.store.suspend, active.ref, active.attempt, status, event.message)
        )
        # Only now: who cancels it meanwhile must find it, and not end it under our hands.
        self._forget(active)
        self._core.note(inputs.Settled(active.ref))
        if isinstance(active.stop, CancelRequested):  # it came when the task had just stopped
            await self._cancelled(active.ref, active.stop.message)
        elif status is Status.PARKED:
            self._lot.gave_back(active.ref, active.park)
        self.pump()

    async def _fail(self, active: Active, traceback: str) -> None:
        """End a task at which an agent broke: a bug, told in the log alone."""
        self._forget(active)
        if active.finished is not None:  # the bug is in how it is written
            self._core.log.error(Action.OUTBOX_TROUBLE, task=str(active.ref), message=traceback)
            await self._publisher.publish(active.ref)
            return
        await self._publisher.finish(
            active.ref, Status.ERROR, Reason.INTERNAL, _BROKE, details=traceback
        )

    async def _recover(self, active: Active, *, counted: bool, alone: bool = True) -> None:
        """Queue a task again whose worker is gone, or end it. ``counted``: it may have killed it; ``alone``: no other can."""
        core, ref = self._core, active.ref
        crashes = 0
        # What it said comes first, and may have been the end: after a full disk, each write is tried again by itself.
        await active.written()
        try:
            if counted:
                lost = partial(core.store.worker_lost, ref, active.attempt, alone=alone)
                crashes = await core.durable(lost)
            elif active.attempt:
                await core.durable(partial(core.store.suspend, ref, active.attempt, Status.QUEUED))
        except StaleAttemptError:
            pass  # it has ended: `finished` has what it ended with
        self._forget(active)
        if core.closing:
            return
        message = f"its worker died {crashes} times; the last time: {active.worker.cause}"
        worn_out = alone and crashes >= core.config.pool.max_attempts
        end = effects.End(ref, Status.ERROR, Reason.WORKER_CRASHED, message) if worn_out else None
        core.note(inputs.Settled(ref, counted, end))
        if active.finished is not None:
            await self._publisher.publish(ref)
        elif isinstance(active.stop, CancelRequested):
            await self._cancelled(ref, active.stop.message)
        elif worn_out:
            await self._publisher.finish(
                ref, Status.ERROR, Reason.WORKER_CRASHED, message, attempts=active.attempt
            )
        else:
            self.pump()


def _address(message: Any) -> tuple[Ref, int]:
    ask = message.ask if isinstance(message, wire.Failed) else message
    return ask.ref, ask.attempt
