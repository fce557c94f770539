"""The wall clock time of a batch, roughly: by slots,
by chains of tasks, by the rates that are configured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter

from batchd.config import Config
from batchd.estimate.ranges import Range
from batchd.estimate.task_groups import EstimatePart
from batchd.records import Task


def longest_chain(tasks: Iterable[Task]) -> int:
    """Return how many tasks of a file must wait for each other, one after another, at the most."""
    after = {task.id: task.after for task in tasks}
    depth: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        depth[name] = 1 + max((depth[a] for a in after[name]), default=0)
    return max(depth.values(), default=0)


def slots(settings: Config, tasks: int) -> int:
    """Return how many tasks can be at work at a time."""
    pool = settings.pool
    return max(1, min(pool.processes * pool.agents_per_process, tasks))


def rough(
    settings: Config, parts: Mapping[str, EstimatePart], total: EstimatePart, chain: int
) -> Range | None:
    """Return the seconds from the first task's start to the last one's end,
    nothing else being at work.

    The slowest of what holds a batch up counts: its work over the slots, its longest chain, and the
    requests and tokens a minute of each provider. None where nothing like it is on record.
    """
    if total.one is None or total.all is None:
        return None
    one, work, own = total.one.seconds, total.all.seconds, slots(settings, total.known)

    def at(quantile: Callable[[Range], float]) -> float:
        waits = [quantile(work) / own, chain * one.median, quantile(one)]
        for name, provider in settings.providers.items():
            theirs = [p.all for m, p in parts.items() if m.partition("/")[0] == name and p.all]
            waits.append(
                sum(quantile(t.seconds) for t in theirs) / min(own, provider.max_concurrent)
            )
            if provider.rpm:
                waits.append(sum(quantile(t.calls) for t in theirs) * 60 / provider.rpm)
            if provider.tpm:
                waits.append(sum(quantile(t.tokens) for t in theirs) * 60 / provider.tpm)
        return max(waits)

    return Range(at(lambda r: r.low), at(lambda r: r.median), at(lambda r: r.high))
