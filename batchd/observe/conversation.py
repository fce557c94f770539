"""A task as a conversation: its events, one by one, become what a person would read.

Texts come from models and files: callers that show them neutralise them.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchd.events import (
    CallAnswered,
    CallFailed,
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
from batchd.observe import markdown
from batchd.observe.words import counted, on_node
from batchd.records import Purpose, ToolCall, Usage


class Kind(enum.StrEnum):
    """What a passage is."""

    #: batchd's own words to the model; of little interest.
    SYSTEM = "system"
    #: The user's request.
    PROMPT = "prompt"
    #: The model's visible thinking.
    THINKING = "thinking"
    #: What a model says; ``title`` says for which purpose.
    ANSWER = "answer"
    #: A tool call, with its output.
    TOOL = "tool"
    VERDICT = "verdict"
    #: A call that brought no answer.
    FAILURE = "failure"
    #: What happened to the task: it was resumed, parked, its conversation shortened.
    NOTE = "note"
    END = "end"


#: What pages show as Markdown.
_PROSE = frozenset({Kind.PROMPT, Kind.ANSWER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One piece of a conversation."""

    #: When it was complete, in seconds since the epoch.
    at: float
    kind: Kind
    #: One line: which command, which verdict, what happened.
    title: str
    #: The rest, of any length.
    text: str = ""
    #: What a tool was given beside its title: the text of a file, the rest of a long command.
    given: str = ""
    #: Whether it went well; None where that is no question.
    ok: bool | None = None
    #: How long it took; 0 where that is no question.
    seconds: float = 0.0
    #: What a model call used; at the end, what all of them did.
    usage: Usage | None = None
    #: At the end, what it cost in US dollars; None where no price is known.
    cost_usd: float | None = None


def passages(event: Event, first_prompt: str) -> Iterator[Passage]:
    """Yield what an event adds to the conversation; nothing for those that later ones include."""
    if isinstance(event, TaskStarted):
        yield Passage(
            at=event.at,
            kind=Kind.SYSTEM,
            title=f"model {event.terms.model.name}{on_node(event.node)}",
            text=event.terms.system_prompt,
        )
        yield Passage(at=event.at, kind=Kind.PROMPT, title="", text=first_prompt)
    elif isinstance(event, CallAnswered):
        yield from _answered(event)
    elif passage := _PASSAGES.get(type(event)):
        yield passage(event)


def plain(passage: Passage, most: int) -> dict[str, Any]:
    """Return a passage as pages are given it: no text longer than ``most``, and how much of it that cost."""
    text, title, given = passage.text[:most], passage.title[:most], passage.given[:most]
    usage = passage.usage
    value = {
        "at": round(passage.at, 3),
        "kind": passage.kind,
        "title": title,
        "text": text,
        "given": given,
        "cut": sum(map(len, (passage.text, passage.title, passage.given)))
        - len(text + title + given),
        "tree": markdown.tree(text) if passage.kind in _PROSE else None,
        "ok": passage.ok,
        "seconds": round(passage.seconds, 3),
        "tokens": [usage.input_tokens, usage.output_tokens] if usage else None,
    }
    return {k: v for k, v in value.items() if v or v is False}


def command(call: ToolCall) -> str:
    """Return what a tool call does: its command or path, where its arguments can be read."""
    try:
        arguments = call.given()
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        for key in ("command", "path"):
            if isinstance(arguments.get(key), str):
                return f"{call.name} {arguments[key]}"
    return f"{call.name} {call.arguments}"


def given(call: ToolCall) -> str:
    """Return what a tool call gives beside its command or path: the text of a file, or what is put for what."""
    try:
        arguments = call.given()
    except (ValueError, RecursionError):
        return ""
    if not isinstance(arguments, dict):
        return ""
    if isinstance(arguments.get("content"), str):
        return str(arguments["content"])
    old, new = arguments.get("old"), arguments.get("new")
    if isinstance(old, str) and isinstance(new, str):
        gone = "".join(f"- {line}\n" for line in old.splitlines())
        return gone + "".join(f"+ {line}\n" for line in new.splitlines())
    return ""


