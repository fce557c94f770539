"""What an earlier daemon left is taken up again:
all of it or, for a ``run``, one batch and no other.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from batchd.daemon.attempts.chains import Chains
from batchd.daemon.attempts.fences import Fences
from batchd.daemon.attempts.lessons import Lessons
from batchd.daemon.attempts.scratch_cleanup import ScratchCleanup
from batchd.daemon.commands.retry import RetryHandler
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.daemon.waits.predecessors import Predecessors
from batchd.records import Cause, Parking, Scope
from batchd.store import Store, StoredWork


@dataclass(slots=True, eq=False, repr=False)
class Recovery:
    """Hands what the store has to the parts that work on it."""

    _loop: MainLoop
    _store: Store
    _lessons: Lessons
    _fences: Fences
    _rerun: RetryHandler
    _batches: OpenBatches
    _publisher: Publisher
    _lot: ParkingLot
    _scratch: ScratchCleanup
    _chains: Chains
    _predecessors: Predecessors

    def all(self, claimed: AbstractSet[str]) -> None:
        """Take everything up; ``claimed``: the claims whose files are still to be moved."""
        # Of 100,000 queued tasks nothing is garbage:
        # to look for it again and again takes half of the time.
        gc.disable()
        restored = self._store.restore()
        self._take_up(restored, claimed)
        self._scratch.sweep(task.ref for task in restored.queued)
        self._chains.sweep([*(task.ref for task in restored.queued), *restored.unpublished])
        gc.freeze()
        gc.enable()

    def nothing(self) -> None:
        """Take up what holds for every task, and no task:
        what is queued costs money, and stays queued.
        """
        self._take_up(_none_of(self._store.restore()), frozenset())

    def one(self, name: str, claimed: AbstractSet[str]) -> None:
        """Take one batch up, unless that is done. As ``all``."""
        if self._batches.get(name) is None:
            self._take_up(_only(self._store.restore(), name), claimed)

    def _take_up(self, restored: StoredWork, claimed: AbstractSet[str]) -> None:
        self._lessons.restore()
        self._fences.restore()
        self._chains.restore()
        torn = self._rerun.torn(restored.batches)
        self._batches.restore(restored, claimed | {batch.claim for batch in torn})
        self._publisher.restore(restored)
        for batch in torn:
            self._loop.spawn(self._rerun.bring_again(batch))
        self._predecessors.restore(restored.batches)
        self._lot.restore(restored.parked, restored.given_back)


def _none_of(restored: StoredWork) -> StoredWork:
    return replace(
        restored,
        batches=(),
        queued=(),
        given_back=(),
        unpublished=(),
        ended=(),
        parked=tuple(p for p in restored.parked if _general(p)),
    )


def _only(restored: StoredWork, name: str) -> StoredWork:
    """Return what concerns one batch, and no other."""
    return StoredWork(
        batches=tuple(batch for batch in restored.batches if batch.name == name),
        queued=tuple(task for task in restored.queued if task.ref.batch == name),
        given_back=tuple(task for task in restored.given_back if task.ref.batch == name),
        unpublished=tuple(ref for ref in restored.unpublished if ref.batch == name),
        ended=tuple((ref, status) for ref, status in restored.ended if ref.batch == name),
        parked=tuple(_own(restored.parked, name)),
    )


def _own(parked: tuple[Parking, ...], name: str) -> Iterator[Parking]:
    for parking in parked:
        if (parking.scope is Scope.BATCH and parking.name == name) or (
            parking.scope is Scope.TASK and parking.name.startswith(f"{name}/")
        ):
            yield parking


def _general(parking: Parking) -> bool:
    """Whether people paused what concerns tasks of every batch.

    What was out of order is tried again.
    """
    return parking.cause is Cause.PAUSED and (parking.scope is Scope.ALL or parking.scope.asked)
