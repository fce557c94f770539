"""Results of tasks that ended before they began: an order may cancel 100,000 of a batch."""

from __future__ import annotations

from functools import lru_cache

from batchd.records import Batch, ErrorInfo, Reason, Task, TaskStatus
from batchd.results import SCHEMA, as_text, result
from batchd.taskstate import TaskState

#: How the text of an object begins and ends.
_BEGINNING, _END = "{\n", "\n}\n"


def text(
    batch: Batch,
    task: Task,
    *,
    status: TaskStatus,
    reason: Reason,
    error: ErrorInfo,
    finished_at: float,
    attempts: int,
) -> str:
    """Return the text of the result of a task that ended before it began.

    It is what ``result`` makes of no events, in a third of its time where many tasks end together.
    """
    # In the order of ``ResultV1``, which a test holds it to.
    first = {
        "schema": SCHEMA,
        "batch": batch.name,
        "task": task.id,
        "status": status,
        "reason": reason,
        "first_prompt": task.first_prompt,
        "dir": batch.directory(task),
        "model": task.model,
        "service_tier": task.service_tier,
    }
    shared = _shared(
        status=status,
        reason=reason,
        error=error,
        queued_at=batch.received_at,
        finished_at=finished_at,
        attempts=attempts,
    )
    last = {"tags": task.tags, "metadata": task.metadata}
    return f"{as_text(first).removesuffix(_END)},\n{shared}{as_text(last).removeprefix(_BEGINNING)}"


@lru_cache(maxsize=8)  # those that end together differ in a few fields alone
def _shared(
    *,
    status: TaskStatus,
    reason: Reason,
    error: ErrorInfo,
    queued_at: float,
    finished_at: float,
    attempts: int,
) -> str:
    """Return what the results of tasks that ended alike before they began have in common:
    the lines between the fields that are a task's own.
    """
    whole = result(
        Batch(name="", claim="", outbox="", request="", received_at=queued_at),
        Task(id="", first_prompt="", model=""),
        TaskState(first_prompt=""),
        status=status,
        reason=reason,
        error=error,
        queued_at=queued_at,
        finished_at=finished_at,
        attempts=attempts,
        files=None,
    )
    # No value has such lines: JSON escapes their ends, and indents what is further in by more.
    return whole[whole.index('  "answer": ') : whole.index('  "tags": ')]
