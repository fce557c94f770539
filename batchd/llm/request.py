"""What is asked of a model, and the body of the HTTP request that asks it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from batchd.records import Message, ModelSetup, ToolCall
from batchd.records.unicode import valid_throughout

_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call: the whole conversation, and what the answer may be."""

    messages: tuple[Message, ...]
    #: Tools in the form of chat completions: name, description and JSON Schema.
    tools: tuple[Mapping[str, Any], ...]
    max_output_tokens: int
    #: The answer ends in front of any of these.
    stop: tuple[str, ...] = ()
    #: A JSON Schema for the answer, sent as far as ``ModelSetup.json_mode`` allows.
    schema: Mapping[str, Any] | None = None
    #: As the provider calls it; None: as the account is set up.
    service_tier: str | None = None


def encode(setup: ModelSetup, request: Request, secret: Mapping[str, Any] = _NOTHING) -> bytes:
    """Return the request's body in JSON.

    ``secret``: fields of the endpoint's own, which are never stored.
    The same messages give the same bytes in every call, so that the provider's prompt cache hits.
    All of it is encoded each time: 10 µs for 14 KB, far below the cost of keeping pieces.
    """
    body = {
        "model": setup.model,
        "messages": [_message(m) for m in _alternating(request.messages)],
        setup.output_limit_field: request.max_output_tokens,
    }
    if request.tools:
        body["tools"] = request.tools
    if request.stop:
        body["stop"] = request.stop
    if request.schema is not None and setup.json_mode != "none":
        body["response_format"] = _response_format(setup.json_mode, request.schema)
    if request.service_tier:
        body["service_tier"] = request.service_tier
    body.update(setup.extra_body)
    body.update(secret)
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        return msgspec.json.encode(valid_throughout(body))


def _response_format(mode: str, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if mode == "json_object":
        return {"type": "json_object"}
    form = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": form}


def _alternating(messages: tuple[Message, ...]) -> Iterator[Message]:
    """Yield ``messages``, those of the user that follow each other as one: strict chat templates refuse two running.

    No request ever ends between two of them, so that this changes nothing of what was sent before.
    """
    before: Message | None = None
    for message in messages:
        if before is not None and _by_user(before) and _by_user(message):
            before = Message("user", f"{before.content}\n\n{message.content}")
            continue
        if before is not None:
            yield before
        before = message
    if before is not None:
        yield before


def _by_user(message: Message) -> bool:
    return message.role == "user" or (message.role == "tool" and message.tool_call_id is None)


def _message(message: Message) -> Mapping[str, Any]:
    if message.role == "assistant":
        return _own_message(message)
    if message.role != "tool":
        return {"role": message.role, "content": message.content}
    if message.tool_call_id is None:
        return {"role": "user", "content": message.content}
    return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}


def _own_message(message: Message) -> Mapping[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        # Some providers refuse an empty text beside tool calls, all take null.
        body["content"] = message.content or None
        body["tool_calls"] = [_call(c) for c in message.tool_calls]
    if message.reasoning is not None:
        body["reasoning_content"] = message.reasoning
    return body


_OBJECT: msgspec.json.Decoder[dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _call(call: ToolCall) -> Mapping[str, Any]:
    arguments = call.arguments
    try:
        _OBJECT.decode(arguments)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        # Some servers answer 400 or 500 to a conversation with broken arguments in it, for ever.
        arguments = msgspec.json.encode({"malformed": valid_throughout(arguments)}).decode()
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
