"""Chat completions, as OpenAI began them and many others speak them."""

from __future__ import annotations

from typing import Any

import msgspec

from batchd import decoders, tokens
from standin import families
from standin.dialects import completions, openai
from standin.dialects.openai import error, headers, invalid, key, models, refusal
from standin.families import Family
from standin.simulated_request import (
    CacheRules,
    Caller,
    InvalidRequestError,
    SimulatedRequest,
    prompt_of,
    purpose,
    weigh,
)

__all__ = ["error", "headers", "invalid", "key", "models", "name", "nothing", "parse", "refusal"]
name = "chat"
#: What a provider answers that has nothing to say.
nothing = b'{"id": "none", "object": "chat.completion", "choices": []}'
#: What OpenAI knows.
_FIELDS = frozenset(
    [
        *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
        *("max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model"),
        *("moderation", "n", "parallel_tool_calls", "prediction", "presence_penalty"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("reasoning_effort", "response_format", "safety_identifier", "seed", "service_tier"),
        *("stop", "store", "temperature", "tool_choice", "tools"),
        *("top_logprobs", "top_p", "user", "verbosity", "web_search_options"),
    ]
)


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

    @property
    def thoughtless(self) -> bool:
        """Whether it has calls, and not the thinking behind them."""
        return bool(self.tool_calls) and self.reasoning_content is None

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
    temperature: float | None = None
    top_p: float | None = None
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
        _check_fields(data)
        _check_model(family, body, native=bool(tools))
    tier = openai.tier(family or families.RESPONSES, body.service_tier)
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
        tier=tier,
        cache=_cache(family, body, caller) if family is not None else None,
        account=caller.account,
        writer=completions.WRITER,
    )


def _check_fields(data: bytes) -> None:
    """Hold a request to the fields that there are. Others who speak this dialect have more."""
    for field in decoders.decode(data, dict[str, msgspec.Raw]):
        if field not in _FIELDS:
            raise InvalidRequestError(f"Unrecognized request argument supplied: {field}")


def _check_model(family: Family, body: _Body, *, native: bool) -> None:
    """Hold a request to what its model takes."""
    sampling = {"temperature": body.temperature, "top_p": body.top_p}
    effort = body.reasoning_effort
    if (
        native
        and family.chat_tools != "ever"
        and (family.chat_tools, effort) != ("unthinking", "none")
    ):
        way_out = "" if family.chat_tools == "never" else " or set reasoning_effort to 'none'"
        raise InvalidRequestError(
            f"Function tools with reasoning_effort are not supported for {family.name} in "
            f"/v1/chat/completions. Please use /v1/responses instead{way_out}.",
            "reasoning_effort",
        )
    openai.check_model(family, body.model, effort, sampling, "reasoning_effort")
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
    marks = ((len(body.messages) - 1, 1800),) if family.vendor == "openai" else ()
    return CacheRules(
        scope=(caller.account, body.model, body.prompt_cache_key),
        breakpoints=marks,
        minimum=family.cache_minimum,
        billed=family.writes,
    )


def _check(messages: tuple[ChatMessage, ...]) -> None:
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
