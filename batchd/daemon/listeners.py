"""Listeners of the daemon: reports, notifications, metrics, live progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchd.config import Config
from batchd.daemon.desk import StatusDesk
from batchd.errors import Problem
from batchd.events import Event, TaskFinished, Terms
from batchd.governor import ParkDecision
from batchd.records import Batch, Parking, Ref, Task
from batchd.store import Store


class Listener:
    """A listener: subclass it and hand it to the daemon. Called on the daemon's loop: be quick."""

    def opened(self, desk: StatusDesk, store: Store) -> None:
        """The daemon has its spool, and begins to work. ``desk``: where to ask how it stands."""

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """A file was taken; its tasks are durable."""

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """A file was refused."""

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """A worker takes a task up, for the first time or again; its events follow."""

    def task_event(self, ref: Ref, event: Event) -> None:
        """An event of a task is durable."""

    def task_left(self, ref: Ref) -> None:
        """No worker works on a task any more, for now or for good."""

    def task_parked(self, ref: Ref, park: ParkDecision | None) -> None:
        """A task gave its slot back, and waits.

        ``park``: what its call met; None: it was asked to.
        """

    def task_progress(self, ref: Ref, step: str, detail: str) -> None:
        """A task has begun to do something: ``model``, ``tool``, ``evaluating`` or ``waiting``."""

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """A task has its result, which lies in the outbox."""

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """A batch's ``summary.json`` lies in the outbox."""

    def worker_died(self, cause: str) -> None:
        """A worker is gone that had tasks, or never came up."""

    def budget_reached(self, batch: str, message: str) -> None:
        """The money of a batch is spent or, where none is named, the day's.

        A batch may be reported again after a restart.
        """

    def provider_parked(self, parking: Parking, fix: str) -> None:
        """A provider's tasks wait from now on. ``fix``: how they go on."""

    def provider_resumed(self, parking: Parking) -> None:
        """A provider that was parked answers again."""

    def daemon_started(self, start: StartReport) -> None:
        """The daemon is at work, and alone on its spool."""

    def config_changed(self, config: Config) -> None:
        """Take a new configuration, which counts from now on."""

    async def close(self) -> None:
        """The daemon has done its last, and lets go of its spool when this is done:
        be quick here, too.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReport:
    """The report of what a daemon found when it started."""

    #: Whether the last one did not end by itself: it was killed, or the machine went down.
    after_crash: bool
    #: Batches whose summary is still to come.
    batches: int
    #: Tasks of theirs that have not ended.
    tasks: int


class Listeners(Listener):
    """All listeners: passes each call on to every one."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._all = list(listeners)

    def add(self, listener: Listener) -> None:
        """Add one more."""
        self._all.append(listener)

    def opened(self, desk: StatusDesk, store: Store) -> None:
        """Pass it on."""
        for each in self._all:
            each.opened(desk, store)

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Pass it on."""
        for each in self._all:
            each.batch_received(batch, tasks)

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Pass it on."""
        for each in self._all:
            each.batch_rejected(batch, problems)

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """Pass it on."""
        for each in self._all:
            each.task_dispatched(ref, batch, terms)

    def task_event(self, ref: Ref, event: Event) -> None:
        """Pass it on."""
        for each in self._all:
            each.task_event(ref, event)

    def task_left(self, ref: Ref) -> None:
        """Pass it on."""
        for each in self._all:
            each.task_left(ref)

    def task_parked(self, ref: Ref, park: ParkDecision | None) -> None:
        """Pass it on."""
        for each in self._all:
            each.task_parked(ref, park)

    def task_progress(self, ref: Ref, step: str, detail: str) -> None:
        """Pass it on."""
        for each in self._all:
            each.task_progress(ref, step, detail)

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Pass it on."""
        for each in self._all:
            each.task_finished(ref, finished)

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Pass it on."""
        for each in self._all:
            each.batch_finished(batch, summary)

    def worker_died(self, cause: str) -> None:
        """Pass it on."""
        for each in self._all:
            each.worker_died(cause)

    def budget_reached(self, batch: str, message: str) -> None:
        """Pass it on."""
        for each in self._all:
            each.budget_reached(batch, message)

    def provider_parked(self, parking: Parking, fix: str) -> None:
        """Pass it on."""
        for each in self._all:
            each.provider_parked(parking, fix)

    def provider_resumed(self, parking: Parking) -> None:
        """Pass it on."""
        for each in self._all:
            each.provider_resumed(parking)

    def daemon_started(self, start: StartReport) -> None:
        """Pass it on."""
        for each in self._all:
            each.daemon_started(start)

    def config_changed(self, config: Config) -> None:
        """Pass it on."""
        for each in self._all:
            each.config_changed(config)

    async def close(self) -> None:
        """Pass it on."""
        for each in self._all:
            await each.close()
