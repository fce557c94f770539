"""The desk where listeners ask how the daemon stands, in figures that cost it next to nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from batchd.actions import Action
from batchd.daemon.troubles import Tries
from batchd.records import Cause, Scope

#: What the loop gets to answer; where it is busier than that, figures of the moment are left out.
_PATIENCE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonFigures:
    """The figures of the daemon at one moment."""

    #: Whether it starts nothing any more.
    draining: bool
    #: Batches whose summary is not written yet.
    batches: int
    #: Tasks that have not begun, that workers work on, and that gave their slot back.
    queued: int
    running: int
    parked: int
    #: Agents that can be at work at once.
    slots: int
    #: Worker processes, and their resident memory in bytes.
    workers: int
    workers_rss: int
    #: By worker on another machine: that machine, and the tasks at work there.
    nodes: tuple[tuple[str, int], ...]
    #: By provider: what ``status`` shows of it.
    providers: Mapping[str, Mapping[str, float | int]]
    #: The providers that are parked, each with its causes.
    parked_providers: tuple[tuple[str, Cause], ...]
    #: How many things wait as a whole, by what they are.
    parkings: Mapping[Scope, int]
    #: The day's money: ``limit_usd``, ``spent_usd``, ``reserved_usd``.
    day: Mapping[str, float]
    #: What it cannot do at this time.
    troubles: tuple[str, ...]


class StatusDesk(Protocol):
    """Answers listeners on the daemon's loop, and there alone."""

    def figures(self) -> DaemonFigures:
        """Return how the daemon stands now."""

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
