"""A check of the lifecycle's entries against what else the daemon knows
of tasks that have a slot or a result.

For tests, which set ``BATCHD_SHADOW``: a difference ends the daemon.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass

from batchd.daemon.attempts.active import ActiveAttempt
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.main_loop import MainLoop
from batchd.lifecycle import Entry, Lifecycle, Phase
from batchd.pool.supervisor import Supervisor

_LOOK_S = 0.05
_AT_WORK = (Phase.RUNNING, Phase.STOPPING)


def wanted() -> bool:
    """Return whether a test asks for it."""
    return bool(os.environ.get("BATCHD_SHADOW"))


@dataclass(slots=True, eq=False, repr=False)
class Shadow:
    """Compares, as long as the daemon takes up work."""

    _loop: MainLoop
    _lifecycle: Lifecycle
    _batches: OpenBatches
    _attempts: Attempts
    _pool: Supervisor

    async def watch(self) -> None:
        """Compare for ever. Raises ``AssertionError`` with the differences."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if self._loop.closing:
                return
            if wrong := list(self._differences()):
                raise AssertionError("\n".join(("the lifecycle differs:", *wrong[:20])))

    def _differences(self) -> Iterator[str]:
        entries = self._lifecycle.entries
        active = {each.ref: each for each in self._attempts.active}
        for ref in active.keys() - entries.keys():
            yield f"{ref}: the lifecycle does not have it"
        for ref, entry in entries.items():
            if self._batches.open(ref.batch) is None:
                yield f"{ref}: its batch is not open"
            expected = tuple(self._phases(entry, active.get(ref)))
            if entry.phase not in expected:
                yield f"{ref}: {entry}, where {expected} was expected"
            if ref in active:
                yield from _attempt(entry, active[ref])

    def _phases(self, entry: Entry, active: ActiveAttempt | None) -> Iterator[Phase]:
        """Yield the phases that the daemon's own classes leave open."""
        if active is not None:
            alive = active.worker in self._pool.workers
            yield from _phases_at_work(active, alive=alive)
        else:
            yield from (Phase.ENDING, Phase.ENDED, entry.waiting)


def _phases_at_work(active: ActiveAttempt, *, alive: bool) -> Iterator[Phase]:
    given = active.worker.tasks.get(active.ref)
    if given is None or (given and not alive):
        yield Phase.SUSPENDED
    elif given:
        yield Phase.RUNNING if active.stop is None else Phase.STOPPING
    else:
        yield Phase.STARTING if active.attempt else Phase.RESERVED
        yield Phase.SUSPENDED  # its worker was lost before it had the task


def _attempt(entry: Entry, active: ActiveAttempt) -> Iterator[str]:
    if entry.attempt != active.attempt:
        yield f"{entry.ref}: attempt {entry.attempt}, where {active.attempt} was expected"
    if entry.wish != active.stop and entry.phase in _AT_WORK:
        yield f"{entry.ref}: to stop with {entry.wish}, where {active.stop} was expected"
    if entry.ended != (active.finished and active.finished.status):
        yield f"{entry.ref}: ended as {entry.ended}, where {active.finished} was expected"
