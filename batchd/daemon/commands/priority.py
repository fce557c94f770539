"""``priority``: what has not ended goes before others, or behind them."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.control import Prioritised, Priority
from batchd.control.requester import Requester
from batchd.daemon import main_loop
from batchd.daemon.commands import targets
from batchd.daemon.writes import DaemonStore
from batchd.errors import UsageError
from batchd.lifecycle import Lifecycle, inputs
from batchd.records import Ref
from batchd.store import operations

#: A priority is a number of 32 bits, as in a task file.
_INT32 = 1 << 31


@dataclass(slots=True, eq=False, repr=False)
class PriorityHandler:
    """The handler of ``Priority``: changes whose turn it is."""

    _lifecycle: Lifecycle
    _store: DaemonStore

    async def priority(self, request: Priority, by: Requester) -> Prioritised:
        """Give tasks that have not ended another priority."""
        if not -_INT32 <= request.priority < _INT32:
            raise UsageError("a priority is a whole number of 32 bits; higher goes first")
        found = targets.find(self._store, targets.given(request.target))
        refs: list[Ref] = [ref for target in found for ref in targets.unfinished(target)]
        await self._store.order(operations.prioritise, refs, request.priority, by.insist)
        for ref in refs:
            self._lifecycle.take(inputs.Reprioritised(ref, request.priority))
        main_loop.wake()
        return Prioritised(tasks=len(refs))
