"""Models: what is sent to them, what they answer, how they fail."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from batchd import masking
from batchd.records.money import STANDARD, Price, Tier, Usage


def valid(text: str) -> str:
    """Return ``text`` as valid Unicode: surrogate pairs joined, lone surrogates replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def valid_throughout(value: Any) -> Any:
    """Return a JSON value with every string in it made ``valid``. Raises ``RecursionError``."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, dict):
        return {valid(k): valid_throughout(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [valid_throughout(v) for v in value]
    return value


def line(text: str, limit: int = 300) -> str:
    """Return ``text`` as one line of at most ``limit`` characters, for people."""
    one = " ".join(c for c in text.split() if c)
    one = "".join(c if c.isprintable() else "�" for c in one)
    return one if len(one) <= limit else one[: limit - 1] + "…"


#: What a rate limit counts.
Metered: TypeAlias = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """One limit, as the headers of an answer give it. Never stored."""

    of: Metered
    limit: float
    #: What may still go at once.
    remaining: float
    #: Seconds until all of it is there again.
    reset_s: float
    #: Whether it is there again all at once, not bit by bit.
    window: bool = False
    #: Whether what is read from the provider's cache uses none of it up.
    spares_cache: bool = False


#: The dialects, as the configuration names them; ``llm.model_client`` has a row for each.
Api: TypeAlias = Literal["chat", "responses", "messages"]
APIS: tuple[Api, ...] = get_args(Api)
#: Where each sends its requests below ``base_url``.
PATHS: Mapping[Api, str] = {
    "chat": "chat/completions",
    "responses": "responses",
    "messages": "messages",
}
#: Characters of a refusal that an error shows.
_SHOWN = 500
#: How much a model is to think, from least to most.
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
#: What is asked for; empty: as somebody else says, in the end the provider.
AskedEffort: TypeAlias = Literal["", Effort]
#: Who speaks in a conversation.
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
#: Why an answer ends, whatever its provider calls that.
FinishReason: TypeAlias = Literal["stop", "tool_calls", "length", "content_filter"]
#: How a model's tools are called: by its API, in its text, or as its answers show.
ToolProtocol: TypeAlias = Literal["auto", "native", "text"]
#: The tools that there are.
ToolName: TypeAlias = Literal["shell", "read_file", "write_file", "edit_file"]
#: How a judge is bound to its JSON.
JsonMode: TypeAlias = Literal["json_schema", "json_object", "none"]


class Purpose(enum.StrEnum):
    """The purpose of a model call."""

    AGENT = "agent"
    JUDGE = "judge"
    COMPACTION = "compaction"


class ToolCall(Struct, frozen=True):
    """A tool call as the model wrote it."""

    id: str
    name: str
    #: JSON text; may be malformed, or cut off.
    arguments: str

    def given(self) -> Any:
        """Return the arguments as a value whose every text can be sent and stored.

        Raises ``ValueError`` or ``RecursionError`` where they are no JSON.
        """
        try:
            # Ten times as fast, and so strict that what it takes is in order.
            return msgspec.json.decode(self.arguments or "{}")
        except (msgspec.DecodeError, UnicodeEncodeError):
            return valid_throughout(json.loads(self.arguments, strict=False))

    @property
    def fields(self) -> Mapping[str, Any]:
        """The arguments by name; none where they are no object, or cannot be read."""
        try:
            given = self.given()
        except (ValueError, RecursionError):
            return {}
        return given if isinstance(given, dict) else {}


class Tool(Struct, frozen=True):
    """A tool that a model may call, in no dialect's own form."""

    name: str
    description: str
    #: The JSON Schema of its arguments.
    parameters: Mapping[str, Any]


class Replay(Struct, frozen=True, kw_only=True):
    """An answer as the items it came in, byte for byte:
    they go back to who made them, and to no other.
    """

    #: The dialect that they are written in.
    api: Api
    provider: str
    #: The model's name at the provider.
    model: str
    #: The account as the provider names it, never a key; empty: it names none.
    account: str = ""
    #: The server's host and port.
    host: str = ""
    items: tuple[msgspec.Raw, ...] = ()
    #: The tokens of thinking in them, which no text of theirs shows.
    thinking_tokens: int = 0

    @property
    def size(self) -> int:
        """How long the items are, in bytes."""
        return sum(map(len, self.items))


