"""A task's course: started, given back, taken up again, ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from batchd.actions import Action
from batchd.events import (
    CancelRequested,
    ClockMoved,
    Resumed,
    Suspended,
    TaskFinished,
    TaskStarted,
)
from batchd.records import Usage
from batchd.views import ends
from batchd.views.view import Kind, Line, Mark, Passage, View

#: What a conversation's end shows of the usage in a result.
_USED = (
    *("calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
    "estimated",
)


def _on(event: TaskStarted | Resumed) -> str:
    """Return on which machine an attempt began; nothing where that is the daemon's."""
    return f", on {event.node}" if event.node else ""


class StartedView(View[TaskStarted]):
    """A worker took the task up for the first time."""

    step = "task started"
    action = Action.TASK_STARTED

    def log(self, event: TaskStarted) -> Iterator[Line]:
        """Yield the start."""
        fields = {"model": event.terms.model.name, "attempt": 1}
        yield Line("info", Action.TASK_STARTED, fields)

    def text(self, event: TaskStarted) -> str:
        """Return which model works on it."""
        return f"model {event.terms.model.name}{_on(event)}"

    def passages(self, event: TaskStarted, first_prompt: str) -> Iterator[Passage]:
        """Yield what the model is given first."""
        title, prompt = self.text(event), event.terms.system_prompt
        yield Passage(at=event.at, kind=Kind.SYSTEM, title=title, text=prompt)
        if event.terms.opening:
            about = "what stands before the prompt"
            yield Passage(at=event.at, kind=Kind.SYSTEM, title=about, text=event.terms.opening)
        yield Passage(at=event.at, kind=Kind.PROMPT, title="", text=first_prompt)


class TakenUpView(View[Resumed]):
    """A later attempt took the task up."""

    step = "went on"
    action = Action.TASK_STARTED

    def log(self, event: Resumed) -> Iterator[Line]:
        """Yield the start."""
        yield Line("info", Action.TASK_STARTED, {"attempt": event.attempt, "resumed": True})

    def text(self, event: Resumed) -> str:
        """Return which attempt it is."""
        return f"resumed, attempt {event.attempt}{_on(event)}"

    def passages(self, event: Resumed, first_prompt: str) -> Iterator[Passage]:
        """Yield a note."""
        yield Passage(at=event.at, kind=Kind.NOTE, title=self.text(event), text=event.lost or "")


class GivenBackView(View[Suspended]):
    """The task gave its slot back."""

    step = "gave its slot back"
    action = Action.TASK_PARKED

    def log(self, event: Suspended) -> Iterator[Line]:
        """Yield why."""
        fields = {"cause": event.cause, "message": event.message}
        yield Line("info", Action.TASK_PARKED, fields)

    def text(self, event: Suspended) -> str:
        """Return why."""
        return f"{event.cause}: {event.message}".rstrip(": ")

    def passages(self, event: Suspended, first_prompt: str) -> Iterator[Passage]:
        """Yield a note."""
        title = "parked" if event.cause == "park" else "stopped"
        yield Passage(at=event.at, kind=Kind.NOTE, title=title, text=event.message)

    def span(self, event: Suspended) -> Mark:
        """Return the mark where it gave its slot back; between this and what follows it waited."""
        attributes = {"batchd.cause": event.cause, "batchd.message": event.message}
        name = f"suspend {event.cause}"
        return Mark(name=name, key=name, attributes=attributes)


class ClockMovedView(View[ClockMoved]):
    """The clock was set, or the machine slept."""

    step = "clock moved"
    action = Action.CLOCK_MOVED

    def log(self, event: ClockMoved) -> Iterator[Line]:
        """Yield by how much."""
        yield Line("warning", Action.CLOCK_MOVED, {"by_s": round(event.by_s, 1)})

    def text(self, event: ClockMoved) -> str:
        """Return by how much."""
        return f"the clock moved by {event.by_s:+,.0f} s"

    def passages(self, event: ClockMoved, first_prompt: str) -> Iterator[Passage]:
        """Yield a note."""
        yield Passage(at=event.at, kind=Kind.NOTE, title=self.text(event))


class CancelledView(View[CancelRequested]):
    """Somebody wants the task ended; the end that follows says it."""

    step = "cancel asked for"


class EndedView(View[TaskFinished]):
    """The task has its result."""

    step = "task ended"
    action = Action.TASK_FINISHED

    def log(self, event: TaskFinished) -> Iterator[Line]:
        """Yield its status and reason, as the result has them."""
        fields = {"status": event.status.value, "reason": event.reason and event.reason.value}
        yield Line("info", Action.TASK_FINISHED, fields)

    def text(self, event: TaskFinished) -> str:
        """Return how it ended."""
        return ends.said(event.status, event.reason, json.loads(event.result)["iterations"])

    def passages(self, event: TaskFinished, first_prompt: str) -> Iterator[Passage]:
        """Yield how it ended, and what all of it came to."""
        result = json.loads(event.result)
        usage = result["usage"]
        yield Passage(
            at=event.at,
            kind=Kind.END,
            title=ends.said(event.status, event.reason, result["iterations"]),
            text=result["error"]["message"] if result["error"] else "",
            ok=event.reason is None,
            seconds=result["timing"]["run_s"],
            usage=Usage(**{name: usage[name] for name in _USED}),
            cost_usd=result["cost"]["total"],
        )


VIEWS: Mapping[type, View[Any]] = {
    TaskStarted: StartedView(),
    Resumed: TakenUpView(),
    Suspended: GivenBackView(),
    ClockMoved: ClockMovedView(),
    CancelRequested: CancelledView(),
    TaskFinished: EndedView(),
}
