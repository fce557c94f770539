"""Chat completions as they travel: what a request says, and answers and errors as bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from batchd.records import Answer, Purpose, Usage

#: Stands in scripts for a lone surrogate, which Python's encoders refuse to write.
LONE_SURROGATE = "\U0010fffd"
_LONE = LONE_SURROGATE.encode()
#: How batchd's compaction prompt ends; it has no other mark.
_SUMMARY = "Answer with the summary only."
_PIECES = re.compile(r"\s*(?:\S+\s*){1,4}|\s+")


class Function(msgspec.Struct):
    """The inside of a tool call."""

    name: str
    arguments: str


class Call(msgspec.Struct):
    """A tool call in a message."""

    id: str
    function: Function
    type: str = "function"


class Message(msgspec.Struct):
    """One message of a request."""

    role: str
    content: str | list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content, its text parts joined."""
        if isinstance(self.content, list):
            parts = (p.get("text") for p in self.content if isinstance(p, dict))
            return "".join(p for p in parts if isinstance(p, str))
        return self.content or ""


class StreamOptions(msgspec.Struct):
    """The part of a request that asks for usage at the end of a stream."""

    include_usage: bool = False


class _Body(msgspec.Struct):
    model: str
    #: As they came: their bytes name them in the prompt cache.
    messages: list[msgspec.Raw]
    tools: msgspec.Raw = msgspec.Raw()
    response_format: msgspec.Raw = msgspec.Raw()
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def max_output(self) -> int:
        """The tokens of output that it asks for; 0 where it sets no limit."""
        return self.max_completion_tokens or self.max_tokens or 0


_BODY = msgspec.json.Decoder(_Body)
_MESSAGE = msgspec.json.Decoder(Message)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is in order."""

    body: _Body
    messages: tuple[Message, ...]
    #: The text of its first user message: what tells conversations apart.
    first_user: str
    purpose: Purpose
    #: How many answers it holds already.
    turn: int
    #: The schemas of the tools that it offers; empty where it offers none.
    tools: bytes

    @property
    def asks_usage(self) -> bool:
        """Whether usage is to go with the answer: in a stream it must be asked for."""
        options = self.body.stream_options
        return not self.body.stream or (options is not None and options.include_usage)


class InvalidRequestError(Exception):
    """A request that a provider refuses with status 400."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def parse(data: bytes) -> Request:
    """Return the request in a body. Raises ``InvalidRequestError`` where a provider would refuse it."""
    try:
        body = _BODY.decode(data)
        messages = tuple(map(_MESSAGE.decode, body.messages))
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"We could not parse the body of your request: {exc}") from exc
    if not messages:
        raise InvalidRequestError("[] is too short - 'messages'", "messages", "empty_array")
    _check(messages)
    first = next((m.text for m in messages if m.role == "user"), "")
    turn = sum(m.role == "assistant" for m in messages)
    tools = bytes(body.tools)
    if tools in {b"null", b"[]"}:
        tools = b""
    purpose = _purpose(messages, tools, bytes(body.response_format))
    return Request(body, messages, first, purpose, turn, tools)


def _purpose(messages: tuple[Message, ...], tools: bytes, response_format: bytes) -> Purpose:
    if not tools:
        judged = messages[0].role == "system" and messages[0].text.startswith("You judge")
        if judged or b'"json_schema"' in response_format:
            return Purpose.JUDGE
    if messages[-1].role == "user" and messages[-1].text.endswith(_SUMMARY):
        return Purpose.COMPACTION
    return Purpose.AGENT


def _check(messages: tuple[Message, ...]) -> None:
    """Hold a conversation to the rules that providers hold it to."""
    waiting: set[str] = set()
    for i, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise InvalidRequestError(_STRAY, f"messages.[{i}].role")
            waiting.discard(message.tool_call_id)
            continue
        if waiting:
            raise InvalidRequestError(_missing(waiting), f"messages.[{i}].role")
        if message.tool_calls:
            waiting = {call.id for call in message.tool_calls}
        elif message.content is None:
            wrong = "Invalid value for 'content': expected a string, got null."
            raise InvalidRequestError(wrong, f"messages.[{i}].content")
    if waiting:
        raise InvalidRequestError(_missing(waiting), "messages")


_STRAY = (
    "Invalid parameter: messages with role 'tool' must be a response to a preceding message "
    "with 'tool_calls'."
)


def _missing(ids: set[str]) -> str:
    return (
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
        "'tool_call_id'. The following tool_call_ids did not have response messages: "
        + ", ".join(sorted(ids))
    )


@dataclass(frozen=True, slots=True)
class Heading:
    """What all parts of one answer repeat."""

    id: str
    created: int
    model: str


def completion(heading: Heading, answer: Answer, usage: Usage | None) -> tuple[bytes]:
    """Return an answer as one JSON body, a single piece."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.tool_calls and not answer.content else answer.content,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = _calls(answer)
    body = {
        "id": heading.id,
        "object": "chat.completion",
        "created": heading.created,
        "model": heading.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
    }
    if usage is not None:
        body["usage"] = _usage(usage)
    return (_encode(body).replace(_LONE, b"\\ud83d"),)


def chunks(heading: Heading, answer: Answer, usage: Usage | None) -> Iterator[bytes]:
    """Yield an answer as server-sent events."""
    for delta in _deltas(answer):
        yield _event(heading, {"index": 0, "delta": delta, "finish_reason": None})
    yield _event(heading, {"index": 0, "delta": {}, "finish_reason": answer.finish_reason})
    if usage is not None:
        yield _event(heading, None, usage=_usage(usage))
    yield b"data: [DONE]\n\n"


def _deltas(answer: Answer) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": "" if answer.content else None}
    for piece in _PIECES.findall(answer.reasoning):
        yield {"reasoning_content": piece}
    for piece in _PIECES.findall(answer.content):
        yield {"content": piece}
    for i, call in enumerate(_calls(answer)):
        arguments = call["function"]["arguments"]
        opening = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield {"tool_calls": [{"index": i, **opening}]}
        for piece in _PIECES.findall(arguments):
            yield {"tool_calls": [{"index": i, "function": {"arguments": piece}}]}


def _event(heading: Heading, choice: Mapping[str, Any] | None, **extra: Any) -> bytes:
    body = {
        "id": heading.id,
        "object": "chat.completion.chunk",
        "created": heading.created,
        "model": heading.model,
        "choices": [] if choice is None else [choice],
        **extra,
    }
    return b"data: " + _encode(body).replace(_LONE, b"\\ud83d") + b"\n\n"


def _calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in answer.tool_calls
    ]


def _usage(usage: Usage) -> dict[str, Any]:
    cached = {"cached_tokens": usage.cached_input_tokens}
    if usage.cache_write_tokens:
        cached["cache_write_tokens"] = usage.cache_write_tokens
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": cached,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def error(
    message: str, type_: str, code: str | int | None = None, param: str | None = None
) -> bytes:
    """Return an error body."""
    return _encode({"error": {"message": message, "type": type_, "param": param, "code": code}})
