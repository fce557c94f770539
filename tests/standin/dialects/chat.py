"""Chat completions, as OpenAI began them and many others speak them."""

from __future__ import annotations

from typing import Any

import msgspec

from batchd import decoders, tokens
from batchd.records import Answer, Usage
from standin import families, faults
from standin.dialects import openai
from standin.dialects.openai import error, headers, invalid, key, models
from standin.families import Family
from standin.simulated_request import (
    Bill,
    CacheRules,
    Caller,
    Heading,
    InvalidRequestError,
    SimulatedRequest,
    end,
    escaped,
    prompt_of,
    purpose,
    weigh,
)

__all__ = ["error", "headers", "invalid", "key", "models", "name", "nothing", "parse", "words"]
name = "chat"
words = faults.CHAT
#: What a provider answers that has nothing to say.
nothing = b'{"id": "none", "object": "chat.completion", "choices": []}'
_encode = msgspec.json.Encoder().encode


class ChatFunction(msgspec.Struct):
    """The inside of a tool call."""

    name: str
    arguments: str


class ChatToolCall(msgspec.Struct):
    """A tool call in a message."""

    id: str
    function: ChatFunction
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """One message of a request."""

    role: str
    content: str | list[Any] | None = None
    tool_calls: list[ChatToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content, its text parts joined."""
        if isinstance(self.content, list):
            parts = (p.get("text") for p in self.content if isinstance(p, dict))
            return "".join(p for p in parts if isinstance(p, str))
        return self.content or ""

    def weight(self) -> int:
        """Return its tokens."""
        said = tokens.MESSAGE_TOKENS + weigh(self.text) + weigh(self.reasoning_content or "")
        for call in self.tool_calls or ():
            said += weigh(call.function.name) + weigh(call.function.arguments)
            said += tokens.TOOL_CALL_TOKENS
        return said


class _Body(msgspec.Struct):
    model: str
    #: As they came: their bytes name them in the prompt cache.
    messages: list[msgspec.Raw]
    tools: msgspec.Raw = msgspec.Raw()
    reasoning_effort: str | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    response_format: msgspec.Raw = msgspec.Raw()
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


_BODY = decoders.decoder(_Body)
_MESSAGE = decoders.decoder(ChatMessage)


def parse(data: bytes, caller: Caller) -> SimulatedRequest:
    """Return the request in a body.

    Raises ``InvalidRequestError`` where a provider would refuse it.
    """
    try:
        body = _BODY.decode(data)
        messages = tuple(map(_MESSAGE.decode, body.messages))
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidRequestError(f"We could not parse the body of your request: {exc}") from exc
    if not messages:
        raise InvalidRequestError("[] is too short - 'messages'", "messages", "empty_array")
    _check(messages)
    tools = bytes(body.tools)
    if tools in {b"null", b"[]"}:
        tools = b""
    family = families.of(body.model)
    if family is not None and family.vendor == "openai":
        _check_model(family, body, native=bool(tools))
    bound = b'"json_schema"' in bytes(body.response_format)
    return SimulatedRequest(
        model=body.model,
        family=family,
        turns=messages,
        segments=messages,
        raws=body.messages,
        first_user=prompt_of(next((m.text for m in messages if m.role == "user"), "")),
        purpose=purpose(messages, native=bool(tools), bound=bound),
        turn=sum(m.role == "assistant" for m in messages),
        schemas=tools,
        native=bool(tools),
        stop=body.stop,
        max_output=body.max_completion_tokens or body.max_tokens or 0,
        tier=openai.tier(body.service_tier),
        cache=_cache(family, body, caller) if family is not None else None,
        thoughtless=any(m.tool_calls and m.reasoning_content is None for m in messages),
        account=caller.account,
        writer=WRITER,
    )


def _check_model(family: Family, body: _Body, *, native: bool) -> None:
    """Hold a request to what its model takes."""
    if native and not family.chat_tools:
        raise InvalidRequestError(
            f"Function tools with reasoning_effort are not supported for {body.model} in "
            "/v1/chat/completions. Please use /v1/responses instead.",
            "reasoning_effort",
        )
    openai.check_effort(family, body.reasoning_effort, "reasoning_effort")
    if body.max_tokens is not None:
        raise InvalidRequestError(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        )


def _cache(family: Family, body: _Body, caller: Caller) -> CacheRules:
    """Return how OpenAI caches: up to the end of what is sent.

    Claude's models cache nothing here.
    """
    return CacheRules(
        scope=(caller.account, body.model, body.prompt_cache_key),
        breakpoints=(len(body.messages) - 1,) if family.vendor == "openai" else (),
        minimum=family.cache_minimum,
        billed=family.writes,
    )


def _check(messages: tuple[ChatMessage, ...]) -> None:
    """Hold a conversation to the rules that providers hold it to."""
    waiting: set[str] = set()
    for i, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                raise InvalidRequestError(
                    "Invalid parameter: messages with role 'tool' must be a response to a "
                    "preceding message with 'tool_calls'.",
                    f"messages.[{i}].role",
                )
            waiting.discard(message.tool_call_id)
            continue
        if waiting:
            raise _missing(waiting)
        if message.tool_calls:
            waiting = {call.id for call in message.tool_calls}
        elif message.content is None:
            wrong = "Invalid value for 'content': expected a string, got null."
            raise InvalidRequestError(wrong, f"messages.[{i}].content")
    if waiting:
        raise _missing(waiting)


def _missing(ids: set[str]) -> InvalidRequestError:
    return InvalidRequestError(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
        "'tool_call_id'. The following tool_call_ids did not have response messages: "
        + ", ".join(sorted(ids)),
        "messages",
    )


class _Writer:
    """Writes answers."""

    @staticmethod
    def whole(heading: Heading, answer: Answer, bill: Bill | None) -> bytes:
        """Return an answer as one JSON body."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if answer.tool_calls and not answer.content else answer.content,
        }
        refused = end(answer) == "refusal"
        if refused:
            message |= {"content": None, "refusal": answer.content}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.tool_calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            # There is no word for it.
            "finish_reason": "stop" if refused else end(answer),
        }
        body = {
            "id": f"chatcmpl-{heading.id}",
            "object": "chat.completion",
            "created": heading.created,
            "model": heading.model,
            "choices": [choice],
        }
        if bill is not None:
            body["usage"] = _usage(bill.usage)
            body["service_tier"] = bill.tier
        return escaped(_encode(body))

    @staticmethod
    def failed(_: Heading) -> bytes:
        """Return what comes with status 200 and is an error, as OpenRouter sends it."""
        return openai.error(faults.CHAT["error-200"])


WRITER = _Writer()


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
