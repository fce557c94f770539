"""What the daemon tells those who listen: reports, notifications, metrics, live progress."""

from __future__ import annotations

from collections.abc import Sequence

from batchd.daemon.desk import Desk
from batchd.errors import Problem
from batchd.events import Event, TaskFinished, Terms
from batchd.records import Batch, Ref, Task


class Listener:
    """Subclass it and hand it to the daemon. Called on the daemon's loop: be quick."""

    def opened(self, desk: Desk) -> None:
        """The daemon has its spool, and begins to work. ``desk``: where to ask how it stands."""

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """A file was taken; its tasks are durable."""

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """A file was refused."""

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """A worker takes a task up, for the first time or again; its events follow."""

    def task_event(self, ref: Ref, event: Event) -> None:
        """An event of a task is durable."""

    def task_progress(self, ref: Ref, step: str, detail: str) -> None:
        """A task has begun to do something: ``model``, ``tool``, ``evaluating`` or ``waiting``."""

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """A task has its result, which lies in the outbox."""

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """A batch's ``summary.json`` lies in the outbox."""

    def worker_died(self, cause: str) -> None:
        """A worker is gone that had tasks, or never came up."""


class Listeners(Listener):
    """Tells all of them."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._all = list(listeners)

    def add(self, listener: Listener) -> None:
        """Tell one more."""
        self._all.append(listener)

    def opened(self, desk: Desk) -> None:
        """Pass it on."""
        for each in self._all:
            each.opened(desk)

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
