"""The body of Anthropic's Messages: its fields, and its blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

from batchd import decoders, tokens
from standin.opaque import Seal
from standin.simulated_request import InvalidRequestError, joined, weigh


class _Strict(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    pass


class CacheBreakpoint(_Strict):
    """A breakpoint of the cache."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class TextBlock(_Strict, tag="text"):
    """What is said."""

    text: str
    cache_control: CacheBreakpoint | None = None
    citations: list[Any] | None = None

    def weight(self) -> int:
        """Return its tokens."""
        return weigh(self.text)


class ImageBlock(_Strict, tag="image"):
    """A picture."""

    source: dict[str, Any]
    cache_control: CacheBreakpoint | None = None
    text: ClassVar[str] = ""

    def weight(self) -> int:
        """Return its tokens."""
        return 1000


class ToolUseBlock(_Strict, tag="tool_use"):
    """A call."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheBreakpoint | None = None
    caller: dict[str, Any] | None = None

    def weight(self) -> int:
        """Return its tokens."""
        return (
            weigh(self.name)
            + weigh(msgspec.json.encode(self.input).decode())
            + tokens.TOOL_CALL_TOKENS
        )


class ToolResultBlock(_Strict, tag="tool_result"):
    """What a call brought."""

    tool_use_id: str
    content: str | list[TextBlock | ImageBlock] = ""
    is_error: bool | None = None
    cache_control: CacheBreakpoint | None = None

    @property
    def text(self) -> str:
        """What the tool said."""
        return joined(self.content)

    def weight(self) -> int:
        """Return its tokens."""
        return tokens.MESSAGE_TOKENS + weigh(self.text)


class ThinkingBlock(_Strict, tag="thinking"):
    """What was thought, signed."""

    thinking: str
    signature: str


class RedactedBlock(_Strict, tag="redacted_thinking"):
    """What was thought, and is not shown."""

    data: str


Block = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedBlock


class MessagesTurn(_Strict):
    """A turn."""

    role: Literal["user", "assistant", "system"]
    #: As it came: its bytes name it in the prompt cache.
    content: str | list[msgspec.Raw]


class MessagesTool(_Strict):
    """A tool that is offered."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool = False
    cache_control: CacheBreakpoint | None = None
    defer_loading: bool = False
    eager_input_streaming: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[dict[str, Any]] | None = None

    def weight(self) -> int:
        """Return its tokens."""
        said = (self.name, self.description, self.input_schema)
        return weigh(msgspec.json.encode(said).decode())


class ThinkingConfig(_Strict):
    """How it is to think."""

    type: Literal["adaptive", "enabled", "disabled", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(_Strict):
    """The schema that the answer is held to."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(_Strict):
    """What the answer is to be like."""

    effort: str | None = None
    format: OutputFormat | None = None


class ToolChoice(_Strict):
    """Which tool is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class MessagesBody(_Strict):
    """A request."""

    model: str
    max_tokens: int
    messages: list[MessagesTurn]
    system: str | list[TextBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheBreakpoint | None = None
    stop_sequences: list[str] | None = None
    metadata: dict[str, str | None] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard", "fast"] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class ScriptedTurn:
    """A message, as the scripts see it."""

    role: str
    blocks: Sequence[Block]

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(b.text for b in self.blocks if isinstance(b, TextBlock))


@dataclass(frozen=True, slots=True)
class SignedThinking:
    """A thinking block that is good."""

    seal: Seal

    def weight(self) -> int:
        """Return its tokens."""
        return self.seal.tokens


@dataclass(frozen=True, slots=True)
class MessageHead:
    """What stands before the blocks of a message."""

    def weight(self) -> int:
        """Return its tokens."""
        return tokens.MESSAGE_TOKENS


Segment = (
    MessagesTool
    | TextBlock
    | ImageBlock
    | ToolUseBlock
    | ToolResultBlock
    | SignedThinking
    | MessageHead
)


@dataclass(frozen=True, slots=True)
class MessagesPrompt:
    """The prompt of a request, as the model sees it: tools, system, messages."""

    turns: Sequence[ScriptedTurn]
    segments: Sequence[Segment]
    raws: Sequence[bytes]
    #: The segments that end with a breakpoint, and for how long that is to be kept.
    breakpoints: Sequence[tuple[int, str]]
    #: The hash of all that was sent.
    prefix: str
    opaque: int
    removed: int


_BODY = decoders.decoder(MessagesBody)
_BLOCK: msgspec.json.Decoder[Block] = decoders.decoder(Block)
_FIELD = re.compile(r"unknown field `([^`]*)`|missing required field `([^`]*)`")
_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_INDEX = re.compile(r"\[(\d+|\.\.\.)\]")


def body(data: bytes) -> MessagesBody:
    """Return the body of a request. Raises ``InvalidRequestError``."""
    try:
        return _BODY.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise _unreadable(exc) from exc


def block(raw: bytes, place: str) -> Block:
    """Return a block of a message. Raises ``InvalidRequestError``."""
    try:
        return _BLOCK.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise _unreadable(exc, place) from exc


def _unreadable(wrong: Exception, place: str = "") -> InvalidRequestError:
    said = str(wrong)
    at = ".".join(p for p in (place, *_PLACE.findall(said)) if p)
    at = _INDEX.sub(r".\1", at)
    if (found := _FIELD.search(said)) is None:
        return InvalidRequestError(said.partition(" - at ")[0], at or None)
    param = ".".join(p for p in (at, found[1] or found[2]) if p)
    text = "Extra inputs are not permitted" if found[1] else "Field required"
    return InvalidRequestError(text, param)


def given(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object: a whole answer can hold nothing else."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