class Message(Struct, frozen=True):
    """One message of a conversation, in no dialect's own form."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    #: For the role ``tool``: the call that this answers;
    #: None under the text protocol, which sends it as ``user``.
    tool_call_id: str | None = None
    #: The thinking that goes back to the provider with it; None: none does.
    reasoning: str | None = None
    #: The items that it came in, of a model's own message.
    replay: Replay | None = None

    @property
    def length(self) -> int:
        """The characters of its texts."""
        calls = sum(len(call.arguments) for call in self.tool_calls)
        return len(self.content) + len(self.reasoning or "") + calls


class Answer(Struct, frozen=True, kw_only=True):
    """The answer of a model to one call."""

    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    #: The model's visible thinking, where the provider sends it.
    reasoning: str = ""
    #: Whether it came as ``reasoning_content``, and goes back as that:
    #: DeepSeek and others refuse tool calls without it.
    reasoning_back: bool = False
    usage: Usage = msgspec.field(default_factory=Usage)
    #: The model that the provider says it used.
    model: str = ""
    #: From the request to the last byte.
    seconds: float = 0.0
    #: The service tier that the provider says served it, in its own word; empty: it does not say.
    service_tier: str = ""
    #: What the provider says that it cost, in dollars; None: it does not say.
    stated_usd: float | None = None
    #: The items that it came in, where its dialect takes them back;
    #: None too where a secret was found in it.
    replay: Replay | None = None
    #: Whether a secret was found in it, and masked.
    masked: bool = False
    #: The provider's or the model's words where it refused to answer.
    refusal: str = ""
    #: Whether the window, not the output limit, cut it off.
    window_full: bool = False
    #: Why the provider left out items that were sent back, one reason each.
    removed: tuple[str, ...] = ()

    @property
    def refusal_line(self) -> str:
        """Its words where it refused, in one line for people."""
        words = " ".join(self.refusal.split())
        return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}…"


class FailureKind(enum.StrEnum):
    """The kind of a failure, as far as one call can show."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    BAD_ANSWER = "bad_answer"
    AUTH = "auth"
    QUOTA = "quota"
    FORBIDDEN = "forbidden"
    BAD_REQUEST = "bad_request"
    CONTENT_FILTER = "content_filter"
    CONTEXT_OVERFLOW = "context_overflow"
    #: Items of earlier answers were refused: without them it may work.
    REPLAY = "replay"
    #: A part of the request that can be spared was refused: without it it may work.
    SPARED = "spared"
    #: No task could use it as it is set up:
    #: the model takes no tools, or its address speaks another dialect.
    UNFIT = "unfit"

    @property
    def repairable(self) -> bool:
        """Whether the request is sent again at once, changed:
        neither its provider nor its model is at fault.
        """
        return self in {FailureKind.REPLAY, FailureKind.SPARED}

    @property
    def unsettled(self) -> bool:
        """Whether the provider may have done, and billed, the work all the same."""
        return self in {FailureKind.TIMEOUT, FailureKind.CONNECTION, FailureKind.BAD_ANSWER}


class Failure(Struct, frozen=True, kw_only=True):
    """A model call that brought no answer."""

    kind: FailureKind
    #: One line for people, without secrets.
    message: str
    http_status: int | None = None
    #: What the provider asked us to wait, if it did.
    retry_after_s: float | None = None
    #: Its rate limit headers, lower-case names.
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Whether the request may have reached the provider.
    sent: bool = True
    #: The model's window in tokens, where an overflow's message names it; else 0.
    window: int = 0
    #: Whether the provider's words name the model: what they say need not hold for its others.
    of_model: bool = False
    #: What the model refuses, in the words of ``llm.dialect``.
    refuses: str = ""

    @property
    def unsettled(self) -> bool:
        """Whether the provider may have done, and billed, the work all the same."""
        # With status 200 an answer had begun: the provider broke off while it was at work.
        # What did not fit never was.
        begun = self.http_status == HTTPStatus.OK and self.kind is not FailureKind.CONTEXT_OVERFLOW
        return self.sent and (self.kind.unsettled or begun)


class ModelSetup(Struct, frozen=True, kw_only=True):
    """The setup of a model: how it is called; frozen into the journal when a task starts."""

    #: ``provider/model``.
    name: str
    #: None: no price is known.
    price: Price | None = None
    #: Tokens that fit into its window; 0 if unknown.
    context_window: int = 0
    tools: ToolProtocol = "auto"
    #: The request field that carries the limit on output tokens.
    output_limit_field: str = "max_completion_tokens"
    json_mode: JsonMode = "json_schema"
    #: Sent along in every request body, over our own fields.
    extra_body: Mapping[str, Any] = msgspec.field(default_factory=dict)
    #: The dialect that it is spoken to in; that of the oldest journals is chat.
    api: Api = "chat"
    #: How much it is to think; empty: as its provider sees fit.
    effort: AskedEffort = ""
    #: What else its calls ask for, by the names of ``options.OPTIONS``.
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)
    #: The service tier that its calls ask for.
    service_tier: Tier = STANDARD
    #: After how many seconds without room in that tier a call goes
    #: on in the standard one; None: never.
    tier_fallback_s: float | None = None

    @property
    def tier_price(self) -> Price | None:
        """The price under its tier; None: none is known."""
        return self.price and self.price.at(self.service_tier)

    @property
    def provider(self) -> str:
        """The provider's name in the configuration."""
        return self.name.partition("/")[0]

    @property
    def model(self) -> str:
        """The model's name at the provider."""
        return self.name.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The address of a provider. Never stored, never logged."""

    #: Without a query: it may be shown.
    base_url: str
    #: What follows the path of every address: ``api-version=7``, or a key.
    query: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Of ``extra_body``, what holds secrets; the rest stands in ``ModelSetup``.
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    max_concurrent: int = 32

    def address(self, path: str) -> str:
        """Return the address of something below the base URL. Not to be shown."""
        address = f"{self.base_url.rstrip('/')}/{path}"
        return f"{address}?{self.query}" if self.query else address

    def secrets(self) -> Iterator[str]:
        """Yield all that only the provider may see."""
        yield self.api_key
        yield from masking.named(dict(parse_qsl(self.query)))
        yield from masking.named(self.body)
        for name, value in self.headers.items():
            if masking.names_secret(name) or masking.looks(value):
                yield value
                yield from value.split()[1:]  # behind `Bearer`
