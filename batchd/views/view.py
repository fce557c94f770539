"""A view of a kind of event: all its faces; and the words for how a task ended."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from batchd import words
from batchd.formats import UsageV1
from batchd.log import Action
from batchd.records import Activity, Reason, TaskStatus, Usage
from batchd.words import counted

#: What people read for a task of which no round was accepted: its time was not over.
NOT_ACCEPTED = "not accepted"
#: Which limit a task ran into: of most of them it is no time.
_LIMITS = {
    Reason.MAX_ITERATIONS: NOT_ACCEPTED,
    Reason.MAX_CALLS: "out of calls",
    Reason.TOKENS: "out of tokens",
    Reason.BUDGET: "out of money",
    Reason.WALL_CLOCK: "out of time",
}
#: All words for a status that are not the status itself.
WORDS = frozenset(_LIMITS.values())
_CANCELLED = {Reason.USER: "", Reason.DEPENDENCY: ", with what it comes after"}


def accepted(status: str, reason: str | None) -> bool:
    """Return whether a task did not end because none of its rounds was accepted."""
    return word(status, reason) != NOT_ACCEPTED


def word(status: str, reason: str | None) -> str:
    """Return a task's status in a word or two: ``completed``,
    ``not accepted``, ``out of money``, ``waiting``.
    """
    limit = _LIMITS.get(Reason(reason)) if reason and status == TaskStatus.TIMEOUT else None
    return limit or words.status(status)


# These two stand a second time in assets/words.js, for pages; a test holds both to the same words.


def brief(status: str, reason: str | None) -> str:
    """Return how tasks ended that ended alike:
    ``completed``, ``not accepted``, ``failed: auth``.
    """
    if not reason or status == TaskStatus.TIMEOUT:
        return word(status, reason)
    if status == TaskStatus.CANCELLED:
        return f"{status}{_CANCELLED.get(Reason(reason), '')}"
    return f"failed: {reason.replace('_', ' ')}"


def said(status: str, reason: str | None, rounds: int) -> str:
    """Return how a task ended:
    ``completed``, ``not accepted after 10 rounds``, ``failed: auth``.
    """
    after = "" if accepted(status, reason) else f" after {counted(rounds, 'round')}"
    return f"{brief(status, reason)}{after}"


def why(status: str, reason: str | None, rounds: int, message: str) -> str:
    """Return why a task did not complete, and what its error says:
    ``auth: no such key``, ``after 10 rounds: 3 tests fail``.
    """
    if accepted(status, reason):
        return ": ".join(filter(None, (reason, message)))
    after = f"after {counted(rounds, 'round')}"
    # The stored message begins with the same count.
    detail = message.removeprefix(f"not done {after}").removeprefix(": ")
    if detail.startswith(","):
        return f"{after}{detail}"
    return f"{after}: {detail}" if detail else after


E = TypeVar("E")
Level: TypeAlias = Literal["debug", "info", "warning"]
#: Characters that the log quotes, and a line for people.
_LOGGED, _QUOTED = 200, 100


class Line(NamedTuple):
    """A line of the log."""

    level: Level
    action: Action
    fields: dict[str, Any]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An event as a span below its task's."""

    name: str
    #: What its id is made of, beside the moment; the same event has the same one at any time.
    key: str
    #: How long it took; 0: it is a moment.
    seconds: float = 0.0
    attributes: Mapping[str, Any]
    #: Attributes that quote models and commands, which the configuration may keep back.
    content: Mapping[str, str] = field(default_factory=dict)
    #: What went wrong; None: nothing did.
    error: str | None = None


class View(Generic[E]):
    """One kind of event, as people and programs are shown it."""

    #: What a task did last, where this is its last event: ``model answered``.
    step: str = ""
    #: What a running task does after it, until its worker says more.
    then: Activity = "starting"
    #: What there is to be said of a running task for which this is the last event; mostly nothing.
    caution: str = ""
    #: Its word in the log's vocabulary; None: other events say it.
    action: Action | None = None

    def log(self, event: E) -> Iterator[Line]:
        """Yield the log's lines, the event's own first."""
        yield from ()

    def text(self, event: E) -> str:
        """Return one line for people; there is one where there is an action."""
        return ""

    def passages(self, event: E, first_prompt: str) -> Iterator[Passage]:
        """Yield what it adds to the conversation."""
        yield from ()

    def span(self, event: E) -> Mark | None:
        """Return its span; None: it has none, or is a part of one."""
        return None


def logged(text: str) -> str:
    """Return what the log quotes of a command, an answer or a verdict:
    its beginning, on one line.
    """
    return _cut(" ".join(text[: 2 * _LOGGED].split()), _LOGGED)


def quoted(text: str) -> str:
    """Return what a line for people quotes of it."""
    return _cut(" ".join(text.split()), _QUOTED)


def tokens(usage: Usage | UsageV1) -> dict[str, int]:
    """Return a usage by OpenTelemetry's names."""
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"
