"""Shares: how many workers of each kind there should be. Pure.

A kind is what its tasks need of their machine.
A worker for tasks that need something takes others too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from batchd.records import Needs
from batchd.records.tasks import NOTHING


def shares(
    work: Mapping[Needs, int],
    *,
    most: int,
    least: int,
    agents: int,
    possible: Callable[[Needs], bool],
) -> dict[Needs, int]:
    """Return how many workers each kind is to have, ``most`` of all kinds
    that are ``possible``, and ``least`` that need nothing.

    ``work``: tasks by what they need; ``agents``: how many a worker has at a time.
    One that holds GPUs has the GPUs of one task.
    """
    asked = {
        needs: tasks if needs.gpu else -(-tasks // agents)
        for needs, tasks in work.items()
        if needs and tasks
    }
    # What no node has may come with another node:
    # one worker is asked for, which keeps none from the others.
    given = {needs: int(not possible(needs)) for needs in sorted(asked)}
    left = most
    while left > 0 and (short := [n for n in given if possible(n) and given[n] < asked[n]]):
        for needs in short[:left]:
            given[needs] += 1
        left -= len(short)
    plain = max(least, -(-work.get(NOTHING, 0) // agents))
    return {**given, NOTHING: max(0, min(plain, left))}
