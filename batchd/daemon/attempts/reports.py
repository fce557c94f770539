"""Reports of workers: each becomes an input of the lifecycle, or is served by ``Calls``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchd import free_room, wire
from batchd.daemon import main_loop
from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.ends.rooms import Rooms
from batchd.daemon.listeners import Listener
from batchd.daemon.outboxes import Outboxes
from batchd.lifecycle import Input, inputs
from batchd.lifecycle.inputs import End
from batchd.log import Action, get_logger
from batchd.pool.pool_worker import PoolWorker
from batchd.records import Reason, Ref, TaskStatus

#: What the result says of a task at which an agent broke.
_BROKE = "an error inside batchd ended this task; the log has the details"


@dataclass(slots=True, eq=False, repr=False)
class Reports:
    """Takes what the pool reports: its ``PoolHandler``."""

    _listeners: Sequence[Listener]
    _outboxes: Outboxes
    _batches: OpenBatches
    _rooms: Rooms
    _attempts: Attempts

    def message(self, worker: PoolWorker, message: Any) -> None:
        """Serve a message of a worker."""
        ref, attempt = _address(message)
        active = self._attempts.get(ref)
        if active is None or active.attempt != attempt or active.worker is not worker:
            if not isinstance(message, wire.Progress | wire.Done):
                worker.channel.send(wire.Nack(ref, attempt))
            return
        match message:
            case wire.Record():
                self._attempts.calls.record(active, message)
            case wire.Ask():
                self._attempts.calls.ask(active, message)
            case wire.Failed():
                self._attempts.calls.failed(active, message)
            case wire.Progress(step=step, detail=detail):
                active.step, active.detail, active.since = step, detail, time.time()
                active.lines().step(step, detail)
                for listener in self._listeners:
                    listener.task_progress(ref, step, detail)
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
        for active in self._attempts.active:
            if active.worker is worker:
                self._attempts.calls.lost(active)
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
            for listener in self._listeners:
                listener.worker_died(worker.cause)
        # Without an attempt it is still being started: that finds the worker dead by itself.
        known = [self._attempts.get(ref) for ref, number in lost.items() if number]
        theirs = [active for active in known if active is not None and active.worker is worker]
        # Who waits for an answer of ours cannot have killed it.
        at_work = (
            [] if main_loop.current().closing or not counted else [a for a in theirs if not a.idle]
        )
        for active in theirs:
            self._attempts.calls.lost(active)
            self._attempts.take(inputs.Lost(active.ref, active in at_work, len(at_work) == 1))
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
        self._attempts.take(_said(active, done))
        if done.outcome == "unopened" and free_room.refused(done.message):
            self._rooms.met(active.ref.batch, done.message)
        self._attempts.rest()
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


def _address(message: Any) -> tuple[Ref, int]:
    ask = message.ask if isinstance(message, wire.Failed) else message
    return ask.ref, ask.attempt
