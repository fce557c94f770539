"""What somebody is shown who may read the outbox, and not the store:
what ``status.json`` there says, and summaries.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import msgspec

from batchd import decoders, trees, users
from batchd.errors import BatchdError, ForbiddenError, NoDaemonError, Problem, UnknownNameError
from batchd.formats import StatusBatchV1, StatusV1, SummaryV1
from batchd.log import escape
from batchd.records import Batch, Parking, Ref, Tally, TaskStatus, outcome
from batchd.spool import outbox
from batchd.store.rows import BatchRow, TaskRow
from batchd.store.shown import filled


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
            descriptor = os.open(path, trees.OPEN_FILE)
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
            summary = decoders.decoder(SummaryV1).decode(data)
        except (OSError, msgspec.MsgspecError):
            raise UnknownNameError(f"no batch {escape(name)} shows in {self._folder}") from None
        return self._shown(
            filled(
                StatusBatchV1,
                summary,
                status="rejected" if summary.status == "rejected" else outcome(summary.counts),
                total_tokens=summary.usage.total_tokens,
                cost=summary.cost.total,
                unsettled=summary.cost.unsettled or 0.0,
            )
        )

    def tasks(self, _batch: str) -> list[TaskRow]:
        """Return nothing: what single tasks do is for the daemon's user."""
        return []

    def running(self) -> list[TaskRow]:
        """Return nothing, as ``tasks`` does."""
        return []

    def parked(self) -> tuple[Parking, ...]:
        """Return nothing: which tasks it concerns is for the daemon's user."""
        return ()

    def prompt(self, ref: Ref) -> str:
        """Raise ``ForbiddenError``: prompts are for the daemon's user."""
        raise users.forbidden(f"the prompt of {ref}", self._state)

    def _shown(self, row: StatusBatchV1) -> BatchRow:
        """Return a batch as the store's rows have it, as far as the outbox says."""
        folder = self._folder / row.batch
        refused = f"the file was refused: {folder / outbox.SUMMARY} says why"
        ended = _seconds(row.finished_at) if row.finished_at else None
        return BatchRow(
            batch=Batch(
                name=row.batch,
                claim="",
                outbox=str(self._folder),
                request=next((path.name for path in folder.glob("request.*")), "request.json"),
                received_at=_seconds(row.received_at),
            ),
            tasks=row.total,
            **{status.value: row.counts.get(status, 0) for status in TaskStatus},
            tally=Tally(
                input_tokens=row.total_tokens,
                unpriced_calls=int(row.cost is None),
                input_usd=row.cost or 0.0,
                unsettled_calls=int(row.unsettled > 0),
                unsettled_usd=row.unsettled,
            ),
            finished_at=ended,
            published_at=ended,
            pruned=0,
            problems=(Problem("", refused),) if row.status == "rejected" else (),
        )


def fresh(status: StatusV1) -> bool:
    """Return whether the daemon that wrote this is there, as far as it shows."""
    age_s = time.time() - _seconds(status.at)
    return status.daemon.state != "stopped" and age_s <= status.stale_after_s


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
