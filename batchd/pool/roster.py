"""The roster: the workers that live, and which of them may take a task."""

from __future__ import annotations

from collections.abc import Iterator

from batchd.pool.pool_worker import PoolWorker
from batchd.records import Place, Ref


class Roster:
    """The workers of a pool."""

    def __init__(self) -> None:
        self._members: list[PoolWorker] = []

    def __contains__(self, member: PoolWorker) -> bool:
        return member in self._members

    @property
    def all(self) -> tuple[PoolWorker, ...]:
        """Every worker, the oldest first."""
        return tuple(self._members)

    @property
    def started(self) -> tuple[PoolWorker, ...]:
        """Those of this machine, the oldest first."""
        return tuple(member for member in self._members if not member.remote)

    @property
    def clearing(self) -> PoolWorker | None:
        """The worker that gets no more tasks, so that one task can have it alone."""
        return next((m for m in self._members if m.clearing and not m.retiring), None)

    def add(self, member: PoolWorker) -> None:
        """Take a worker in."""
        self._members.append(member)

    def remove(self, member: PoolWorker) -> None:
        """Strike a worker out that has ended."""
        self._members.remove(member)

    def clear(self, member: PoolWorker | None) -> bool:
        """Give a worker no more tasks until it has none, and no other one;
        return whether another one gets tasks again.
        """
        again = [m for m in self._members if m.clearing and m is not member]
        for each in again:
            each.clearing = False
        if member is not None:
            member.clearing = True
        return bool(again)

    def at(self, ref: Ref) -> PoolWorker | None:
        """Return the worker that has a task."""
        return next((member for member in self._members if ref in member.tasks), None)

    def open(self, agents: int, place: Place, *, up: bool) -> Iterator[PoolWorker]:
        """Yield the workers that have room for another of so many ``agents``;
        ``up``: only those that have come up.
        """
        kept = (member for member in self._usable(up=up) if not member.clearing)
        return (m for m in kept if len(m.tasks) < agents and m.suits(place))

    def empty(self, place: Place, *, up: bool) -> PoolWorker | None:
        """Return a worker without a task, best one that was cleared."""
        empty = (m for m in self._usable(up=up) if not m.tasks and m.suits(place))
        return max(empty, key=lambda m: m.clearing, default=None)

    def _usable(self, *, up: bool) -> Iterator[PoolWorker]:
        return (
            member
            for member in self._members
            if not (member.retiring or member.alone or member.channel.clogged)
            and (member.greeted or not (up or member.remote))
        )
