"""Overdue: what a worker elsewhere keeps for longer than it may.

There the daemon sees no process, only a heart that beats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from batchd import cadence
from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.tuning import CurrentConfig
from batchd.events import CancelRequested
from batchd.pool.supervisor import Supervisor
from batchd.records import Ref

_LOOK_S = 2.0
#: What a cancelled task may take to end, in leases of its worker:
#: a cancellation breaks off what it does.
_CANCELLED = 2
#: And another one for its end, beyond its own time, and that of a call and a command:
#: files, patch, result.
_ENDS = 4

#: An attempt, and whether it is cancelled.
_Key: TypeAlias = tuple[Ref, int, bool]


@dataclass(slots=True)
class Overdue:
    """How long each attempt is the turn of a worker elsewhere. Pure.

    While such a worker waits for the daemon, nothing is counted: a full disk is none of its fault.
    """

    #: By attempt, in seconds.
    _turn_s: dict[_Key, float] = field(default_factory=dict)

    def look(
        self, attempts: Iterable[ActiveAttempt], passed_s: float, fetch_s: float
    ) -> Iterator[tuple[ActiveAttempt, str]]:
        """Take who works on what, ``passed_s`` after the last look; yield what is overdue, and why.

        ``fetch_s``: what a clone may take.
        """
        # Only time between looks that come as they should counts.
        passed_s = min(passed_s, 2 * _LOOK_S)
        seen: dict[_Key, float] = {}
        for active in attempts:
            if not (active.worker.joined and active.attempt):
                continue
            cancelled = isinstance(active.stop, CancelRequested)
            key = active.ref, active.attempt, cancelled
            turn_s = seen[key] = self._turn_s.get(key, 0.0) + passed_s * (not active.idle)
            may_s = _CANCELLED * active.worker.lease_s if cancelled else _may_s(active, fetch_s)
            if 0 < may_s < turn_s:
                what = "was cancelled" if cancelled else "is over its time"
                yield (
                    active,
                    f"it keeps {active.ref}, which {what}, and has done nothing about it for {turn_s:.0f} s",
                )
        self._turn_s = seen


@dataclass(slots=True, eq=False, repr=False)
class OverdueWatch:
    """Sends away a worker elsewhere that keeps an overdue task: its tasks go on elsewhere, once
    its lease is over.
    """

    _current: CurrentConfig
    _attempts: Attempts
    _pool: Supervisor
    _overdue: Overdue = field(default_factory=Overdue)

    async def watch(self) -> None:
        """Look for ever."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await cadence.pause(_LOOK_S)
            now = clock()
            fetch_s = self._current.config.workspace.fetch_timeout_s
            found = [*self._overdue.look(self._attempts.active, now - last, fetch_s)]
            for active, why in found:
                self._pool.send_away(
                    active.worker, why, "check that machine, and start its worker again"
                )
            last = now


def _may_s(active: ActiveAttempt, fetch_s: float) -> float:
    """Return how long an attempt may be its worker's turn, in seconds; 0: for ever."""
    if active.task is None or not active.task.limits.timeout_s:
        return 0.0
    limits = active.task.limits
    fetch_s = fetch_s if active.task.origin else 0.0
    step_s = limits.call_timeout_s + limits.tool_timeout_s + fetch_s
    return limits.timeout_s + step_s + _ENDS * active.worker.lease_s
