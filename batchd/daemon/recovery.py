"""What an earlier daemon left is taken up again:
all of it or, for a ``run``, one batch and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from batchd.config import Config
from batchd.daemon.batches import OpenBatches
from batchd.daemon.outboxes import HANGS_S, Outboxes
from batchd.daemon.parking_lot import ParkingLot
from batchd.lifecycle import Lifecycle
from batchd.log import Action, get_logger
from batchd.records import Cause, Parking, Scope
from batchd.spool import claims, outbox
from batchd.spool.ulid import LENGTH, PATTERN, mark_of
from batchd.store.rows import StoredWork
from batchd.store.store import Store


def part(restored: StoredWork, name: str) -> StoredWork:
    """Return what concerns one batch, and no other; without a name, what holds for every task, and
    no task: what is queued costs money, and stays queued.
    """
    return StoredWork(
        batches=tuple(batch for batch in restored.batches if batch.name == name),
        queued=tuple(task for task in restored.queued if task.ref.batch == name),
        given_back=tuple(task for task in restored.given_back if task.ref.batch == name),
        unpublished=tuple(ref for ref in restored.unpublished if ref.batch == name),
        ended=tuple((ref, status) for ref, status in restored.ended if ref.batch == name),
        parked=tuple(p for p in restored.parked if (_is_of(p, name) if name else _general(p))),
    )


def _is_of(parking: Parking, name: str) -> bool:
    """Whether it concerns a batch, or a task of it, alone."""
    own = parking.scope in {Scope.BATCH, Scope.TASK}
    return own and parking.name.partition("/")[0] == name


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
