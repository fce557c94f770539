"""Fences: what an earlier daemon left at work
on another machine is not begun again before its lease is over.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from batchd.records import Ref, tasks
from batchd.store import Store, lookups


@dataclass(slots=True, eq=False, repr=False)
class Fences:
    """The fences at the beginning of a daemon's life: tasks wait behind them.

    A machine that was cut off, or frozen, may still change their directories. One that is reached
    has ended its workers with the daemon before this one.
    """

    _store: Store
    #: By the monotonic clock.
    _started_at: float = field(default_factory=time.monotonic)
    #: How long each task that was left elsewhere has to wait from then on, in seconds.
    _fences: dict[Ref, float] = field(default_factory=dict)

    def restore(self) -> None:
        """Take up what the last daemon left."""
        found = self._store.read(lookups.left_at)
        self._fences = {ref: tasks.fence_s(label) for ref, label in found.items()}

    def left_s(self, ref: Ref) -> float:
        """Return for how long another machine may still work on a task, in seconds."""
        return self._started_at + self._fences.get(ref, 0.0) - time.monotonic()

    async def passed(self, ref: Ref) -> None:
        """Return when no other machine works on a task any more."""
        if (left_s := self.left_s(ref)) > 0:
            await asyncio.sleep(left_s)
        self._fences.pop(ref, None)
