"""What is done with a model's answers:
tools run, rounds are evaluated, the conversation is shortened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from batchd.actions import Action
from batchd.errors import cut
from batchd.events import Compacted, RoundEvaluated, ToolRan
from batchd.records import Evaluation, ToolCall
from batchd.views.view import Kind, Line, Mark, Passage, View, logged, quoted
from batchd.words import counted, duration

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
        yield Line("info", Action.ROUND_EVALUATED, fields)
        yield from _met(event)

    def text(self, event: RoundEvaluated) -> str:
        """Return who says what."""
        verdict = event.evaluation
        said = f": {quoted(verdict.feedback)}" if verdict.feedback else ""
        done = "done" if verdict.done else "not done"
        return f"{verdict.by} says {done}{said}{_met_text(event)}"

    def passages(self, event: RoundEvaluated, first_prompt: str) -> Iterator[Passage]:
        """Yield the verdict."""
        verdict = event.evaluation
        title = f"{verdict.by}: {'done' if verdict.done else 'not done'}"
        if verdict.by == "none":
            title = "taken as done: no evaluation was asked for"
        yield Passage(
            at=event.at,
            kind=Kind.VERDICT,
            title=title,
            text=f"{verdict.feedback}{_refused(event)}",
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
    arguments = _arguments(call)
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
    arguments = _arguments(call)
    if isinstance(arguments.get("content"), str):
        return str(arguments["content"])
    old, new = arguments.get("old"), arguments.get("new")
    if isinstance(old, str) and isinstance(new, str):
        gone = "".join(f"- {line}\n" for line in old.splitlines())
        return gone + "".join(f"+ {line}\n" for line in new.splitlines())
    return ""


def _arguments(call: ToolCall) -> Mapping[str, Any]:
    """Return a tool call's arguments; none where they cannot be read."""
    try:
        arguments = call.given()
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}


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


VIEWS: Mapping[type, View[Any]] = {
    ToolRan: RanView(),
    RoundEvaluated: EvaluatedView(),
    Compacted: ShortenedView(),
}
