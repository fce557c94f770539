"""``submit`` and ``detach``: what ``batchd run`` has a daemon work on,
and whether that goes on without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchd.control import Detach, Detached, Submit, Submitted
from batchd.control.requester import Requester
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.intake.errands import Errands
from batchd.daemon.intake.intake import Intake
from batchd.daemon.intake.recovery import Recovery
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.tuning import CurrentConfig
from batchd.daemon.writes import Writes
from batchd.errors import NotPossibleError, UsageError
from batchd.records import Batch
from batchd.spool import claims, outbox
from batchd.store import Store


@dataclass(slots=True, eq=False, repr=False)
class SubmitHandler:
    """The handler of ``Submit`` and ``Detach``: takes up what a ``run`` hands over."""

    _loop: MainLoop
    _current: CurrentConfig
    _store: Store
    _writes: Writes
    _outboxes: Outboxes
    _batches: OpenBatches
    _intake: Intake
    _restoring: Recovery
    _errands: Errands

    async def submit(self, request: Submit, by: Requester) -> Submitted:
        """Take up a claimed file, or a batch that is half-finished; answer once it is durable."""
        if bool(request.claim) == bool(request.batch):
            raise UsageError("it needs a claim, or a batch")
        if self._errands.ended:
            return Submitted(batch="", tasks=0)
        with self._errands.expected():
            if request.batch:
                batch = self._store.batch(request.batch)
                self._go_on(batch)
            else:
                batch = await self._claimed(request, by)
            self._errands.add(batch.name, by)
        return Submitted(batch=batch.name, tasks=len(self._store.tasks(batch.name)))

    async def detach(self, request: Detach, _by: Requester) -> Detached:
        """Let a batch go on without those who asked for it."""
        self._errands.detach(self._store.batch(request.batch).name)
        return Detached(batch=request.batch)

    async def _claimed(self, request: Submit, by: Requester) -> Batch:
        state = Path(self._current.config.paths.state)
        claim = claims.find(state, request.claim)
        if known := self._store.claimed(request.claim):
            self._go_on(known)
            return known
        if claim is None:
            raise UsageError(f"no file lies claimed under {request.claim!a}")
        # Who waits learns at once that an outbox takes nothing:
        # a file that is dropped would wait for it.
        outside = Path(self._current.config.paths.outbox)
        await self._writes.ordered(
            lambda: self._outboxes.promptly(partial(outbox.try_out, outside), str(outside))
        )
        batch = await self._intake.stored(claim, request.parallel, by.insist)
        if batch is None:
            raise UsageError(f"{claim.name} was taken away before it was read")
        self._loop.spawn(self._intake.bring(claim, batch))
        return batch

    def _go_on(self, batch: Batch) -> None:
        """Take a batch up that is stored, unless it is worked on or published.

        Raises ``UsageError`` where it has to wait.
        """
        if self._batches.get(batch.name) is not None and self._errands.attended(batch.name):
            raise UsageError(f"somebody else waits for {batch.name}")
        for earlier in batch.after_batches:
            if self._batches.get(earlier) is None and self._store.unfinished(earlier):
                raise NotPossibleError(
                    f"{batch.name} comes after {earlier}, which has tasks left, and a `batchd run` works on its "
                    "own files alone: `batchd serve` works on both"
                )
        claim = claims.find(Path(self._current.config.paths.state), batch.claim)
        self._restoring.one(batch.name, {claim.ulid} if claim else set())
        if claim:
            self._loop.spawn(self._intake.bring(claim, batch))
