"""Whether results can be written:
an outbox that takes nothing holds the tasks whose results would go there, and no others.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

from batchd.actions import Action
from batchd.daemon.brief_cache import BriefCache
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.troubles import TROUBLE_S, TroubleLog
from batchd.lifecycle import Lifecycle, inputs
from batchd.records import Batch, Cause, HoldKey, Scope
from batchd.spool import outbox


@dataclass(slots=True, eq=False, repr=False)
class Rooms:
    """The outboxes, and the batches' folders in them.

    Tasks that could leave no result would be paid for in vain.
    """

    _loop: MainLoop
    _lifecycle: Lifecycle
    _outboxes: Outboxes
    _troubles: TroubleLog
    _batches: OpenBatches
    #: Which batch's folder took files; where it takes none by then, a result waits for that.
    _took: BriefCache = field(default_factory=BriefCache)

    @property
    def closed(self) -> bool:
        """Whether no task at all may start: none could leave a result, or run a command."""
        troubles = self._troubles
        if troubles.stops(Action.OUTBOX_TROUBLE, Action.SANDBOX_TROUBLE):
            return True
        shut = troubles.outboxes()
        return bool(shut) and self._batches.outboxes <= shut

    async def open_for(self, name: str) -> bool:
        """Return whether a batch's folder takes files;
        if not, all of its tasks are held until it does.
        """
        batch = self._batches.get(name)
        if batch is None:
            return True
        shut = self._troubles.holds(batch.outbox, name)
        if shut or not await self._ready(batch):
            self._hold(batch)
        return not self._lifecycle.holds.keeps(_shut(name))

    async def _ready(self, batch: Batch) -> bool:
        if self._took.knows(batch.name):
            return True
        try:
            ready = await self._outboxes.promptly(partial(outbox.ready, batch), batch.outbox)
        except OSError:
            return False  # its threads hang: `prepare` will say so
        if ready:
            self._took.note(batch.name)
        return ready

    def _hold(self, batch: Batch) -> None:
        lifecycle, hold = self._lifecycle, _shut(batch.name)
        if lifecycle.holds.keeps(hold):
            return
        for ref in lifecycle.of(batch.name):
            lifecycle.take(inputs.Held(ref, hold))

        async def wait() -> None:
            await self._outboxes.on_disk(partial(outbox.prepare, batch), batch=batch)
            while self._troubles.holds(batch.outbox, batch.name):  # noqa: ASYNC110 (many things end a trouble)
                # A single file of it, or of others, cannot be written yet.
                await asyncio.sleep(TROUBLE_S)
            lifecycle.lift(hold)
            self._loop.wake()

        self._loop.spawn(wait())


def _shut(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch whose folder takes no files."""
    return HoldKey(Scope.BATCH, batch, Cause.FOLDER)
