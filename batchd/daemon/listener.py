"""What the daemon tells those who listen: reports, notifications, live progress."""

from __future__ import annotations

from collections.abc import Sequence

from batchd.errors import Problem
from batchd.events import Event, TaskFinished
from batchd.records import Batch, Ref, Task


class Listener:
    """Subclass it and hand it to the daemon. Called on the daemon's loop: be quick."""

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """A file was taken; its tasks are durable."""

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """A file was refused."""

    def task_event(self, ref: Ref, event: Event) -> None:
        """An event of a task is durable."""

    def task_progress(self, ref: Ref, step: str, detail: str) -> None:
        """A task has begun to do something: ``model``, ``tool``, ``evaluating`` or ``waiting``."""

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """A task has its result, which lies in the outbox."""

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """A batch's ``summary.json`` lies in the outbox."""


class Listeners(Listener):
    """Tells all of them."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._all = list(listeners)

    def add(self, listener: Listener) -> None:
        """Tell one more."""
        self._all.append(listener)

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Pass it on."""
        for each in self._all:
            each.batch_received(batch, tasks)

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Pass it on."""
        for each in self._all:
            each.batch_rejected(batch, problems)

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
