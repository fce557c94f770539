"""What somebody is shown who may read the outbox, and not the store:
what ``status.json`` there says, and summaries.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from batchd import decoders, users
from batchd.errors import (
    BatchdError,
    ForbiddenError,
    NoDaemonError,
    Problem,
    UnknownNameError,
)
from batchd.formats import StatusBatchV1, StatusV1, SummaryV1
from batchd.log import escape
from batchd.records import Batch, Parking, Ref, Task, TaskStatus
from batchd.spool import outbox
from batchd.store.rows import BatchRow, TaskRow


class MemberReader:
    """Answers as the store's ``StoreReader`` does, as far as the outbox tells."""

    def __init__(self, folder: Path, state: Path) -> None:
        """``folder``: the outbox."""
        self._folder = folder
        self._state = state

    def status(self) -> StatusV1:
        """Return what the daemon has written last.

        Raises ``NoDaemonError`` where there is nothing, and ``OSError`` where it cannot be read.
        """
        path = self._folder / outbox.STATUS
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoDaemonError(
                f"there is no {path}: no daemon has run, or everybody may write that folder"
            ) from None
        with open(descriptor, "rb") as file:
            if os.fstat(descriptor).st_uid not in {0, self._folder.stat().st_uid}:
                raise ForbiddenError(f"{path} is not the daemon's: batchd does not believe it")
            data = file.read()
        try:
            return decoders.decoder(StatusV1).decode(data)
        except msgspec.MsgspecError as error:
            raise BatchdError(f"{path} cannot be read ({error})") from None

    def alive(self) -> bool:
        """Return whether a daemon shows that takes what is dropped."""
        try:
            return fresh(self.status())
        except (BatchdError, PermissionError):
            return False

    def batches(self, *, limit: int = -1) -> list[BatchRow]:
        """Return the newest batches, as many as the file has."""
        found = self.status().batches
        return [*map(self._shown, found[:limit] if limit >= 0 else found)]

    def batch(self, name: str) -> BatchRow:
        """Return one batch. Raises ``UnknownNameError``."""
        for row in self.status().batches:
            if row.batch == name:
                return self._shown(row)
        try:
            data = (self._folder / name / outbox.SUMMARY).read_bytes()
            return self._ended(decoders.decoder(SummaryV1).decode(data))
        except (OSError, msgspec.MsgspecError):
            raise UnknownNameError(f"no batch {escape(name)} shows in {self._folder}") from None

    def tasks(self, _batch: str) -> list[TaskRow]:
        """Return nothing: what single tasks do is for the daemon's user."""
        return []

    def running(self) -> list[TaskRow]:
        """Return nothing, as ``tasks`` does."""
        return []

    def parked(self) -> tuple[Parking, ...]:
        """Return nothing: which tasks it concerns is for the daemon's user."""
        return ()

    def spec(self, ref: Ref) -> Task:
        """Raise ``ForbiddenError``: prompts are for the daemon's user."""
        raise users.forbidden(f"the prompt of {ref}", self._state)

    def _shown(self, row: StatusBatchV1) -> BatchRow:
        return self._row(
            self._batch(row.batch, row.received_at),
            row.counts,
            tasks=row.total,
            tokens=row.total_tokens,
            cost_usd=row.cost,
            unsettled_usd=row.unsettled,
            finished_at=row.finished_at,
            rejected=row.status == "rejected",
        )

    def _ended(self, summary: SummaryV1) -> BatchRow:
        return self._row(
            self._batch(summary.batch, summary.received_at),
            summary.counts,
            tasks=summary.total,
            tokens=summary.usage.total_tokens,
            cost_usd=summary.cost.total,
            unsettled_usd=summary.cost.unsettled or 0.0,
            finished_at=summary.finished_at,
            rejected=summary.status == "rejected",
        )

    def _batch(self, name: str, received_at: str) -> Batch:
        there = (self._folder / name).glob("request.*")
        return Batch(
            name=name,
            claim="",
            outbox=str(self._folder),
            request=next((path.name for path in there), "request.json"),
            received_at=_seconds(received_at),
        )

    def _row(
        self,
        batch: Batch,
        counts: Mapping[TaskStatus, int],
        *,
        tasks: int,
        tokens: int,
        cost_usd: float | None,
        unsettled_usd: float,
        finished_at: str | None,
        rejected: bool,
    ) -> BatchRow:
        refused = f"the file was refused: {Path(batch.folder, outbox.SUMMARY)} says why"
        ended = _seconds(finished_at) if finished_at else None
        return BatchRow(
            batch=batch,
            tasks=tasks,
            queued=counts.get(TaskStatus.QUEUED, 0),
            running=counts.get(TaskStatus.RUNNING, 0),
            parked=counts.get(TaskStatus.PARKED, 0),
            completed=counts.get(TaskStatus.COMPLETED, 0),
            timeout=counts.get(TaskStatus.TIMEOUT, 0),
            error=counts.get(TaskStatus.ERROR, 0),
            cancelled=counts.get(TaskStatus.CANCELLED, 0),
            calls=0,
            input_tokens=tokens,
            cached_input_tokens=0,
            output_tokens=0,
            unsettled_calls=int(unsettled_usd > 0),
            unsettled_usd=unsettled_usd,
            cost_usd=cost_usd,
            known_usd=cost_usd or 0.0,
            finished_at=ended,
            published_at=ended,
            pruned=0,
            problems=(Problem("", refused),) if rejected else (),
        )


def fresh(status: StatusV1) -> bool:
    """Return whether the daemon that wrote this is there, as far as it shows."""
    age_s = time.time() - _seconds(status.at)
    return status.daemon.state != "stopped" and age_s <= status.stale_after_s


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
