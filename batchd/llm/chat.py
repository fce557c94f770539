"""Chat completions, and what goes by that name: the dialect that most providers speak."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from batchd import decoders
from batchd.llm.answer import (
    TokenCounts,
    argument_text,
    bounded,
    counted,
    fields,
    named,
    number,
    string,
    unpacked,
)
from batchd.llm.dialect import LIMITS, Dialect, ModelRequest, ModelTarget, alternating, arguments
from batchd.llm.failures import CallPlace, error_in_answer
from batchd.records import (
    EFFORTS,
    PATHS,
    Answer,
    Failure,
    FailureKind,
    FinishReason,
    JsonMode,
    Message,
    ModelSetup,
    ToolCall,
    options,
)

WHAT = "chat completion"
_LENGTH = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_FILTERED = frozenset({"content_filter", "content_filtered", "safety", "sensitive", "refusal"})
#: The provider broke off for reasons of its own (OpenRouter, DeepSeek, Zhipu).
_BROKEN_OFF = frozenset({"error", "insufficient_system_resource", "network_error"})
#: No set: what a server writes there may be no word, and nothing that could be in one.
_TEXT_PARTS = ("text", "output_text", None)
#: Servers without a parser for it leave a model's thinking in front of its answer.
_THINKING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


class CompletionFunction(msgspec.Struct):
    """What a tool call calls."""

    name: Any = None
    #: JSON text, as an exception the object itself.
    arguments: Any = None


class CompletionCall(msgspec.Struct):
    """A tool call."""

    id: Any = None
    function: CompletionFunction | None = None


class CompletionMessage(msgspec.Struct):
    """The answer proper."""

    #: Text, or a list of parts.
    content: str | list[Any] | None = None
    tool_calls: list[CompletionCall] | None = None
    #: DeepSeek, vLLM, llama.cpp.
    reasoning_content: Any = None
    #: OpenRouter, ollama.
    reasoning: Any = None
    refusal: Any = None


class CompletionChoice(msgspec.Struct):
    """One of the answers; only one is ever asked for."""

    message: CompletionMessage | None = None
    finish_reason: Any = None


class Completion(msgspec.Struct):
    """A chat completion, as far as it is used: everything may be missing or null."""

    choices: list[CompletionChoice] | None = None
    #: Counts by their names, or whatever a server takes for them: nothing in it is worth an answer.
    usage: Any = None
    model: Any = None
    #: What served it, where the provider sells tiers.
    service_tier: Any = None
    #: Sent with status 200 by gateways whose own provider failed.
    error: Any = None


_DECODER = decoders.decoder(Completion)


def encode(setup: ModelSetup, _target: ModelTarget, request: ModelRequest) -> dict[str, Any]:
    """Return what asks for a chat completion."""
    limit = setup.output_limit_field
    if f"name:{limit}" in request.spared:
        limit = next(name for name in LIMITS if name != limit)
    body: dict[str, Any] = {
        "model": setup.model,
        "messages": [_message(m) for m in alternating(request.messages)],
        limit: request.max_output_tokens,
    }
    if request.tools:
        body["tools"] = [{"type": "function", "function": tool} for tool in request.tools]
    if request.stop:
        body["stop"] = request.stop
    if request.schema is not None and setup.json_mode != "none":
        body["response_format"] = _response_format(setup.json_mode, request.schema)
    effort = request.effort(setup, EFFORTS)
    if request.tools and "effort with tools" in request.spared:
        effort = "none"
    if effort:
        body["reasoning_effort"] = effort
    if request.service_tier:
        body["service_tier"] = request.service_tier
    return body


def _response_format(mode: JsonMode, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if mode == "json_object":
        return {"type": "json_object"}
    form = {"name": "answer", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": form}


def _message(message: Message) -> Mapping[str, Any]:
    if message.role == "assistant":
        body: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            # Some providers refuse an empty text beside tool calls, all take null.
            body["content"] = message.content or None
            body["tool_calls"] = [_call(c) for c in message.tool_calls]
        if message.reasoning is not None:
            body["reasoning_content"] = message.reasoning
        return body
    if message.role != "tool":
        return {"role": message.role, "content": message.content}
    if message.tool_call_id is None:
        return {"role": "user", "content": message.content}
    return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}


def _call(call: ToolCall) -> Mapping[str, Any]:
    function = {"name": call.name, "arguments": arguments(call)}
    return {"id": call.id, "type": "function", "function": function}


def decode(
    place: CallPlace, _target: ModelTarget, body: bytes, request: ModelRequest, seconds: float
) -> Answer | Failure:
    """Return what a chat completion says. Raises ``UnreadableError``."""
    completion = unpacked(body, _DECODER, WHAT)
    choice = completion.choices[0] if completion.choices else None
    if choice is None or choice.message is None:
        if completion.error:
            return error_in_answer(place, completion.error)
        return place.unusable("it holds no choices")
    reason = string(choice.finish_reason)
    if reason in _BROKEN_OFF:
        return place.failure(
            FailureKind.OVERLOADED, f"it broke off with {reason}", http_status=HTTPStatus.OK
        )
    return _answer(completion, choice.message, reason, request, seconds)


def _answer(
    completion: Completion,
    said: CompletionMessage,
    reason: str,
    request: ModelRequest,
    seconds: float,
) -> Answer:
    calls = tuple(named(_calls(said.tool_calls or []), request))
    content, thinking = _content(said)
    reasoning = string(said.reasoning_content) or string(said.reasoning) or thinking
    refusal = "" if content or calls else string(said.refusal)
    answer = Answer(
        content=content,
        tool_calls=calls,
        finish_reason="content_filter" if refusal else _finish_reason(reason, called=bool(calls)),
        reasoning=reasoning,
        reasoning_back=bool(request.tools) and isinstance(said.reasoning_content, str),
        model=string(completion.model),
        refusal=refusal,
        seconds=seconds,
    )
    counts = _counts(fields(completion.usage), string(completion.service_tier))
    return bounded(answer, request, counts)


def _content(said: CompletionMessage) -> tuple[str, str]:
    """Return an answer's text, and the thinking in front of it."""
    parts = [said.content] if isinstance(said.content, str) else said.content or []
    text = "".join(map(_part, parts))
    thinking = _THINKING.match(text)
    return (text[thinking.end() :], thinking.group(1).strip()) if thinking else (text, "")


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
        return string(part.get("text"))
    return string(part)


