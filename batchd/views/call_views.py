"""Calls of a model: asked, answered, failed, not allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchd.actions import Action
from batchd.events import CallAnswered, CallDenied, CallFailed, CallStarted
from batchd.records import STANDARD, FailureKind, Purpose, Reason
from batchd.views.view import Kind, Line, Passage, View, logged, quoted, tokens
from batchd.words import duration


class AskedView(View[CallStarted]):
    """A request is on its way; its answer, its failure or the task's end says the rest."""

    step = "model asked"
    then = "model"

    def log(self, event: CallStarted) -> Iterator[Line]:
        """Yield the permit, where details are wanted."""
        fields: dict[str, Any] = {
            "purpose": event.purpose.value,
            "waited_s": round(event.waited_s, 3),
            "reserved_usd": event.reserved_usd,
            "reserved_tokens": event.reserved_tokens,
            "service_tier": event.tier,
        }
        yield Line("debug", Action.PERMIT_GRANTED, fields)


class AnsweredView(View[CallAnswered]):
    """The model answered."""

    step = "model answered"
    then = "tool"
    action = Action.MODEL_CALLED

    def log(self, event: CallAnswered) -> Iterator[Line]:
        """Yield the call, and what is odd about its answer."""
        answer, usage = event.answer, event.answer.usage
        fields: dict[str, Any] = {
            "purpose": event.purpose.value,
            **tokens(usage),
            "gen_ai.response.finish_reasons": [answer.finish_reason],
            "seconds": round(answer.seconds, 3),
            "tools": [call.name for call in event.calls],
        }
        if usage.estimated:
            fields["estimated"] = True
        if event.tier != STANDARD:
            fields["service_tier"] = event.tier
        yield Line("info", Action.MODEL_CALLED, fields)
        if event.disbelieved:
            said = "no such call can use that much: batchd books what it set aside instead"
            fields = {"message": said, **tokens(event.disbelieved)}
            yield Line("warning", Action.USAGE_NOT_BELIEVED, fields)
        if event.doubt:
            yield Line("warning", Action.COST_NOT_BELIEVED, {"message": event.doubt})
        if removed := answer.removed:
            fields = {"count": len(removed), "reasons": sorted(set(removed))}
            yield Line("warning", Action.ITEMS_REMOVED, fields)

    def text(self, event: CallAnswered) -> str:
        """Return what it used, and what it wants done or says."""
        usage, answer = event.answer.usage, event.answer
        who = "" if event.purpose is Purpose.AGENT else f"{event.purpose}: "
        cached = f" ({usage.cached_input_tokens:,} cached)" if usage.cached_input_tokens else ""
        estimated = ", estimated" if usage.estimated else ""
        figures = (
            f"{usage.input_tokens:,} in{cached}, {usage.output_tokens:,} out{estimated}, "
            f"{duration(answer.seconds)}"
        )
        calls = ", ".join(c.name for c in event.calls)
        return f"{who}{figures}; {calls or quoted(answer.content) or 'nothing'}"

    def passages(self, event: CallAnswered, first_prompt: str) -> Iterator[Passage]:
        """Yield its thinking and its answer; what a judge answers, the verdict says."""
        answer, agent = event.answer, event.purpose is Purpose.AGENT
        if answer.reasoning:
            yield Passage(at=event.at, kind=Kind.THINKING, title="", text=answer.reasoning)
        yield Passage(
            at=event.at,
            kind=Kind.ANSWER,
            title=event.purpose,
            text=answer.content if agent else "",
            seconds=answer.seconds,
            usage=answer.usage,
        )


class FailedView(View[CallFailed]):
    """The request brought no answer."""

    step = "model call failed"
    then = "waiting"
    caution = "its last call failed and is tried again: `batchd logs` says why"
    action = Action.MODEL_FAILED

    def log(self, event: CallFailed) -> Iterator[Line]:
        """Yield what the provider said; a refusal for its rate has an action of its own."""
        failure = event.failure
        limited = failure.kind is FailureKind.RATE_LIMITED
        said = logged(failure.message)
        fields: dict[str, Any] = {"error": failure.kind.value, "message": said}
        if failure.http_status is not None:
            fields["http_status"] = failure.http_status
        if failure.retry_after_s is not None:
            fields["retry_after_s"] = failure.retry_after_s
        yield Line("warning", Action.RATE_LIMITED if limited else Action.MODEL_FAILED, fields)

    def text(self, event: CallFailed) -> str:
        """Return which failure it was, and what the provider said."""
        return f"{_kind(event)}: {quoted(event.failure.message)}"

    def passages(self, event: CallFailed, first_prompt: str) -> Iterator[Passage]:
        """Yield the failure."""
        said = event.failure.message
        yield Passage(at=event.at, kind=Kind.FAILURE, title=_kind(event), text=said, ok=False)


class DeniedView(View[CallDenied]):
    """The governor gave no permit; the task's end, which follows, says it too."""

    step = "model call not allowed"
    action = Action.MODEL_FAILED

    def log(self, event: CallDenied) -> Iterator[Line]:
        """Yield which money is spent, or, where details are wanted, what else the reason is."""
        if event.reason is Reason.BUDGET:
            yield Line("warning", Action.BUDGET_REACHED, {"message": event.error.message})
        else:
            said = logged(event.error.message)
            fields = {"reason": event.reason.value, "message": said}
            yield Line("debug", Action.PERMIT_DENIED, fields)

    def text(self, event: CallDenied) -> str:
        """Return why there is no further call."""
        return f"no further call, {event.reason}: {event.error.message}"


def span_name(model: str) -> str:
    """Return the name of a call's span, as OpenTelemetry has it."""
    return f"chat {model}"


def _kind(event: CallFailed) -> str:
    status = event.failure.http_status
    return f"{event.failure.kind}{f' (HTTP {status})' if status else ''}"


VIEWS: Mapping[type, View[Any]] = {
    CallStarted: AskedView(),
    CallAnswered: AnsweredView(),
    CallFailed: FailedView(),
    CallDenied: DeniedView(),
}
