"""The views of all kinds of events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from batchd.errors import cut
from batchd.events import (
    CallAnswered,
    CallDenied,
    CallFailed,
    CallStarted,
    CancelRequested,
    ClockMoved,
    Compacted,
    Resumed,
    RoundEvaluated,
    Suspended,
    TaskFinished,
    TaskStarted,
    ToolRan,
)
from batchd.log import Action
from batchd.records import STANDARD, Evaluation, FailureKind, Purpose, Reason, ToolCall, Usage
from batchd.views import view
from batchd.views.view import Kind, Line, Mark, Passage, View, logged, quoted, tokens
from batchd.words import counted, duration, of_check


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
        title = "waits" if event.cause == "park" else "stopped"
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
        return view.said(event.status, event.reason, json.loads(event.result)["iterations"])

    def passages(self, event: TaskFinished, first_prompt: str) -> Iterator[Passage]:
        """Yield how it ended, and what all of it came to."""
        result = json.loads(event.result)
        usage = result["usage"]
        yield Passage(
            at=event.at,
            kind=Kind.END,
            title=view.said(event.status, event.reason, result["iterations"]),
            text=result["error"]["message"] if result["error"] else "",
            ok=event.reason is None,
            seconds=result["timing"]["run_s"],
            usage=Usage(**{name: usage[name] for name in _USED}),
            cost_usd=result["cost"]["total"],
        )


#: Characters of one text in a span; a receiver takes only so much.
_SPANNED = 16_384


class RanView(View[ToolRan]):
    """A tool call has its output."""

    step = "tool ran"
    then = "waiting"
    action = Action.TOOL_RAN

    def log(self, event: ToolRan) -> Iterator[Line]:
        """Yield the call, where it wanted to go and might not, and which limit it passed."""
        arguments = logged(event.call.arguments)
        fields: dict[str, Any] = {"tool": event.call.name, "arguments": arguments}
        if event.exit_code is not None:
            fields["exit_code"] = event.exit_code
        if event.outcome != "ran":
            fields["outcome"] = event.outcome
        if event.left:
            fields["left"] = ", ".join(event.left)
        fields["seconds"] = round(event.seconds, 3)
        yield Line("info", Action.TOOL_RAN, fields)
        yield from _met(event)

    def text(self, event: ToolRan) -> str:
        """Return the command and what came of it."""
        if event.outcome == "ran":
            code = "" if event.exit_code is None else f" → exit {event.exit_code}"
        else:
            code = f" → {event.outcome.replace('_', ' ')}"
        left = f"; runs on: {quoted(', '.join(event.left))}" if event.left else ""
        what = quoted(command(event.call))
        return f"{what}{code}, {duration(event.seconds)}{_met_text(event)}{left}"

    def passages(self, event: ToolRan, first_prompt: str) -> Iterator[Passage]:
        """Yield the command with its output."""
        fine = event.exit_code in {None, 0}
        code = "" if fine else f" → exit {event.exit_code}"
        how = code if event.outcome == "ran" else f" → {event.outcome.replace('_', ' ')}"
        what, _, rest = command(event.call).partition("\n")
        yield Passage(
            at=event.at,
            kind=Kind.TOOL,
            title=f"{what}{how}",
            text=f"{event.output}{_refused(event)}",
            given=rest or _given(event.call),
            ok=event.outcome == "ran" and fine,
            seconds=event.seconds,
        )

    def span(self, event: ToolRan) -> Mark:
        """Return the tool's span."""
        call = event.call
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.id,
            "gen_ai.tool.type": "function",
        }
        if event.exit_code is not None:
            attributes["process.exit.code"] = event.exit_code
        if event.refused:
            attributes["batchd.network_refused"] = list(event.refused)
        error = None if event.outcome == "ran" else event.outcome
        if error:
            attributes["error.type"] = error
        return Mark(
            name=f"execute_tool {call.name}",
            key=f"tool {call.id}",
            seconds=event.seconds,
            attributes=attributes,
            content={
                "gen_ai.tool.call.arguments": cut(call.arguments, _SPANNED),
                "gen_ai.tool.call.result": cut(event.output, _SPANNED),
            },
            error=error,
        )


_LOOPED = "the same calls came three times, with the same output: that ended the round"