def _calls(calls: list[CompletionCall]) -> Iterator[ToolCall]:
    for call in calls:
        function = call.function or CompletionFunction()
        yield ToolCall(string(call.id), string(function.name), argument_text(function.arguments))


def _finish_reason(reason: str, *, called: bool) -> FinishReason:
    if reason.lower() in _LENGTH:
        return "length"
    if reason.lower() in _FILTERED:
        return "content_filter"
    return "tool_calls" if called else "stop"


def _counts(usage: Mapping[str, Any], tier: str) -> TokenCounts:
    counts = counted(usage, tier, "prompt", "completion")
    # Gemini and Grok leave the thinking out of completion_tokens, but not out of the total.
    rest = (number(usage.get("total_tokens")) - counts.read) if counts.read else 0
    return msgspec.structs.replace(counts, written=max(counts.written, rest))


def bearer(key: str) -> Mapping[str, str]:
    """Return the header that most keys go into."""
    return {"Authorization": f"Bearer {key}"} if key else {}


DIALECT = Dialect(
    what=f"{WHAT}s",
    path=PATHS["chat"],
    encode=encode,
    decode=decode,
    headers=bearer,
    sparable={
        **options.fields("chat"),
        "stop": "stop",
        "response_format": "response_format",
        "reasoning_effort": "reasoning_effort",
        "reasoningeffort": "reasoning_effort",  # xAI
        "thinking": "reasoning_effort",  # ollama
        "parallel_tool_calls": "parallel_tool_calls",
    },
    counted=b'"prompt_tokens"',
)
