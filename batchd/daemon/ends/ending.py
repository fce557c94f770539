"""The end of a task that no worker ends itself: its event, with the text of its result."""

from __future__ import annotations

from collections.abc import Sequence

from batchd import results
from batchd.events import Event, Resumed, TaskFinished, TaskStarted
from batchd.lifecycle.effects import End
from batchd.records import Batch, ErrorInfo, Task
from batchd.taskstate import fold


def event(end: End, batch: Batch, task: Task, events: Sequence[Event], at: float) -> TaskFinished:
    """Return the last event of a task that has had these."""
    state = fold(task.first_prompt, events)
    tries = sum(isinstance(e, Resumed) for e in events)
    tries += any(isinstance(e, TaskStarted) for e in events)
    text = results.result(
        batch,
        task,
        state,
        status=end.status,
        reason=end.reason,
        error=ErrorInfo(type=end.reason, message=end.message, retries=state.retries),
        queued_at=batch.received_at,
        finished_at=at,
        attempts=max(end.attempts, tries),
        files=None,
    )
    return TaskFinished(at=at, status=end.status, reason=end.reason, result=text)
