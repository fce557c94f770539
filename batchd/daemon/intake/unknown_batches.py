"""Unknown batches and claims, in inbox and outbox since before this store began:
of a store that was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchd import cadence
from batchd.actions import Action
from batchd.config import Config
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.main_loop import MainLoop
from batchd.daemon.outboxes import HANGS_S, Outboxes
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.waits.parking_lot import ParkingLot
from batchd.errors import NotPossibleError
from batchd.lifecycle import Lifecycle
from batchd.log import get_logger
from batchd.records import Cause, Parking, Scope
from batchd.spool import claims, outbox
from batchd.spool.ulid import LENGTH, PATTERN, mark_of, time_of
from batchd.store import Store, witness

#: Names that one message has room for.
_NAMED = 3
#: The time between two looks, in seconds.
_LOOK_S = 5.0


@dataclass(slots=True, eq=False)
class UnknownBatches:
    """Batches without their ends, or claimed files: nothing becomes of them."""

    #: ``files claimed in the inbox``.
    what: str
    #: What their owner can do.
    fix: str
    #: Those that lay there at the last look.
    paths: Sequence[Path]
    #: When they were found, in seconds since the epoch.
    at: float

    def left(self) -> tuple[NotPossibleError, float] | None:
        """Return what of it lies there still, with the fix, and since when that is known."""
        if not self.paths:
            return None
        more = f" and {len(self.paths) - _NAMED:,} more" if len(self.paths) > _NAMED else ""
        named = ", ".join(map(str, self.paths[:_NAMED])) + more
        found = f"{len(self.paths):,} {self.what} are unknown to this store: {named}"
        return NotPossibleError(f"{found}: {self.fix}"), self.at

    async def watch(self, outboxes: Outboxes, folder: str) -> None:
        """Look now and then whether they still lie there, as long as any do.

        ``folder``: whose disk that is.
        """
        while self.paths:
            await cadence.pause(_LOOK_S)
            with contextlib.suppress(OSError):
                self.paths = await outboxes.at(partial(_waiting, self.paths), folder)


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


async def watch(
    loop: MainLoop, config: Config, store: Store, outboxes: Outboxes, troubles: TroubleLog
) -> None:
    """Look once, before anything is taken up,
    and have `status` report what was found as long as it lies there.
    """
    paths, state = config.paths, Path(config.paths.state)
    known = await store.writer.submit(
        lambda journal: {name for (name,) in journal.db.execute("SELECT name FROM batches")}
    )
    mark, began, at = claims.mark(state), witness.since(state / "batchd.db"), time.time()
    lying: set[str] = set()
    with contextlib.suppress(OSError):  # as below
        lying = {claim.ulid for claim in claims.lying(Path(paths.inbox), state)[0]}
        _give_back(Path(paths.outbox), known, lying, mark)
    found = (
        (
            paths.outbox,
            "batches without an end in the outbox",
            "put a backup in place with `batchd restore BACKUP`, or drop their request files again and move them away",
            [*_folders(Path(paths.outbox), known, lying, mark, began)],
        ),
        (
            paths.inbox,
            "files claimed in the inbox",
            "move them back into the inbox, unless the daemon that claimed them still runs",
            [*_files(Path(paths.inbox), state, began)],
        ),
    )
    for folder, what, fix, there in found:
        if there:
            strangers = UnknownBatches(what, fix, there, at)
            troubles.also(Action.UNKNOWN_WORK, strangers.left)
            loop.spawn(strangers.watch(outboxes, folder), endless=True)
    for trouble in troubles.open:
        if trouble.what is Action.UNKNOWN_WORK:
            get_logger().warning(trouble.what, message=trouble.message, mend=trouble.mend)


def _give_back(folder: Path, known: set[str], lying: set[str], mark: int) -> None:
    """Remove the folders of runs for which a killed daemon had reserved a name, and stored nothing.

    Raises ``OSError``.

    Claimed files, which still lie there, find the folders of their names again.
    """
    for name, claim in outbox.reserved(folder):
        if name not in known and claim not in lying and _marked(claim, mark):
            outbox.give_back(str(folder), name, claim)


def _marked(claim: str, mark: int) -> bool:
    return bool(PATTERN.match(claim)) and mark_of(claim[:LENGTH]) == mark


def _waiting(paths: Sequence[Path]) -> list[Path]:
    """Return those that still lie there, without an end."""
    return [path for path in paths if path.exists() and not (path / outbox.SUMMARY).exists()]


def _folders(
    folder: Path, known: set[str], lying: set[str], mark: int, began: float
) -> Iterator[Path]:
    """Yield the folders of batches that were begun here,
    by this state directory or before this store began.

    Not those whose claimed files still lie there: they are taken up next.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return  # what writes there reports what is wrong with it
    for name in names:
        path = folder / name
        if name in known or name.startswith("."):
            continue
        with contextlib.suppress(OSError):  # what we may not look into is another's
            if _ours(path, lying, mark, began) and _waiting([path]):
                yield path


def _ours(path: Path, lying: set[str], mark: int, began: float) -> bool:
    """Whether something in the outbox is the folder of a batch that was begun here.

    Raises ``OSError``.
    """
    if path.is_symlink() or not path.is_dir() or (claim := outbox.claim_of(path)) is None:
        return False
    if claim in lying:
        return False
    if PATTERN.match(claim):
        return _marked(claim, mark) or time_of(claim[:LENGTH]) < began
    return path.stat().st_mtime < began


def _files(inbox: Path, state: Path, began: float) -> Iterator[Path]:
    """Yield what others claimed before this store began."""
    _, others = claims.lying(inbox, state)
    for claim in others:
        if claim.received_at < began:
            yield claim.path
