"""The log's lines about tasks, rendered from committed events: one writer, one vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from batchd.events import (
    CallAnswered,
    CallDenied,
    CallFailed,
    CallStarted,
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
from batchd.log import Action, detailed, get_logger
from batchd.records import STANDARD, FailureKind, Purpose, Reason, Ref, Usage
from batchd.wire import Ask

#: What a line quotes of a command, an answer or a verdict, in characters.
_QUOTED = 200


class Line(NamedTuple):
    """A log line: its level, its action, its fields."""

    level: str
    action: Action
    fields: dict[str, Any]


class TaskLog:
    """Writes the lines of one attempt at a task."""

    def __init__(self, ref: Ref, worker: Mapping[str, Any], model: str) -> None:
        """``worker``: the fields that say which one works on it."""
        self._log = get_logger(batch=ref.batch, task=ref.task, **worker)
        self._model = model
        #: Whether a round's beginning is still to be logged.
        self._between_rounds = True
        #: When the last call was granted.
        self._called_at = 0.0

    def step(self, step: str, detail: str) -> None:
        """Write what the task does next, where details are wanted."""
        if detailed():
            self._log.debug(Action.STEP_STARTED, step=step, detail=_quote(detail))

    def asks(self, ask: Ask, tier: str, *, again: bool) -> None:
        """Write that a call wants its permit, where details are wanted; ``again``: the try before failed."""
        if detailed():
            fields: dict[str, Any] = {
                "purpose": ask.purpose.value,
                "gen_ai.request.model": ask.model,
                "input_tokens": ask.input_tokens,
                "max_output_tokens": ask.max_output_tokens,
                "service_tier": tier,
                "again": again,
            }
            self._log.debug(Action.PERMIT_ASKED, **fields)

    def event(self, event: Event) -> None:
        """Write what a committed event says, if there is anything to say."""
        if isinstance(event, CallStarted):
            self._begins(event)
            return
        if isinstance(event, RoundEvaluated) and event.final:
            self._between_rounds = True
        render = _LINES.get(type(event))
        line = render(event) if render else None
        if line is not None:
            if line.action in {Action.MODEL_CALLED, Action.MODEL_FAILED}:
                line.fields["gen_ai.request.model"] = self._model
            if isinstance(event, CallFailed):
                line.fields["seconds"] = round(
                    max(0.0, event.at - (self._called_at or event.at)), 3
                )
            getattr(self._log, line.level)(line.action, **line.fields)
        if isinstance(event, CallAnswered):
            self._doubts(event)
        if isinstance(event, ToolRan | RoundEvaluated) and event.refused:
            self._log.warning(Action.NETWORK_REFUSED, hosts=list(event.refused))
        if isinstance(event, ToolRan | RoundEvaluated) and event.excess:
            self._log.warning(Action.LIMIT_PASSED, message=event.excess)

    def _begins(self, event: CallStarted) -> None:
        """Write that a round begins, if one does, and the permit where details are wanted."""
        if self._between_rounds and event.purpose is Purpose.AGENT:
            self._log.info(Action.ROUND_STARTED)
            self._between_rounds = False
        self._called_at = event.at
        if detailed():
            self._log.debug(Action.PERMIT_GRANTED, **_granted(event))

    def _doubts(self, event: CallAnswered) -> None:
        """Write what is odd about an answer."""
        if event.disbelieved:
            self._log.warning(
                Action.USAGE_NOT_BELIEVED,
                message="no such call comes to that: what was set aside for it is booked instead",
                **_tokens(event.disbelieved),
            )
        if event.doubt:
            self._log.warning(Action.COST_NOT_BELIEVED, message=event.doubt)
        if event.answer.removed:
            self._log.warning(
                Action.ITEMS_REMOVED,
                count=len(event.answer.removed),
                reasons=sorted(set(event.answer.removed)),
            )


def _quote(text: str) -> str:
    text = " ".join(text[: 2 * _QUOTED].split())
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }


def _started(event: TaskStarted) -> Line:
    return Line("info", Action.TASK_STARTED, {"model": event.terms.model.name, "attempt": 1})


def _resumed(event: Resumed) -> Line:
    return Line("info", Action.TASK_STARTED, {"attempt": event.attempt, "resumed": True})


def _answered(event: CallAnswered) -> Line:
    answer, usage = event.answer, event.answer.usage
    fields = {
        "purpose": event.purpose.value,
        **_tokens(usage),
        "gen_ai.response.finish_reasons": [answer.finish_reason],
        "seconds": round(answer.seconds, 3),
        "tools": [call.name for call in event.calls],
    }
    if usage.estimated:
        fields["estimated"] = True
    if event.tier != STANDARD:
        fields["service_tier"] = event.tier
    return Line("info", Action.MODEL_CALLED, fields)


def _failed(event: CallFailed) -> Line:
    failure = event.failure
    limited = failure.kind is FailureKind.RATE_LIMITED
    fields: dict[str, Any] = {"error": failure.kind.value, "message": _quote(failure.message)}
    if failure.http_status is not None:
        fields["http_status"] = failure.http_status
    if failure.retry_after_s is not None:
        fields["retry_after_s"] = failure.retry_after_s
    return Line("warning", Action.RATE_LIMITED if limited else Action.MODEL_FAILED, fields)


def _granted(event: CallStarted) -> dict[str, Any]:
    return {
        "purpose": event.purpose.value,
        "waited_s": round(event.waited_s, 3),
        "reserved_usd": event.reserved_usd,
        "reserved_tokens": event.reserved_tokens,
        "service_tier": event.tier,
    }


def _denied(event: CallDenied) -> Line:
    if event.reason is not Reason.BUDGET:  # the task's end says it too
        fields = {"reason": event.reason.value, "message": _quote(event.error.message)}
        return Line("debug", Action.PERMIT_DENIED, fields)
    return Line("warning", Action.BUDGET_REACHED, {"message": event.error.message})


def _tool_ran(event: ToolRan) -> Line:
    fields: dict[str, Any] = {"tool": event.call.name, "arguments": _quote(event.call.arguments)}
    if event.exit_code is not None:
        fields["exit_code"] = event.exit_code
    if event.outcome != "ran":
        fields["outcome"] = event.outcome
    if event.left:
        fields["left"] = ", ".join(event.left)
    return Line("info", Action.TOOL_RAN, {**fields, "seconds": round(event.seconds, 3)})


def _evaluated(event: RoundEvaluated) -> Line:
    verdict = event.evaluation
    fields: dict[str, Any] = {
        "by": verdict.by,
        "done": verdict.done,
        "feedback": _quote(verdict.feedback),
    }
    if event.seconds:
        fields["seconds"] = round(event.seconds, 3)
    return Line("info", Action.ROUND_EVALUATED, fields)


def _compacted(event: Compacted) -> Line:
    fields = {
        "elided": len(event.elided),
        "cut": len(event.clipped),
        "summarised": event.end - event.start,
    }
    return Line("info", Action.CONTEXT_COMPACTED, fields)


def _suspended(event: Suspended) -> Line:
    return Line("info", Action.TASK_PARKED, {"cause": event.cause, "message": event.message})


def _finished(event: TaskFinished) -> Line:
    fields = {"status": event.status.value, "reason": event.reason and event.reason.value}
    return Line("info", Action.TASK_FINISHED, fields)


_LINES: Mapping[type[Event], Callable[[Any], Line | None]] = {
    TaskStarted: _started,
    Resumed: _resumed,
    CallAnswered: _answered,
    CallFailed: _failed,
    CallDenied: _denied,
    ToolRan: _tool_ran,
    RoundEvaluated: _evaluated,
    Compacted: _compacted,
    Suspended: _suspended,
    ClockMoved: lambda event: Line("warning", Action.CLOCK_MOVED, {"by_s": round(event.by_s, 1)}),
    TaskFinished: _finished,
}
