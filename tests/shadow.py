"""The shadow of the lifecycle: a daemon that runs under it ends where an entry of the lifecycle
differs from its ``ActiveAttempt``, from the pool or from the open batches.

As a program it is ``batchd`` itself: ``python tests/shadow.py serve``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from unittest import mock

from batchd.daemon import main_loop
from batchd.daemon.active import ActiveAttempt
from batchd.daemon.self_check import SelfCheck
from batchd.lifecycle import Entry, Phase

#: Between two looks for differences.
_COMPARE_S = 0.05
_AT_WORK = (Phase.RUNNING, Phase.STOPPING)
_report_stalls = SelfCheck.report_stalls


def install() -> None:
    """Compare in each daemon of this process, and of those that are forked from it."""
    mock.patch.object(SelfCheck, "report_stalls", _both).start()


async def _both(check: SelfCheck) -> None:
    await asyncio.gather(_report_stalls(check), _insist(check))


async def _insist(check: SelfCheck) -> None:
    """Compare for ever. Raises ``AssertionError`` where lifecycle and daemon differ."""
    while not main_loop.current().closing:
        if wrong := [*_differences(check)]:
            raise AssertionError("\n".join(("the lifecycle differs:", *wrong[:20])))
        await asyncio.sleep(_COMPARE_S)


def _differences(check: SelfCheck) -> Iterator[str]:
    entries = check._lifecycle.entries
    active = {each.ref: each for each in check._attempts.active}
    for ref in active.keys() - entries.keys():
        yield f"{ref}: the lifecycle does not have it"
    for ref, entry in entries.items():
        if check._batches.open(ref.batch) is None:
            yield f"{ref}: its batch is not open"
        phases = _phases(check, entry, active.get(ref))
        if entry.phase not in phases:
            yield f"{ref}: {entry}, where {phases} was expected"
        if work := active.get(ref):
            wish = entry.wish if entry.phase in _AT_WORK else work.stop
            ended = work.finished and work.finished.status
            expected = work.attempt, work.stop, ended
            if (entry.attempt, wish, entry.ended) != expected:
                yield f"{ref}: {entry}, where {expected} was expected"


def _phases(check: SelfCheck, entry: Entry, work: ActiveAttempt | None) -> tuple[Phase, ...]:
    """Return the phases that the daemon's own classes leave open."""
    if work is None:
        return Phase.ENDING, Phase.ENDED, entry.waiting
    given = work.worker.tasks.get(work.ref)
    if given is None or (given and work.worker not in check._attempts.pool.workers):
        return (Phase.SUSPENDED,)
    if given:
        return (Phase.RUNNING if work.stop is None else Phase.STOPPING,)
    # Suspended: its worker was lost before it had the task.
    return Phase.STARTING if work.attempt else Phase.RESERVED, Phase.SUSPENDED


if __name__ == "__main__":
    from batchd.cli import main

    install()
    sys.exit(main())
