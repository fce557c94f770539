"""Whether results can be written:
an outbox that takes nothing holds the tasks whose results would go there, and no others.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

from batchd import free_room
from batchd.daemon import main_loop
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.main_loop import BriefCache
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.troubles import TROUBLE_S, TroubleLog
from batchd.daemon.tuning import CurrentConfig
from batchd.lifecycle import Lifecycle, inputs
from batchd.log import Action
from batchd.records import Batch, Cause, HoldKey, Scope
from batchd.spool import outbox

#: The longest pause before the tasks of a batch that a disk has refused try again;
#: and how long none has met that until it is over.
_LONGEST_PAUSE_S = 30.0
_MET_AGAIN_S = 5.0


@dataclass(slots=True, eq=False, repr=False)
class Rooms:
    """The outboxes, and the batches' folders in them.

    Tasks that could leave no result would be paid for in vain.
    """

    _lifecycle: Lifecycle
    _outboxes: Outboxes
    _current: CurrentConfig
    _troubles: TroubleLog
    _batches: OpenBatches
    #: Which batch's folder took files; where it takes none by then, a result waits for that.
    _took: BriefCache = field(default_factory=BriefCache)
    #: By batch, what its tasks were refused by a disk since they last tried.
    _met: dict[str, str] = field(default_factory=dict)

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
        holds = self._lifecycle.holds
        return not (holds.keeps(_shut(name)) or holds.keeps(_full(name)))

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
        self._keep(batch.name, hold)

        async def wait() -> None:
            await self._outboxes.on_disk(partial(outbox.prepare, batch), batch=batch)
            while self._troubles.holds(batch.outbox, batch.name):  # noqa: ASYNC110 (many things end a trouble)
                # A single file of it, or of others, cannot be written yet.
                await asyncio.sleep(TROUBLE_S)
            lifecycle.lift(hold)
            main_loop.wake()

        main_loop.spawn(wait())

    def _keep(self, name: str, hold: HoldKey) -> None:
        for ref in self._lifecycle.of(name):
            self._lifecycle.take(inputs.Held(ref, hold))

    def met(self, name: str, said: str) -> None:
        """Keep the tasks of a batch, one of which was refused by a disk, as that said;
        they try again, less and less often, until none is.
        """
        if (batch := self._batches.get(name)) is None:
            return
        self._keep(name, _full(name))
        if name not in self._met:
            main_loop.spawn(self._refused(batch))
        self._met[name] = said

    async def _refused(self, batch: Batch) -> None:
        name, pause_s = batch.name, TROUBLE_S
        state = self._current.config.paths.state
        needs = {batch.outbox: free_room.OUTBOX, state: free_room.ENDS}
        with self._troubles.trying(Action.DIRECTORY_TROUBLE) as tries:
            while said := self._met[name]:
                look = partial(free_room.refusal, said, needs)
                ask = partial(self._outboxes.at, look, batch.outbox)
                tries.failed(await self._outboxes.patiently(ask, Action.OUTBOX_TROUBLE))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._met[name] = ""
                self._lifecycle.lift(_full(name))
                main_loop.wake()
                await asyncio.sleep(_MET_AGAIN_S)
        del self._met[name]


def _full(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch that a disk has refused."""
    return HoldKey(Scope.BATCH, f"{batch} room", Cause.FOLDER)


def _shut(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch whose folder takes no files."""
    return HoldKey(Scope.BATCH, batch, Cause.FOLDER)
