"""``priority``: what has not ended goes before others, or behind them."""

from __future__ import annotations

from functools import partial

from batchd.control import Prioritised, Priority
from batchd.control.giver import Giver
from batchd.daemon.commands import targets
from batchd.daemon.core import Core
from batchd.errors import UsageError
from batchd.lifecycle import inputs
from batchd.records import Ref

#: A priority is a number of 32 bits, as in a task file.
_INT32 = 1 << 31


async def priority(core: Core, request: Priority, by: Giver) -> Prioritised:
    """Give tasks that have not ended another priority."""
    if not -_INT32 <= request.priority < _INT32:
        raise UsageError("a priority is a whole number of 32 bits; higher goes first")
    found = targets.find(core.store, targets.given(request.target))
    refs: list[Ref] = [ref for target in found for ref in targets.unfinished(target)]
    write = partial(core.store.prioritise, refs, request.priority, check=by.insist)
    await core.ordered(write)
    for ref in refs:
        core.note(inputs.Prioritised(ref, request.priority))
    core.wake()
    return Prioritised(tasks=len(refs))
