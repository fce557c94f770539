"""Listeners of the daemon (notifications, metrics, traces), the desk where they ask how it stands,
and finishers, who put something into a batch's folder before its summary.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batchd.config import Config
from batchd.control import DaemonStatus
from batchd.daemon.troubles import Tries
from batchd.errors import Problem
from batchd.events import Event, TaskFinished, Terms
from batchd.governor import ParkDecision
from batchd.log import Action
from batchd.records import Batch, Parking, Ref, Task
from batchd.store.store import Store

#: What the loop gets to answer; where it is busier than that, figures of the moment are left out.
_PATIENCE_S = 2.0


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


class Finisher:
    """A finisher: subclass it and hand it to the daemon.

    The summary waits for it: be bounded, and never fail.
    """

    async def finish(self, batch: Batch, tasks: int, config: Config) -> None:
        """Write what is to lie beside the results of a batch; all its tasks, so many, have ended.

        May be called again for the same batch after a crash,
        and is cancelled where the daemon ends.
        """

    async def close(self) -> None:
        """The daemon ends: let go of everything."""


class StatusDesk(Protocol):
    """Answers listeners on the daemon's loop, and there alone."""

    def standing(self) -> DaemonStatus:
        """Return how the daemon stands now, without single tasks and models: there may be a
        thousand at work, and this is asked for all the time.
        """

    def trying(self, action: Action) -> Tries:
        """Return what notes that some work fails, and when it works again:
        for the log and ``status``.
        """


class LoopLink:
    """The line from a listener's thread to the desk: questions one way, trouble the other.

    Made on the daemon's loop; used from any thread, also when that loop has ended.
    """

    def __init__(self, desk: StatusDesk, trouble: Action) -> None:
        """``trouble``: what it is called when the exporter cannot work."""
        self._loop = asyncio.get_running_loop()
        self._desk = desk
        self._tries = desk.trying(trouble)

    def standing(self) -> DaemonStatus | None:
        """Return how the daemon stands; None where it does not answer."""
        answer: concurrent.futures.Future[DaemonStatus] = concurrent.futures.Future()

        def reply() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(self._desk.standing())

        try:
            self._loop.call_soon_threadsafe(reply)
            return answer.result(_PATIENCE_S)
        except (RuntimeError, TimeoutError):  # RuntimeError: the loop is closed
            answer.cancel()
            return None

    def failed(self, error: Exception) -> None:
        """Say that the exporter's work fails; it is tried again."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tries.failed, error)

    def worked(self) -> None:
        """Say that it works."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tries.worked)
