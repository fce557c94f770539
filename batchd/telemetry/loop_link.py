"""The line from an exporter's thread to the daemon's loop: questions one way, trouble the other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib

from batchd.actions import Action
from batchd.daemon.desk import DaemonFigures, StatusDesk

#: What the loop gets to answer; where it is busier than that, figures of the moment are left out.
_PATIENCE_S = 2.0


class LoopLink:
    """Made on the daemon's loop; used from any thread, also when that loop has ended."""

    def __init__(self, desk: StatusDesk, trouble: Action) -> None:
        """``trouble``: what it is called when the exporter cannot work."""
        self._loop = asyncio.get_running_loop()
        self._desk = desk
        self._tries = desk.trying(trouble)

    def figures(self) -> DaemonFigures | None:
        """Return how the daemon stands; None where it does not answer."""
        answer: concurrent.futures.Future[DaemonFigures] = concurrent.futures.Future()

        def reply() -> None:
            if answer.set_running_or_notify_cancel():
                answer.set_result(self._desk.figures())

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