class EvaluatedView(View[RoundEvaluated]):
    """A check, a schema or a judge says whether a round's work is done."""

    step = "round evaluated"
    then = "waiting"
    action = Action.ROUND_EVALUATED

    def log(self, event: RoundEvaluated) -> Iterator[Line]:
        """Yield the verdict, and what its command met."""
        verdict = event.evaluation
        fields: dict[str, Any] = {
            "by": verdict.by,
            "done": verdict.done,
            "feedback": logged(verdict.feedback),
        }
        if event.seconds:
            fields["seconds"] = round(event.seconds, 3)
        if event.score is not None:
            fields["score"] = event.score
        fields |= {name: True for name in ("first", "flaky") if getattr(event, name)}
        yield Line("info", Action.ROUND_EVALUATED, fields)
        yield from _met(event)

    def text(self, event: RoundEvaluated) -> str:
        """Return who says what."""
        verdict = event.evaluation
        said = f": {quoted(verdict.feedback)}" if verdict.feedback else ""
        done = "done" if verdict.done else "not done"
        looped = f"{_LOOPED}; " if event.looped else ""
        return f"{looped}{verdict.by} says {done}{_more(event)}{said}{_met_text(event)}"

    def passages(self, event: RoundEvaluated, first_prompt: str) -> Iterator[Passage]:
        """Yield the verdict."""
        verdict = event.evaluation
        title = f"{verdict.by}: {'done' if verdict.done else 'not done'}{_more(event)}"
        if verdict.by == "none":
            title = "taken as done: no evaluation was asked for"
        looped = f"{_LOOPED[0].upper()}{_LOOPED[1:]}." if event.looped else ""
        yield Passage(
            at=event.at,
            kind=Kind.VERDICT,
            title=title,
            text="\n".join(filter(None, (looped, f"{verdict.feedback}{_refused(event)}"))),
            ok=verdict.done,
            seconds=event.seconds,
        )

    def span(self, event: RoundEvaluated) -> Mark | None:
        """Return the span of what was evaluated."""
        verdict = event.evaluation
        if verdict.by == "none":
            return None
        name = f"evaluate {verdict.by}"
        return Mark(
            name=name,
            key=name,
            seconds=event.seconds,
            attributes={**judged(verdict), "batchd.round.settled": event.final},
            content=explained(verdict),
        )


class ShortenedView(View[Compacted]):
    """The conversation was shortened to fit the model's window."""

    step = "conversation shortened"
    then = "waiting"
    action = Action.CONTEXT_COMPACTED

    def log(self, event: Compacted) -> Iterator[Line]:
        """Yield by what."""
        fields = {
            "elided": len(event.elided),
            "cut": len(event.clipped),
            "summarised": event.end - event.start,
        }
        yield Line("info", Action.CONTEXT_COMPACTED, fields)

    def text(self, event: Compacted) -> str:
        """Return how."""
        if event.summary is not None:
            return f"{counted(event.end - event.start, 'message')} summarised"
        if event.clipped:
            return f"{counted(len(event.clipped), 'long message')} cut"
        return f"{counted(len(event.elided), 'old output')} removed"

    def passages(self, event: Compacted, first_prompt: str) -> Iterator[Passage]:
        """Yield how, and the summary."""
        title, text = self.text(event), event.summary or ""
        yield Passage(at=event.at, kind=Kind.NOTE, title=title, text=text)


def command(call: ToolCall) -> str:
    """Return what a tool call does: its command or path, where its arguments can be read."""
    arguments = call.fields
    for key in ("command", "path"):
        if isinstance(arguments.get(key), str):
            return f"{call.name} {arguments[key]}"
    return f"{call.name} {call.arguments}"


def judged(verdict: Evaluation) -> dict[str, str]:
    """Return a verdict by OpenTelemetry's names."""
    return {
        "gen_ai.evaluation.name": verdict.by,
        "gen_ai.evaluation.score.label": "done" if verdict.done else "not_done",
    }


def explained(verdict: Evaluation) -> dict[str, str]:
    """Return what a verdict says to the model, by OpenTelemetry's name;
    nothing where it says nothing.
    """
    said = cut(verdict.feedback, _SPANNED)
    return {"gen_ai.evaluation.explanation": said} if said else {}


def _given(call: ToolCall) -> str:
    """Return what a tool call gives beside its command or path:
    the text of a file, or what is put for what.
    """
    arguments = call.fields
    if isinstance(arguments.get("content"), str):
        return str(arguments["content"])
    old, new = arguments.get("old"), arguments.get("new")
    if isinstance(old, str) and isinstance(new, str):
        gone = "".join(f"- {line}\n" for line in old.splitlines())
        return gone + "".join(f"+ {line}\n" for line in new.splitlines())
    return ""


def _more(event: RoundEvaluated) -> str:
    return of_check(event.score, first=event.first, flaky=event.flaky)


def _met(event: ToolRan | RoundEvaluated) -> Iterator[Line]:
    """Yield the log's lines about what a command was kept from."""
    if event.refused:
        yield Line("warning", Action.NETWORK_REFUSED, {"hosts": list(event.refused)})
    if event.excess:
        yield Line("warning", Action.LIMIT_PASSED, {"message": event.excess})


def _met_text(event: ToolRan | RoundEvaluated) -> str:
    hosts = quoted(", ".join(event.refused))
    refused = f"; network refused: {hosts}" if event.refused else ""
    return refused + (f"; limit passed: {quoted(event.excess)}" if event.excess else "")


def _refused(event: ToolRan | RoundEvaluated) -> str:
    return "".join(f"\nnetwork refused: {place}" for place in event.refused)


#: By the kind of event.
VIEWS: Mapping[type, View[Any]] = {
    CallStarted: AskedView(),
    CallAnswered: AnsweredView(),
    CallFailed: FailedView(),
    CallDenied: DeniedView(),
    TaskStarted: StartedView(),
    Resumed: TakenUpView(),
    Suspended: GivenBackView(),
    ClockMoved: ClockMovedView(),
    CancelRequested: CancelledView(),
    TaskFinished: EndedView(),
    ToolRan: RanView(),
    RoundEvaluated: EvaluatedView(),
    Compacted: ShortenedView(),
}
