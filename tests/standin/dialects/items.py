"""The items of OpenAI's Responses: what may be sent, in which order,
and whose sealed thinking is still good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

from batchd import decoders, tokens
from standin import opaque
from standin.dialects.openai import unreadable
from standin.opaque import Seal
from standin.simulated_request import InvalidRequestError, joined, weigh

_Status = Literal["in_progress", "completed", "incomplete"] | None


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Breakpoint(_Strict):
    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] = "30m"


class _Input(_Strict, tag="input_text"):
    text: str
    prompt_cache_breakpoint: _Breakpoint | None = None


class _Image(_Strict, tag="input_image"):
    detail: str
    image_url: str | None = None
    file_id: str | None = None
    text: ClassVar[str] = ""


class OutputText(_Strict, tag="output_text"):
    """What was said."""

    text: str
    annotations: list[Any]
    logprobs: list[Any] | None = None


class RefusalText(_Strict, tag="refusal"):
    """What was said instead of an answer."""

    refusal: str

    @property
    def text(self) -> str:
        """What it says."""
        return self.refusal


_Part = _Input | _Image | OutputText | RefusalText


class MessageItem(_Strict):
    """A message."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_Part]
    type: Literal["message"] = "message"
    id: str | None = None
    status: _Status = None
    phase: Literal["commentary", "final_answer"] | None = None

    @property
    def text(self) -> str:
        """Its parts, joined."""
        return joined(self.content)

    def weight(self) -> int:
        """Return its tokens."""
        return tokens.MESSAGE_TOKENS + weigh(self.text)


class _Plain(_Strict):
    text: str
    type: Literal["summary_text", "reasoning_text"]


class ReasoningItem(_Strict):
    """What was thought, sealed."""

    id: str
    summary: list[_Plain]
    type: Literal["reasoning"]
    encrypted_content: str | None = None
    content: list[_Plain] | None = None
    status: _Status = None


class FunctionCallItem(_Strict):
    """A call."""

    call_id: str
    name: str
    arguments: str
    type: Literal["function_call"]
    id: str | None = None
    status: _Status = None
    caller: dict[str, str] | None = None
    namespace: str | None = None
    role: ClassVar[str] = "assistant"
    text: ClassVar[str] = ""

    def weight(self) -> int:
        """Return its tokens."""
        return weigh(self.name) + weigh(self.arguments) + tokens.TOOL_CALL_TOKENS


class FunctionOutputItem(_Strict):
    """What a call brought."""

    call_id: str
    output: str | list[_Input | _Image]
    type: Literal["function_call_output"]
    id: str | None = None
    status: _Status = None
    caller: dict[str, str] | None = None
    name: str | None = None
    namespace: str | None = None
    role: ClassVar[str] = "tool"

    @property
    def text(self) -> str:
        """What the tool said."""
        return joined(self.output)

    def weight(self) -> int:
        """Return its tokens."""
        return tokens.MESSAGE_TOKENS + weigh(self.text)


class MoreTools(_Strict):
    """Tools that are offered from here on: they break no prefix."""

    type: Literal["additional_tools"]
    role: Literal["developer"]
    tools: list[dict[str, Any]]
    id: str | None = None
    text: ClassVar[str] = ""

    def weight(self) -> int:
        """Return its tokens."""
        return weigh(msgspec.json.encode(self.tools).decode())


class Update(_Strict):
    """Another effort from here on: it breaks no prefix."""

    type: Literal["configuration_update"]
    reasoning: dict[str, Any]
    id: str | None = None
    role: ClassVar[str] = "developer"
    text: ClassVar[str] = ""

    def weight(self) -> int:
        """Return its tokens."""
        return tokens.MESSAGE_TOKENS


@dataclass(frozen=True, slots=True)
class SealedReasoning:
    """A reasoning item that is good."""

    seal: Seal
    role: str = "assistant"
    text: str = ""

    def weight(self) -> int:
        """Return its tokens."""
        return self.seal.tokens


Item = MessageItem | FunctionCallItem | FunctionOutputItem | MoreTools | Update | SealedReasoning


class _Kind(msgspec.Struct):
    type: str = "message"


_KIND = decoders.decoder(_Kind).decode
_DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "message": decoders.decoder(MessageItem).decode,
    "reasoning": decoders.decoder(ReasoningItem).decode,
    "function_call": decoders.decoder(FunctionCallItem).decode,
    "function_call_output": decoders.decoder(FunctionOutputItem).decode,
    "additional_tools": decoders.decoder(MoreTools).decode,
    "configuration_update": decoders.decoder(Update).decode,
}


def decoded(raw: bytes, place: str) -> Any:
    """Return an item from its bytes. Raises ``InvalidRequestError``."""
    try:
        kind = _KIND(raw).type
        if kind not in _DECODERS:
            known = ", ".join(f"'{k}'" for k in _DECODERS)
            raise InvalidRequestError(
                f"Invalid value: '{kind}'. Supported values are: {known}.",
                f"{place}.type",
                "invalid_value",
            )
        item = _DECODERS[kind](raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise unreadable(exc, place) from exc
    if isinstance(item, MessageItem) and not isinstance(item.content, str):
        of_model = item.role == "assistant"
        for i, part in enumerate(item.content):
            if of_model != isinstance(part, OutputText | RefusalText):
                fits = (
                    "'output_text' and 'refusal'" if of_model else "'input_text' and 'input_image'"
                )
                raise InvalidRequestError(
                    f"Invalid value: '{part.__struct_config__.tag}'. Supported values are: {fits}.",
                    f"{place}.content[{i}]",
                    "invalid_value",
                )
    return item


def breakpoints(item: object) -> list[str]:
    """Return for how long what ends with an item is to be kept in the cache:
    once for each breakpoint.
    """
    parts = getattr(item, "content", None) or getattr(item, "output", None)
    if not isinstance(parts, list):
        return []
    marks = [getattr(part, "prompt_cache_breakpoint", None) for part in parts]
    return [mark.ttl for mark in marks if mark is not None]


def stem(item_id: str) -> str:
    """Return what the ids of an answer's items share."""
    return item_id.partition("_")[2].partition(".")[0]


def thinks(item_id: str) -> bool:
    """Return whether there was reasoning in the answer that an item is of."""
    return stem(item_id).endswith("t")


def beside(item_id: str, summary: Sequence[str]) -> str:
    """Return the hash of what stands beside an encrypted content."""
    return opaque.digest(item_id.encode(), *(text.encode() for text in summary))
