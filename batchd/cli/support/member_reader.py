"""What a member of the daemon's group is shown, who may not read the store:
asked of the daemon, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from batchd import control
from batchd.control import DaemonStatus, ShownParking, members
from batchd.control.status import ListedBatch
from batchd.errors import Problem, UnknownNameError, UsageError
from batchd.records import Batch, Cause, Parking, Ref, Scope, Task
from batchd.store.rows import BatchRow, TaskRow


class MemberReader:
    """Answers as the store's ``StoreReader`` does, as far as the group may know it."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def batches(self, *, limit: int = -1) -> list[BatchRow]:
        """Return the newest batches; a daemon says of a thousand at most."""
        most = limit if limit >= 0 else 1000
        return [*map(shown, self.standing(last=most).rows)] if most else []

    def batch(self, name: str) -> BatchRow:
        """Return one batch. Raises ``UnknownNameError``."""
        try:
            (row,) = self.standing(batch=name).rows
        except UsageError as error:
            raise UnknownNameError(str(error)) from None
        return shown(row)

    def standing(self, *, last: int = 0, batch: str = "") -> DaemonStatus:
        """Return how the daemon does, and some batches."""
        return control.ask(self._state, control.Status(last=last, batch=batch))

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
        raise members.forbidden(f"the prompt of {ref}", self._state)


def parkings(held: tuple[ShownParking, ...]) -> Iterator[Parking]:
    """Yield what waits as a whole, as far as this version knows it."""
    for each in held:
        try:
            yield Parking(
                scope=Scope(each.scope),
                name=each.name,
                cause=Cause(each.cause),
                message=each.message,
                since=each.since,
                tried_s=each.tried_s,
            )
        except ValueError:
            continue


def shown(row: ListedBatch) -> BatchRow:
    """Return a batch as the store's rows have it, as far as the daemon says."""
    where = Path(row.folder)
    refused = Problem("", f"the file was refused: {where / 'summary.json'} says why")
    return BatchRow(
        batch=Batch(
            name=row.name,
            claim="",
            outbox=str(where.parent),
            request=row.request,
            received_at=row.received_at,
        ),
        cached_input_tokens=0,
        finished_at=None,
        pruned=0,
        **{f.name: getattr(row, f.name) for f in fields(BatchRow) if hasattr(row, f.name)},
        problems=(refused,) if row.rejected else (),
    )
