"""The folders of batches in the outboxes: one that takes no files holds the tasks of its batch, and
no others. A task that could leave no result would be paid for in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from batchd import free_room
from batchd.daemon import main_loop
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.troubles import TROUBLE_S
from batchd.lifecycle import Lifecycle, inputs
from batchd.log import Action
from batchd.records import Batch, Cause, HoldKey, Scope
from batchd.spool import outbox

#: The longest pause before the tasks of a batch that a disk has refused try again;
#: and how long none has met that until it is over.
_LONGEST_PAUSE_S = 30.0
_MET_AGAIN_S = 5.0


@dataclass(slots=True, eq=False, repr=False)
class ResultFolders:
    """The folders that results are written to."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _outboxes: Outboxes
    #: By batch that a disk refuses: what it said since its tasks last tried; None: nothing yet.
    _refused: dict[str, str | None] = field(default_factory=dict)

    def closed(self, outboxes: AbstractSet[str]) -> bool:
        """Return whether no task of batches in these outboxes may start: none could leave a result,
        or run a command.
        """
        troubles = self._outboxes.troubles
        if troubles.stops(Action.OUTBOX_TROUBLE, Action.SANDBOX_TROUBLE):
            return True
        shut = troubles.outboxes()
        return bool(shut) and outboxes <= shut

    async def takes_files(self, batch: Batch) -> bool:
        """Return whether a batch's folder takes files;
        if not, all of its tasks are held until it does.
        """
        ready = not self._outboxes.troubles.holds(batch.outbox, batch.name)
        if ready:
            try:
                ready = await self._outboxes.promptly(partial(outbox.ready, batch), batch.outbox)
            except OSError:
                ready = False  # its threads hang: who tries it out will say so
        if not ready:
            self._hold(batch)
        holds = self._lifecycle.holds
        return not (holds.keeps(_shut(batch.name)) or holds.keeps(_full(batch.name)))

    def _hold(self, batch: Batch) -> None:
        lifecycle, hold = self._lifecycle, _shut(batch.name)
        if lifecycle.holds.keeps(hold):
            return
        self._keep(batch.name, hold)

        async def wait() -> None:
            await self._outboxes.on_disk(partial(outbox.try_out, Path(batch.folder)), batch)
            while self._outboxes.troubles.holds(batch.outbox, batch.name):  # noqa: ASYNC110 (many things end a trouble)
                # A single file of it, or of others, cannot be written yet.
                await asyncio.sleep(TROUBLE_S)
            lifecycle.lift(hold)
            main_loop.wake()

        main_loop.spawn(wait())

    def _keep(self, name: str, hold: HoldKey) -> None:
        for ref in self._lifecycle.of(name):
            self._lifecycle.take(inputs.Held(ref, hold))

    def refuses(self, batch: Batch, said: str) -> None:
        """Keep the tasks of a batch, one of which was refused by a disk, as that said;
        they try again, less and less often, until none is.
        """
        self._keep(batch.name, _full(batch.name))
        begun = batch.name in self._refused
        self._refused[batch.name] = said
        if not begun:
            main_loop.spawn(self._try_again(batch))

    async def _try_again(self, batch: Batch) -> None:
        pause_s = TROUBLE_S
        needs = {batch.outbox: free_room.OUTBOX, self._current.config.paths.state: free_room.ENDS}
        with self._outboxes.troubles.trying(Action.DIRECTORY_TROUBLE) as tries:
            while said := self._refused[batch.name]:
                look = partial(free_room.refusal, said, needs)
                ask = partial(self._outboxes.at, look, batch.outbox)
                tries.failed(await self._outboxes.patiently(ask, Action.OUTBOX_TROUBLE))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                self._refused[batch.name] = None
                self._lifecycle.lift(_full(batch.name))
                main_loop.wake()
                await asyncio.sleep(_MET_AGAIN_S)
        del self._refused[batch.name]


def _full(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch that a disk has refused."""
    return HoldKey(Scope.BATCH, f"{batch} room", Cause.FOLDER)


def _shut(batch: str) -> HoldKey:
    """Return what keeps the tasks of a batch whose folder takes no files."""
    return HoldKey(Scope.BATCH, batch, Cause.FOLDER)
