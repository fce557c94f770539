"""The outcome of a batch, in one word, by how its tasks did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from batchd.records.tasks import TaskStatus

#: ``completed``: all of it. ``cancelled``: an order, or a batch before it,
#: ended what had not completed; no limit and no error did. ``failed``: all else.
Outcome: TypeAlias = Literal["completed", "cancelled", "failed"]
#: How a batch stands: its outcome once it has ended; ``rejected``: its file was refused.
BatchStatus: TypeAlias = Outcome | Literal["rejected", "running", "parked", "queued"]


def outcome(counts: Mapping[TaskStatus, int]) -> Outcome:
    """Return how a batch ended, by how many of its tasks ended in each final status.

    Tasks are cancelled by an order, for a task of the same batch that did not complete, or for a
    batch that this one comes after: where none ended as ``error`` or ``timeout``,
    an order or that batch stands behind each that is cancelled.
    """
    if counts.get(TaskStatus.ERROR) or counts.get(TaskStatus.TIMEOUT):
        return "failed"
    return "cancelled" if counts.get(TaskStatus.CANCELLED) else "completed"
