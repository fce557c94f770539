"""The desk where listeners ask how the daemon stands, in figures that cost it next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from batchd.actions import Action
from batchd.daemon.troubles import Tries
from batchd.records import Cause, Scope


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
