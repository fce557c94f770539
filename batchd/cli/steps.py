"""A task's journal for people: each event becomes a word of the log's vocabulary and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchd.events import (
    CallAnswered,
    CallDenied,
    CallFailed,
    CallStarted,
    CancelRequested,
    ClockMoved,
    Compacted,
    Event,
    Resumed,
    RoundEvaluated,
    Suspended,
    TaskFinished,
    TaskStarted,
    ToolRan,
)
from batchd.log import Action, escape
from batchd.observe.conversation import command, shortened
from batchd.observe.words import duration, on_node
from batchd.records import Purpose

#: What a line quotes of a command, an answer or a verdict, in characters.
_QUOTED = 100


def line(event: Event) -> tuple[str, str]:
    """Return the action that an event records, and what there is to say; no action: nothing."""
    action, text = _TEXTS[type(event)]
    return action, escape(text(event))


def _quote(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _answered(event: CallAnswered) -> str:
    usage, answer = event.answer.usage, event.answer
    who = "" if event.purpose is Purpose.AGENT else f"{event.purpose}: "
    cached = f" ({usage.cached_input_tokens:,} cached)" if usage.cached_input_tokens else ""
    estimated = ", estimated" if usage.estimated else ""
    figures = (
        f"{usage.input_tokens:,} in{cached}, {usage.output_tokens:,} out{estimated}, "
        f"{duration(answer.seconds)}"
    )
    what = ", ".join(c.name for c in event.calls) if event.calls else _quote(answer.content)
    return f"{who}{figures}; {what or 'nothing'}"


def _ran(event: ToolRan) -> str:
    if event.outcome == "ran":
        code = "" if event.exit_code is None else f" → exit {event.exit_code}"
    else:
        code = f" → {event.outcome.replace('_', ' ')}"
    left = f"; runs on: {_quote(', '.join(event.left))}" if event.left else ""
    return f"{_quote(command(event.call))}{code}, {duration(event.seconds)}{_met(event)}{left}"


def _met(event: ToolRan | RoundEvaluated) -> str:
    refused = f"; network refused: {_quote(', '.join(event.refused))}" if event.refused else ""
    return refused + (f"; limit passed: {_quote(event.excess)}" if event.excess else "")


def _evaluated(event: RoundEvaluated) -> str:
    verdict = event.evaluation
    said = f": {_quote(verdict.feedback)}" if verdict.feedback else ""
    done = "done" if verdict.done else "not done"
    return f"{verdict.by} says {done}{said}{_met(event)}"


def _failed(event: CallFailed) -> str:
    failure = event.failure
    status = f" (HTTP {failure.http_status})" if failure.http_status else ""
    return f"{failure.kind}{status}: {_quote(failure.message)}"


def _finished(event: TaskFinished) -> str:
    return f"{event.status}, {event.reason}" if event.reason else str(event.status)


_TEXTS: Mapping[type, tuple[str, Callable[[Any], str]]] = {
    TaskStarted: (Action.TASK_STARTED, lambda e: f"model {e.terms.model.name}{on_node(e.node)}"),
    Resumed: (Action.TASK_STARTED, lambda e: f"resumed, attempt {e.attempt}{on_node(e.node)}"),
    # Its answer, its failure or the task's end says the rest.
    CallStarted: ("", lambda _: ""),
    CallAnswered: (Action.MODEL_CALLED, _answered),
    CallFailed: (Action.MODEL_FAILED, _failed),
    CallDenied: (Action.MODEL_FAILED, lambda e: f"no further call, {e.reason}: {e.error.message}"),
    ToolRan: (Action.TOOL_RAN, _ran),
    RoundEvaluated: (Action.ROUND_EVALUATED, _evaluated),
    Compacted: (Action.CONTEXT_COMPACTED, shortened),
    Suspended: (Action.TASK_PARKED, lambda e: f"{e.cause}: {e.message}".rstrip(": ")),
    ClockMoved: (Action.CLOCK_MOVED, lambda e: f"the clock moved by {e.by_s:+,.0f} s"),
    # The end that follows says it.
    CancelRequested: ("", lambda _: ""),
    TaskFinished: (Action.TASK_FINISHED, _finished),
}
