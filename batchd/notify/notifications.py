"""The listener for notifications. Its calls only put something into a queue."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from functools import partial

from batchd.actions import Action
from batchd.config import Config
from batchd.daemon.listeners import Listener, StartReport
from batchd.errors import Problem
from batchd.log import get_logger
from batchd.notify import happened
from batchd.notify.thread import Delivery, Made
from batchd.records import Batch, Parking

#: What may wait for the thread, which takes it at once: only a disk that hangs holds it up.
_MAX_QUEUED = 1_000


class Notifications(Listener):
    """The notifications to the receivers in ``[notify]``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._happened: queue.Queue[Made] = queue.Queue(_MAX_QUEUED)
        self._delivery: Delivery | None = None
        self._started = False
        self._full = False

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Notify of it."""
        self._notify(partial(happened.batch_ended, batch, summary, time.time()))

    def batch_rejected(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Notify of it."""
        self._notify(partial(happened.batch_refused, batch, tuple(problems), time.time()))

    def budget_reached(self, batch: str, message: str) -> None:
        """Notify of it."""
        self._notify(partial(happened.budget_spent, batch, message, time.time()))

    def provider_parked(self, parking: Parking, fix: str) -> None:
        """Notify of it."""
        self._notify(partial(happened.provider_parked, parking, fix, time.time()))

    def provider_resumed(self, parking: Parking) -> None:
        """Notify of it."""
        self._notify(partial(happened.provider_resumed, parking, time.time()))

    def daemon_started(self, start: StartReport) -> None:
        """Begin to deliver, what the last daemon left too: the spool is ours alone by now."""
        self._started = True
        self._notify(partial(happened.daemon_started, start, time.time()))
        self._deliver()

    def config_changed(self, config: Config) -> None:
        """Take the receivers from it."""
        self._config = config
        if self._delivery is not None:
            self._delivery.retune(config)
        elif self._started:
            self._deliver()

    async def close(self) -> None:
        """Deliver for a moment yet, then stop; what is left is on disk."""
        if self._delivery is not None:
            await self._delivery.stop()

    def _notify(self, made: Made) -> None:
        if not self._config.notify or (self._delivery is not None and self._delivery.over):
            return
        try:
            self._happened.put_nowait(made)
        except queue.Full:
            if not self._full:
                why = "too many notifications wait; batchd sends none of new events"
                get_logger().error(Action.NOTIFY_FAILED, message=why)
            self._full = True
            return
        self._full = False
        if self._delivery is not None:
            self._delivery.wake()

    def _deliver(self) -> None:
        if not self._config.notify:
            return
        delivery = Delivery(self._config, self._happened)
        try:
            delivery.start()
        except RuntimeError as error:
            # No thread to be had, at the start: then tasks are not to be hindered either.
            get_logger().error(Action.NOTIFY_FAILED, message=f"no notification is sent: {error}")
            return
        self._delivery = delivery
