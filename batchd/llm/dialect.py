"""Requests to models, in no provider's words; and ``Dialect``: all that is known of one way to
speak to models, and what it may leave out. Callers know no more of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from batchd import decoders
from batchd.llm.failures import CallPlace
from batchd.records import (
    EFFORTS,
    STANDARD,
    Answer,
    Api,
    AskedEffort,
    Effort,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Replay,
    Tier,
    Tool,
    ToolCall,
)
from batchd.records.models import valid_throughout


class ModelTarget(Struct, frozen=True, kw_only=True):
    """The target of a call: what an answer's items go back to."""

    api: Api
    provider: str
    model: str
    #: The server's host and port.
    host: str = ""
    #: The account as the provider names it with its answers; empty: it has not yet, or never does.
    account: str = ""

    @classmethod
    def of(cls, setup: ModelSetup, host: str, account: str) -> ModelTarget:
        """Return who is asked where a model is called like this."""
        return cls(
            api=setup.api, provider=setup.provider, model=setup.model, host=host, account=account
        )

    def takes(self, replay: Replay | None) -> bool:
        """Whether items go back to it: it has made them, as far as is known."""
        return (
            replay is not None
            and (replay.api, replay.provider, replay.model) == (self.api, self.provider, self.model)
            and replay.host == self.host
            and (replay.account == self.account or not (replay.account and self.account))
        )

    def replay(self, items: tuple[msgspec.Raw, ...], thinking_tokens: int) -> Replay:
        """Return the items of an answer of its own."""
        return Replay(**asdict(self), items=items, thinking_tokens=thinking_tokens)


class ModelRequest(Struct, frozen=True, kw_only=True):
    """One call: the whole conversation, and what the answer may be."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    max_output_tokens: int
    #: The answer ends in front of any of these.
    stop: tuple[str, ...] = ()
    #: A JSON Schema for the answer, sent as far as ``ModelSetup.json_mode`` allows.
    schema: Mapping[str, Any] | None = None
    #: What a conversation is cached under that will go on; empty: it ends with this call.
    cache_key: str = ""
    #: As the provider calls it; None: as the account is set up.
    service_tier: str | None = None
    #: What the model is known to refuse, in words that the store keeps: ``field:temperature``
    #: (leave it out), ``effort:none`` (think by another measure), ``effort with tools`` (think not
    #: at all, where there are tools), ``name:max_tokens`` (the field has another name).
    spared: frozenset[str] = frozenset()

    def without_items(self) -> ModelRequest:
        """Return the same request with every message as neutral text and calls."""
        return replace(self, messages=tuple(replace(m, replay=None) for m in self.messages))

    def of_tier(self, tier: Tier) -> ModelRequest:
        """Return the same request as this service tier serves it."""
        asked = None if tier == STANDARD else tier
        return self if asked == self.service_tier else replace(self, service_tier=asked)

    def effort(self, setup: ModelSetup, words: tuple[Effort, ...]) -> AskedEffort:
        """Return how much the model is to think, as one of ``words``; empty: its own default.

        The nearest lower one where it lacks what is asked for, or the lowest that it has.
        """
        if not setup.effort:
            return ""
        asked = EFFORTS.index(setup.effort)
        has = [w for w in EFFORTS if w in words and f"effort:{w}" not in self.spared]
        lower = [w for w in has if EFFORTS.index(w) <= asked]
        return lower[-1] if lower else has[0] if has else ""


def alternating(messages: tuple[Message, ...]) -> Iterator[Message]:
    """Yield ``messages``, those of the user that follow each other as one:
    strict chat templates refuse two running.

    No request ever ends between two of them, so that this changes nothing of what was sent before.
    """
    before: Message | None = None
    for message in messages:
        if before is not None and by_user(before) and by_user(message):
            before = Message("user", f"{before.content}\n\n{message.content}")
            continue
        if before is not None:
            yield before
        before = message
    if before is not None:
        yield before


def by_user(message: Message) -> bool:
    """Whether a message goes out as the user's: what answers a call of the text protocol, too."""
    return message.role == "user" or (message.role == "tool" and message.tool_call_id is None)


_OBJECT: msgspec.json.Decoder[dict[str, msgspec.Raw]] = decoders.decoder(dict[str, msgspec.Raw])


