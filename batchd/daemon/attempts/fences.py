"""Fences: what an earlier daemon left at work on another machine is not begun again before its lease is over."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from batchd.records import Ref, workers
from batchd.store import Store


@dataclass(slots=True, eq=False, repr=False)
class Fences:
    """Has tasks wait, at the beginning of a daemon's life.

    A machine that was cut off, or frozen, may still change their directories. One that is reached has ended its workers
    with the daemon before this one.
    """

    _store: Store
    #: By the monotonic clock.
    _started_at: float = field(default_factory=time.monotonic)
    #: The longest that any task has to wait, in seconds; 0: no worker ever joined.
    _longest_s: float = 0.0

    def restore(self) -> None:
        """Take up what the last daemon left."""
        left = map(workers.fence_s, self._store.left_at())
        self._longest_s = max(left, default=self._longest_s)

    async def passed(self, ref: Ref) -> None:
        """Return when no other machine works on a task any more."""
        if time.monotonic() >= self._started_at + self._longest_s:
            return
        until = self._started_at + max(map(workers.fence_s, self._store.left_at(ref)), default=0.0)
        await asyncio.sleep(until - time.monotonic())
