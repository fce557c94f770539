"""What an earlier daemon left is taken up again:
all of it or, for a ``run``, one batch and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from batchd.config import Config
from batchd.daemon import main_loop
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.attempts.scratch_cleanup import ScratchCleanup
from batchd.daemon.commands.retry import Reruns
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.outboxes import HANGS_S, Outboxes
from batchd.daemon.waits.gates import Predecessors
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.daemon.writes import DaemonStore
from batchd.lifecycle import Lifecycle
from batchd.log import Action, get_logger
from batchd.records import Cause, Parking, Scope
from batchd.spool import claims, outbox
from batchd.spool.ulid import LENGTH, PATTERN, mark_of
from batchd.store import lookups
from batchd.store.rows import StoredWork
from batchd.store.store import Store


@dataclass(slots=True, eq=False, repr=False)
class Recovery:
    """Hands what the store has to the parts that work on it."""

    _store: DaemonStore
    _attempts: Attempts
    _rerun: Reruns
    _batches: OpenBatches
    _publisher: Publisher
    _lot: ParkingLot
    _scratch: ScratchCleanup
    _predecessors: Predecessors

    def all(self, claimed: AbstractSet[str]) -> None:
        """Take everything up; ``claimed``: the claims whose files are still to be moved."""
        # Of 100,000 queued tasks nothing is garbage:
        # to look for it again and again takes half of the time.
        gc.disable()
        restored = self._store.read(lookups.restore)
        self._take_up(restored, claimed)
        self._scratch.sweep(task.ref for task in restored.queued)
        gc.freeze()
        gc.enable()

    def nothing(self) -> None:
        """Take up what holds for every task, and no task:
        what is queued costs money, and stays queued.
        """
        self._take_up(_none_of(self._store.read(lookups.restore)), frozenset())

    def one(self, name: str, claimed: AbstractSet[str]) -> None:
        """Take one batch up, unless that is done. As ``all``."""
        if self._batches.get(name) is None:
            self._take_up(_only(self._store.read(lookups.restore), name), claimed)

    def _take_up(self, restored: StoredWork, claimed: AbstractSet[str]) -> None:
        self._attempts.lessons.restore()
        self._attempts.fences.restore()
        torn = self._rerun.torn(restored.batches)
        self._batches.restore(restored, claimed | {batch.claim for batch in torn})
        self._publisher.restore(restored)
        for batch in torn:
            main_loop.spawn(self._rerun.bring_again(batch))
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


async def give_back_names(config: Config, store: Store) -> None:
    """Remove the folders of runs for which a killed daemon had reserved a name, and stored nothing.

    Claimed files, which still lie there, find the folders of their names again.
    """
    folder, state = config.paths.outbox, Path(config.paths.state)
    known = await store.writer.submit(
        lambda journal: {name for (name,) in journal.db.execute("SELECT name FROM batches")}
    )
    with contextlib.suppress(OSError):  # what writes there reports what is wrong with it
        lying = {claim.ulid for claim in claims.lying(Path(config.paths.inbox), state)[0]}
        mark = claims.mark(state)
        for name, claim in outbox.reserved(Path(folder)):
            ours = PATTERN.match(claim) and mark_of(claim[:LENGTH]) == mark
            if ours and name not in known and claim not in lying:
                outbox.give_back(folder, name, claim)


async def hold_published(
    lifecycle: Lifecycle, outboxes: Outboxes, batches: OpenBatches, lot: ParkingLot
) -> None:
    """Pause the batches of whose open tasks results lie in the outbox:
    they would be worked on and paid for again.

    A result appears only once its task's end is durable,
    so the store is an older one, put back by hand.
    """
    # Texts: by the hundred thousand, paths take some tenths of a second more.
    wanted: dict[str, dict[str, list[str]]] = {}
    for ref in lifecycle.refs():
        if batch := batches.get(ref.batch):
            names = wanted.setdefault(batch.outbox, {}).setdefault(ref.batch, [])
            names.append(f"{batch.folder}/{ref.task}.json")
    for folder, paths in wanted.items():
        looking = outboxes.at(partial(_there, paths), folder)
        try:
            async with asyncio.timeout(HANGS_S):
                there = await looking
        except (TimeoutError, OSError):
            continue  # it is reported as soon as something is to be written there
        for name, count in there.items():
            message = (
                f"results of {count:,} of its tasks lie in the outbox, and this store is older than they are; "
                "stop the daemon and let `batchd restore` compare"
            )
            get_logger().warning(Action.UNKNOWN_WORK, batch=name, message=message)
            lot.park_now(
                Parking(
                    scope=Scope.BATCH,
                    name=name,
                    cause=Cause.PAUSED,
                    message=message,
                    since=time.time(),
                )
            )


def _there(paths: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many of these results there are, by batch; batches without one are left out."""
    found = {name: sum(map(os.path.lexists, each)) for name, each in paths.items()}
    return {name: count for name, count in found.items() if count}