def arguments(call: ToolCall) -> str:
    """Return a call's arguments as a JSON object, whatever they are."""
    try:
        _OBJECT.decode(call.arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        # Some servers answer 400 or 500 to a conversation with broken arguments in it, for ever.
        return msgspec.json.encode({"malformed": valid_throughout(call.arguments)}).decode()
    return call.arguments


#: What goes into a request's body, before the configuration's own fields are laid over it.
Encode: TypeAlias = Callable[[ModelSetup, ModelTarget, ModelRequest], dict[str, Any]]
#: A response's body with status 200 is an answer, or says what went wrong. Raises
#: ``UnreadableError``; the last is how many seconds it took.
Decode: TypeAlias = Callable[[CallPlace, ModelTarget, bytes, ModelRequest, float], Answer | Failure]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A wire dialect: how it is spoken."""

    #: For people.
    what: str
    #: Where requests go, below ``base_url``.
    path: str
    encode: Encode
    decode: Decode
    #: Puts a body right, once the configuration's own fields are in it.
    settled: Callable[[dict[str, Any]], None] = lambda _body: None
    #: The headers that a key goes into, beside those that every request has.
    headers: Callable[[str], Mapping[str, str]]
    #: The words that it has for how much a model is to think.
    efforts: tuple[Effort, ...] = EFFORTS
    #: The headers of an answer that name the account, never its key.
    account: tuple[str, ...] = ()
    #: What a refusal of earlier items says, in lower case.
    refused_items: re.Pattern[str] = re.compile("(?!)")
    #: What can be spared of a request:
    #: the names that an error may give it, to the body's own field.
    sparable: Mapping[str, str]
    #: What stands in an answer that counts its input, so that it is not counted here.
    counted: bytes


#: That an error is about what is sent, not about its value's sense or the conversation.
_REFUSED = re.compile(
    r"unsupported|(?:not|n't|never) (?:be )?(?:supported|support|permitted|accepted|allowed|available|compatible)"
    r"|unrecognized|unknown (?:parameter|field|name|argument)|unexpected (?:keyword|argument|field)"
    r"|deprecated|extra (?:inputs|fields)|cannot be (?:set|specified|used|disabled)|no longer|unavailable"
)
#: That it is the field itself, not the value that it has.
_FIELD = re.compile(
    r"unsupported[ _]parameter|unknown[ _](?:parameter|field|name|argument)|extra (?:inputs|fields)|unrecognized"
    r"|(?:not|n't) support (?:thinking|(?:the )?(?:\S+ )?parameter)"
)
_NO_TOOLS = re.compile(
    r"(?<![\w.])(?:function tools|tools?|function.?call\w*|tool.?(?:use|call)\w*)\b[^.]{0,80}?"
    r"(?:not|n't) (?:be )?(?:supported|support|available|allowed)"
    r"|(?:not|n't) support (?:the use of )?(?:function|tools?\b|tool.?(?:use|call))"
    r"|no endpoints found that support tool use"
    # vLLM, llama.cpp: the server was started without a parser for calls.
    r"|tool choice requires|tools param requires"
)
_EFFORTS = frozenset({"reasoning_effort", "reasoning", "reasoning.effort", "output_config.effort"})
#: What providers of chat call the limit on output.
LIMITS = ("max_tokens", "max_completion_tokens")
_NOTHING: frozenset[str] = frozenset()
#: Of an error's body so many characters are looked at.
_LOOKED_AT = 4000


def repaired(
    failure: Failure, dialect: Dialect, request: ModelRequest, sent: Mapping[str, Any], body: bytes
) -> Failure:
    """Return a refused request's failure as one that a change
    of the request may repair, where its words say so.
    """
    words = body[:_LOOKED_AT].decode("utf-8", "replace").lower()
    if any(m.replay for m in request.messages) and dialect.refused_items.search(words):
        return replace(failure, kind=FailureKind.REPLAY)
    lesson = _lesson(dialect, sent, words)
    if lesson == "tools":
        fix = (
            f"it takes no tools over the {dialect.what}: set another api for it in [models], as responses or messages, "
            'or tools = "text" for its provider'
        )
        message = f"{failure.message} ({fix})"
        return replace(failure, kind=FailureKind.UNFIT, of_model=True, message=message)
    if not lesson or lesson in request.spared:
        return failure
    return replace(failure, kind=FailureKind.SPARED, refuses=lesson)


def unspoken(setup: ModelSetup, dialect: Dialect) -> frozenset[str]:
    """Return as a lesson what is asked of a model in a word that its dialect does not have."""
    if not setup.effort or setup.effort in dialect.efforts:
        return _NOTHING
    return frozenset({f"effort:{setup.effort}"})


def without(body: dict[str, Any], spared: frozenset[str]) -> dict[str, Any]:
    """Return a request's body without what its model refuses."""
    for lesson in spared:
        what, _, path = lesson.partition(":")
        if what != "field":
            continue
        outer, _, inner = path.partition(".")
        within = body.get(outer)
        if inner and isinstance(within, dict) and within.keys() - {inner}:
            body = body | {outer: {k: v for k, v in within.items() if k != inner}}
        elif not inner or (isinstance(within, dict) and inner in within):
            body = {k: v for k, v in body.items() if k != outer}
    return body


def _lesson(dialect: Dialect, sent: Mapping[str, Any], words: str) -> str:
    """Return what an error teaches of a model; empty: nothing that could be spared."""
    if "tools" in sent and _NO_TOOLS.search(words):
        alone = "reasoning_effort" in words and re.search(r"\bto .{0,3}none\b", words)
        return "effort with tools" if alone and sent.get("reasoning_effort") != "none" else "tools"
    if not _REFUSED.search(words):
        return ""
    named = [limit for limit in LIMITS if re.search(rf"\b{limit}\b", words) and limit in sent]
    if named and all(limit in words for limit in LIMITS):
        return f"name:{named[0]}"
    for name in sorted(dialect.sparable, key=len, reverse=True):
        path = dialect.sparable[name]
        if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", words) and _has(sent, path):
            return _of_effort(path, sent, words) or f"field:{path}"
    return ""


def _has(sent: Mapping[str, Any], path: str) -> bool:
    outer, _, inner = path.partition(".")
    within = sent.get(outer)
    return outer in sent and (not inner or (isinstance(within, Mapping) and inner in within))


def _of_effort(path: str, sent: Mapping[str, Any], words: str) -> str:
    """Return that a model lacks this one effort, where it has others."""
    if path == "thinking":
        return "effort:none" if sent["thinking"] == {"type": "disabled"} else ""
    if path not in _EFFORTS or _FIELD.search(words):
        return ""
    outer = sent.get(path.partition(".")[0])
    effort = outer.get("effort") if isinstance(outer, Mapping) else outer
    return f"effort:{effort}" if isinstance(effort, str) else ""
