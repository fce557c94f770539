"""What the pool reports to the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from batchd.pool.pool_worker import PoolWorker
from batchd.records import Ref


class PoolHandler(Protocol):
    """The handler of what the pool reports to the daemon; called on the loop."""

    def message(self, worker: PoolWorker, message: Any) -> None:
        """``Ask``, ``Failed``, ``Record``, ``Progress`` or ``Done`` came;
        a ``Done`` has freed its slot.
        """

    def started(self, worker: PoolWorker) -> None:
        """A worker is up."""

    def suits_more(self) -> None:
        """Tasks that no worker suited may be given to one now."""

    def broke(self, error: BaseException) -> None:
        """A part of the pool has ended that must not: a bug."""

    def cut_off(self, worker: PoolWorker) -> None:
        """A worker of another machine is reached no more:
        what it waits for is not for it; ``died`` follows when it is over.
        """

    def died(self, worker: PoolWorker, lost: Mapping[Ref, int], *, counted: bool) -> None:
        """A worker has ended with tasks ``lost``, by attempt; 0 where none was started.

        ``counted``: they may have killed it.
        """
