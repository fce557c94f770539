"""``status.json`` in the outbox: how the daemon stands,
for who may read the outbox, and not the state."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from batchd import pauses, results
from batchd.control import ShownParking
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.status import Desk
from batchd.daemon.writes import DaemonStore
from batchd.errors import StoreError
from batchd.formats import (
    StatusBatchV1,
    StatusDaemonV1,
    StatusDayV1,
    StatusTasksV1,
    StatusTroubleV1,
    StatusV1,
    StatusWaitV1,
)
from batchd.log import Action, get_logger
from batchd.pauses import aside
from batchd.records import Scope, TaskStatus
from batchd.spool import outbox
from batchd.spool.outbox import StrangeOutboxError
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow
from batchd.store.shown import filled

#: Of ``status.json``: between two looks, and so the least between two writes.
_LOOK_S = 5.0
#: It is written again after so long without news, in seconds, …
_AGAIN_S = 30.0
#: … and a reader who finds it older than this takes the daemon for dead.
_STALE_S = 60
#: Batches that have not ended, and others, that are listed.
_OPEN = 200
_ENDED = 20
#: What the last word may take: an outbox that hangs holds up no end.
_END_S = 2.0


@dataclass(slots=True, eq=False, repr=False)
class StatusFile:
    """``status.json`` in the outbox, for who may read that, and not the state: written where
    something has changed, or it would go stale.
    """

    _desk: Desk
    _store: DaemonStore
    _outboxes: Outboxes
    #: As it was written last, without its moment; when, and after how many commits.
    _written: StatusV1 | None = None
    _at: float = 0.0
    _commits: int = -1
    #: Why it could not be written; empty: it could.
    _problem: str = ""

    async def keep(self) -> None:
        """Look for ever."""
        while True:
            await self._look()
            await pauses.pause(_LOOK_S)

    async def stop(self) -> None:
        """Write for the last time; ``keep`` has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._look(stopped=True)

    async def _look(self, *, stopped: bool = False) -> None:
        status, commits = self._standing(stopped=stopped), self._store.writer.commits
        last, fresh = self._written, time.monotonic() - self._at < _AGAIN_S
        # Where nothing was stored the batches are as they were, and are not looked up.
        quiet = last is not None and fresh and commits == self._commits
        if quiet and last and status == msgspec.structs.replace(last, batches=(), left_out=0):
            return
        if not self._store.writer.presence.holds():
            return  # a reader would make a log beside the file that is in its place
        try:
            batches = await aside(partial(_batches, self._store.path), "status")
        except (StoreError, RuntimeError):  # without a thread: the next look may have one
            return
        unended = sum(batch.finished_at is None for batch in batches)
        standing = self._desk.standing()
        left_out = max(0, standing.batches.open - unended)
        status = msgspec.structs.replace(status, batches=batches, left_out=left_out)
        self._commits = commits
        if status == last and fresh:
            return
        folder = standing.outbox
        said = msgspec.structs.replace(status, at=results.timestamp(time.time()))
        text = results.as_text(said).encode()
        write = partial(outbox.publish_status, folder, text, sweep=last is None)
        try:
            await self._outboxes.promptly(write, folder, make=False)
        except (FileNotFoundError, StrangeOutboxError):
            return  # the first batch makes the outbox, or says whose it is
        except OSError as error:
            # What keeps results from the outbox is another's to report; this may be a folder of
            # that name, say.
            if str(error) != self._problem:
                get_logger().warning(Action.STATUS_UNWRITTEN, message=str(error))
            self._problem = str(error)
        else:
            self._problem, self._written, self._at = "", status, time.monotonic()

    def _standing(self, *, stopped: bool) -> StatusV1:
        """Return how the daemon stands, without moment and batches: it costs next to nothing."""
        standing = self._desk.standing()
        day = standing.day
        assert day is not None, "this daemon says it"
        state: Literal["running", "draining", "stopped"] = "stopped" if stopped else "running"
        if standing.draining and not stopped:
            state = "draining"
        began = results.timestamp(standing.started_at)
        return StatusV1(
            schema="batchd/status/1",
            at="",
            stale_after_s=_STALE_S,
            daemon=filled(StatusDaemonV1, standing, started_at=began, state=state),
            slots=standing.slots,
            tasks=filled(StatusTasksV1, standing.tasks),
            day=filled(StatusDayV1, day, limit_usd=day.limit_usd or None),
            waits=_waits(standing.parked),
            troubles=tuple(
                StatusTroubleV1(what=trouble.what, since=results.timestamp(trouble.since))
                for trouble in standing.troubles
            ),
            batches=(),
            left_out=0,
        )


def _waits(parkings: tuple[ShownParking, ...]) -> tuple[StatusWaitV1, ...]:
    """Return what waits, by kind: neither whose key is refused, nor in which words."""
    counted: dict[tuple[str, str, str | None], list[float]] = {}
    for each in parkings:
        own = each.scope in {Scope.BATCH, Scope.TASK}
        batch = each.name.partition("/")[0] if own else None
        counted.setdefault((each.scope, each.cause, batch), []).append(each.since)
    return tuple(
        StatusWaitV1(
            scope=scope,
            cause=cause,
            batch=batch,
            count=len(since),
            since=results.timestamp(min(since)),
        )
        for (scope, cause, batch), since in counted.items()
    )


def _batches(store: Path) -> tuple[StatusBatchV1, ...]:
    """Return the batches, newest first. Raises ``StoreError``."""
    with StoreReader(store) as reader:
        unended = reader.batches(limit=_OPEN, unpublished=True)
        names = {row.batch.name for row in unended}
        latest = reader.batches(limit=_ENDED + len(unended))
    ended = [row for row in latest if row.published_at is not None]
    rows = [*unended, *(row for row in ended[:_ENDED] if row.batch.name not in names)]
    rows.sort(key=lambda row: row.batch.received_at, reverse=True)
    return tuple(map(_batch, rows))


def _batch(row: BatchRow) -> StatusBatchV1:
    return StatusBatchV1(
        batch=row.batch.name,
        status=row.status,
        received_at=results.timestamp(row.batch.received_at),
        finished_at=None if row.published_at is None else results.timestamp(row.published_at),
        counts={status: count for status in TaskStatus if (count := getattr(row, status))},
        total=row.tasks,
        total_tokens=row.tally.total_tokens,
        cost=row.tally.cost_usd,
        unsettled=row.tally.unsettled_usd,
    )
