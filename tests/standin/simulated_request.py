"""What all dialects have in common:
a request as the stand-in understands it, and how its answer is written.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, cast

import msgspec
from msgspec.structs import replace

from batchd import tokens
from batchd.records import Answer, FinishReason, Purpose, Usage
from standin.families import Family

#: Stands in scripts for a lone surrogate, which Python's encoders refuse to write.
LONE_SURROGATE = "\U0010fffd"
_LONE = LONE_SURROGATE.encode()
#: How batchd's compaction prompt ends; it has no other mark.
_SUMMARY = "Answer with the summary only."
#: What batchd says of a task's directory begins and ends like that, before the prompt.
_OPENED, _ASKED = "[In /task at the start:]\n", "\n[The task:]\n"
#: Beside the ends that batchd distinguishes: a model that declines, and a call that fails with
#: status 200.
AnswerEnd: TypeAlias = Literal[FinishReason, "refusal", "failed"]


def prompt_of(text: str) -> str:
    """Return a task's prompt, as the first message of a user has it."""
    return text.partition(_ASKED)[2] if text.startswith(_OPENED) else text


class InvalidRequestError(Exception):
    """A request that a provider refuses with status 400."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ConversationTurn(Protocol):
    """One message of a conversation, or what stands for one."""

    @property
    def role(self) -> str:
        """Whose it is: ``user`` and ``assistant`` in all dialects."""

    @property
    def text(self) -> str:
        """What it says."""


class Segment(Protocol):
    """A part of a prompt that is in the cache as a whole, or not at all."""

    def weight(self) -> int:
        """Return its tokens."""


class Caller(msgspec.Struct, frozen=True):
    """The sender of a request, and its dialect."""

    #: As the provider names it; never the key.
    account: str = "org-stand-in"
    #: The request's headers, their names in lower case.
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheRules:
    """How a provider caches the prompt of one request."""

    #: What must be the same for two requests to share anything.
    scope: tuple[object, ...]
    #: The segments after which the prompt is to be cached, ascending.
    breakpoints: tuple[int, ...]
    #: Shorter prefixes are not cached.
    minimum: int
    #: How many places before a breakpoint, itself included, are looked at; 0: all.
    lookback: int = 0
    #: Whether what is written is said, and billed.
    billed: bool = True


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer came to."""

    usage: Usage
    #: What of the input earlier requests began with as well: more can never be read from the cache.
    seen: int = 0
    #: The tier that served.
    tier: str = "default"
    #: Dollars; None where the model has no price.
    cost: float | None = None


class Heading(msgspec.Struct, frozen=True):
    """What all parts of one answer repeat."""

    #: Unique; each dialect puts its own mark in front of it.
    id: str
    created: int
    model: str
    #: The stop sequence that ended it, if one did.
    stopped: str = ""
    #: What was thought: its tokens, and about how many bytes it comes to when sealed.
    thought_tokens: int = 0
    sealed_size: int = 0


class AnswerWriter(Protocol):
    """Writes the answer to one request."""

    def whole(self, heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""

    def failed(self, heading: Heading) -> bytes:
        """Return what comes with status 200 and is an error."""


class SimulatedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is in order. A ``Struct``, which is made in a tenth of a dataclass's time."""

    model: str
    #: The rules of the model that its name names; None: none.
    family: Family | None = None
    turns: Sequence[ConversationTurn]
    #: The prompt in its parts, and the bytes by which each is known.
    segments: Sequence[Segment]
    raws: Sequence[bytes]
    #: The text of its first user message: what distinguishes conversations.
    first_user: str
    purpose: Purpose
    #: How many answers it holds already.
    turn: int
    #: The schemas of the tools that it offers, where they are no segments;
    #: and whether it offers any.
    schemas: bytes = b""
    native: bool = False
    stop: str | Sequence[str] | None = None
    #: The tokens of output that it asks for; 0 where it sets no limit.
    max_output: int = 0
    #: The tier that it asks for.
    tier: str = "default"
    #: None: whatever came before is cached, and free to write.
    cache: CacheRules | None = None
    #: Opaque items that came back, and how many of them were left out.
    opaque: int = 0
    removed: int = 0
    #: Whether its model thinks before it answers, and seals that.
    thinks: bool = False
    #: Whether calls came back without the thinking behind them, which has a field of its own.
    thoughtless: bool = False
    account: str
    writer: AnswerWriter


def purpose(turns: Sequence[ConversationTurn], *, native: bool, bound: bool) -> Purpose:
    """Return what batchd makes a call for;
    ``bound`` says whether the answer is bound to a schema.
    """
    if not native:
        judged = turns[0].role in {"system", "developer"} and turns[0].text.startswith("You judge")
        if judged or bound:
            return Purpose.JUDGE
    if turns[-1].role == "user" and turns[-1].text.endswith(_SUMMARY):
        return Purpose.COMPACTION
    return Purpose.AGENT


def escaped(body: bytes) -> bytes:
    """Return a JSON body in which what stands for a lone surrogate has become one."""
    return body.replace(_LONE, b"\\ud83d")


@functools.lru_cache(4096)
def weigh(text: str) -> int:
    """Return the tokens of a text."""
    return tokens.count(text) if text else 0


def ended(content: str, end: AnswerEnd) -> Answer:
    """Return an answer that ends so;
    only a dialect of the stand-in's, which asks ``end``, can write it.
    """
    return replace(Answer(content=content), finish_reason=cast("FinishReason", end))


def end(answer: Answer) -> AnswerEnd:
    """Return how one of the stand-in's answers ends."""
    return answer.finish_reason