def shortened(event: Compacted) -> str:
    """Return how a conversation was shortened."""
    if event.summary is not None:
        return f"{counted(event.end - event.start, 'message')} summarised"
    if event.clipped:
        return f"{counted(len(event.clipped), 'long message')} cut"
    return f"{counted(len(event.elided), 'old output')} removed"


def _answered(event: CallAnswered) -> Iterator[Passage]:
    answer = event.answer
    if answer.reasoning:
        yield Passage(at=event.at, kind=Kind.THINKING, title="", text=answer.reasoning)
    yield Passage(
        at=event.at,
        kind=Kind.ANSWER,
        title=event.purpose,
        text=answer.content
        if event.purpose is Purpose.AGENT
        else "",  # others have events that say it
        seconds=answer.seconds,
        usage=answer.usage,
    )


def _ran(event: ToolRan) -> Passage:
    code = "" if event.exit_code in {None, 0} else f" → exit {event.exit_code}"
    how = code if event.outcome == "ran" else f" → {event.outcome.replace('_', ' ')}"
    what, _, rest = command(event.call).partition("\n")
    return Passage(
        at=event.at,
        kind=Kind.TOOL,
        title=f"{what}{how}",
        text=f"{event.output}{_refused(event)}",
        given=rest or given(event.call),
        ok=event.outcome == "ran" and event.exit_code in {None, 0},
        seconds=event.seconds,
    )


def _refused(event: ToolRan | RoundEvaluated) -> str:
    return "".join(f"\nnetwork refused: {place}" for place in event.refused)


def _evaluated(event: RoundEvaluated) -> Passage:
    verdict = event.evaluation
    return Passage(
        at=event.at,
        kind=Kind.VERDICT,
        title=f"{verdict.by}: {'done' if verdict.done else 'not done'}"
        if verdict.by != "none"
        else "taken as done: no evaluation was asked for",
        text=f"{verdict.feedback}{_refused(event)}",
        ok=verdict.done,
        seconds=event.seconds,
    )


def _failed(event: CallFailed) -> Passage:
    failure = event.failure
    status = f" (HTTP {failure.http_status})" if failure.http_status else ""
    return Passage(
        at=event.at,
        kind=Kind.FAILURE,
        title=f"{failure.kind}{status}",
        text=failure.message,
        ok=False,
    )


def _note(event: Event, title: str, text: str = "") -> Passage:
    return Passage(at=event.at, kind=Kind.NOTE, title=title, text=text)


def _finished(event: TaskFinished) -> Passage:
    why = f", {event.reason}" if event.reason else ""
    result = json.loads(event.result)
    usage = result["usage"]
    tokens = ("calls", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
    return Passage(
        at=event.at,
        kind=Kind.END,
        title=f"{event.status}{why}",
        text=result["error"]["message"] if result["error"] else "",
        ok=event.reason is None,
        seconds=result["timing"]["run_s"],
        usage=Usage(**{name: usage[name] for name in tokens}, estimated=usage["estimated"]),
        cost_usd=result["cost"]["total"],
    )


_PASSAGES: Mapping[type[Event], Callable[[Any], Passage]] = {
    CallFailed: _failed,
    ToolRan: _ran,
    RoundEvaluated: _evaluated,
    Compacted: lambda e: _note(e, shortened(e), e.summary or ""),
    Resumed: lambda e: _note(e, f"resumed, attempt {e.attempt}{on_node(e.node)}"),
    Suspended: lambda e: _note(e, "parked" if e.cause == "park" else "stopped", e.message),
    ClockMoved: lambda e: _note(e, f"the clock moved by {e.by_s:+,.0f} s"),
    TaskFinished: _finished,
}
