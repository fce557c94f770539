"""The end of a task that no worker ends itself: its event, with the text of its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchd import results
from batchd.events import Event, Resumed, TaskFinished, TaskStarted
from batchd.records import Batch, ErrorInfo, Reason, Status, Task
from batchd.taskstate import fold


@dataclass(frozen=True, slots=True)
class Ending:
    """How tasks end."""

    status: Status
    reason: Reason
    message: str

    def event(
        self, batch: Batch, task: Task, events: Sequence[Event], at: float, *, attempts: int = 0
    ) -> TaskFinished:
        """Return the last event of a task that has had these; ``attempts`` counts also those that left none."""
        state = fold(task.first_prompt, events)
        tries = sum(isinstance(e, Resumed) for e in events)
        tries += any(isinstance(e, TaskStarted) for e in events)
        text = results.result(
            batch,
            task,
            state,
            status=self.status,
            reason=self.reason,
            error=ErrorInfo(type=self.reason, message=self.message, retries=state.retries),
            queued_at=batch.received_at,
            finished_at=at,
            attempts=max(attempts, tries),
            files=None,
        )
        return TaskFinished(at=at, status=self.status, reason=self.reason, result=text)
