"""``submit`` and ``detach``: what ``batchd run`` has a daemon work on,
and whether that goes on without it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from batchd.control import Detach, Detached, Submit, Submitted
from batchd.control.requester import Requester
from batchd.daemon import main_loop
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.intake.errands import Errands
from batchd.daemon.intake.intake import Intake
from batchd.daemon.intake.recovery import Recovery
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.tuning import CurrentConfig
from batchd.daemon.writes import DaemonStore
from batchd.errors import NotPossibleError, UsageError
from batchd.lifecycle import Lifecycle
from batchd.records import Batch, Cause, HoldKey, Scope
from batchd.spool import claims, outbox
from batchd.store import lookups


@dataclass(slots=True, eq=False, repr=False)
class SubmitHandler:
    """The handler of ``Submit`` and ``Detach``: takes up what a ``run`` hands over."""

    _lifecycle: Lifecycle
    _current: CurrentConfig
    _store: DaemonStore
    _outboxes: Outboxes
    _batches: OpenBatches
    _intake: Intake
    _restoring: Recovery
    _errands: Errands
    #: Of two orders for one file at once, the second finds the batch of the first.
    _runs: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def submit(self, request: Submit, by: Requester) -> Submitted:
        """Take up a claimed file, or a batch that is half-finished; answer once it is durable."""
        if bool(request.claim) == bool(request.batch):
            raise UsageError("it needs a claim, or a batch")
        if self._errands.ended:
            return Submitted(batch="", tasks=0)
        again = False
        with self._errands.expected():
            if request.batch:
                self._go_on(batch := self._store.read(lookups.find_batch, request.batch), request)
            else:
                async with self._runs.setdefault(request.run or request.claim, asyncio.Lock()):
                    batch, again = await self._claimed(request, by)
            self._errands.add(batch.name, by)
        tasks = len(self._store.read(lookups.tasks, batch.name))
        return Submitted(batch=batch.name, tasks=tasks, again=again)

    async def detach(self, request: Detach, _by: Requester) -> Detached:
        """Let a batch go on without those who asked for it."""
        self._errands.detach(self._store.read(lookups.find_batch, request.batch).name)
        return Detached(batch=request.batch)

    async def _claimed(self, request: Submit, by: Requester) -> tuple[Batch, bool]:
        """Return the batch of a claimed file, and whether another ``run`` of it began that."""
        claim = claims.find(Path(self._current.config.paths.state), request.claim)
        if known := self._store.read(lookups.claimed, request.claim):
            self._go_on(known, request)
            return known, False
        if claim is None:
            raise UsageError(f"no file lies claimed under {request.claim!a}")
        if request.run and (begun := self._store.read(lookups.unended_run, request.run)):
            self._go_on(begun, request)
            claim.path.unlink(missing_ok=True)
            return begun, True
        # Who waits learns at once that an outbox takes nothing:
        # a file that is dropped would wait for it.
        outside = Path(self._current.config.paths.outbox)
        await self._store.ordered(
            lambda: self._outboxes.promptly(partial(outbox.try_out, outside), str(outside))
        )
        batch = await self._intake.stored(claim, request, by.insist)
        if batch is None:
            raise UsageError(f"{claim.name} was taken away before it was read")
        main_loop.spawn(self._intake.bring(claim, batch))
        return batch, False

    def _go_on(self, batch: Batch, request: Submit) -> None:
        """Take a batch up that is stored, unless it is worked on or published.

        Raises ``NotPossibleError`` where it has to wait, or was begun otherwise.
        """
        name, paths = batch.name, self._current.config.paths
        if self._lifecycle.holds.keeps(HoldKey(Scope.BATCH, name, Cause.PAUSED)):
            raise NotPossibleError(f"{name} is paused: batchd resume {name}")
        otherwise = ""
        if request.parallel and batch.parallel != request.parallel:
            otherwise = "was not started with --serial: leave that out"
        elif batch.outbox != paths.outbox:
            otherwise = (
                f"its results lie in {batch.outbox}, not in {paths.outbox}: run it as before, with "
                "or without --here"
            )
        if otherwise:
            raise NotPossibleError(
                f"{name} is half-finished, and {otherwise}, or end it and begin again: "
                f"batchd cancel {name}"
            )
        for earlier in batch.after_batches:
            if self._batches.get(earlier) is None and self._store.read(lookups.unfinished, earlier):
                raise NotPossibleError(
                    f"{name} comes after {earlier}, which has tasks left, and a `batchd run` works "
                    "on its own files alone: `batchd serve` works on both"
                )
        claim = claims.find(Path(paths.state), batch.claim)
        self._restoring.one(name, {claim.ulid} if claim else set())
        if claim:
            main_loop.spawn(self._intake.bring(claim, batch))
