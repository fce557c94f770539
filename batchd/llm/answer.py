"""Reads what providers answer: chat completions, and what goes by that name."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from batchd import tokens
from batchd.llm.request import Request
from batchd.records import Answer, ToolCall, Usage
from batchd.records.unicode import valid_throughout

_LENGTH = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
_FILTERED = frozenset({"content_filter", "content_filtered", "safety", "sensitive", "refusal"})
#: Characters of an answer that are kept, and as many of its thinking: no model writes as many tokens at a time. What
#: is longer would hold up, at each step, all that runs beside it.
MOST_CHARS = 1 << 20
#: Characters of a service tier's name that are kept.
_TIER = 64
#: Values that an answer may hold: each takes a hundred bytes of memory, and two of its body.
_MOST_VALUES = 1 << 18
#: In front of each value but the first stands one of these.
_VALUES = (b",", b"[", b"{")
#: A text in JSON; one that never ends goes up to the body's end, so that nothing is looked at twice.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
#: The provider broke off for reasons of its own (OpenRouter, DeepSeek, Zhipu).
BROKEN_OFF = frozenset({"error", "insufficient_system_resource", "network_error"})
#: No set: what a server writes there may be no word, and nothing that could be in one.
_TEXT_PARTS = ("text", "output_text", None)
#: Servers without a parser for it leave a model's thinking in front of its answer.
_THINKING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


class UnreadableError(Exception):
    """The body is no chat completion. The message says what it is instead."""


class Function(msgspec.Struct):
    """What a tool call calls."""

    name: str | None = None
    #: JSON text, as an exception the object itself.
    arguments: Any = None


class Call(msgspec.Struct):
    """A tool call."""

    id: str | None = None
    function: Function | None = None


class Message(msgspec.Struct):
    """The answer proper."""

    #: Text, or a list of parts.
    content: str | list[Any] | None = None
    tool_calls: list[Call] | None = None
    #: DeepSeek, vLLM, llama.cpp.
    reasoning_content: Any = None
    #: OpenRouter, ollama.
    reasoning: Any = None
    refusal: str | None = None


class Choice(msgspec.Struct):
    """One of the answers; only one is ever asked for."""

    message: Message | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A chat completion, as far as it is used: everything may be missing or null."""

    choices: list[Choice] | None = None
    #: Counts by their names, or whatever a server takes for them: nothing in it is worth an answer.
    usage: Any = None
    model: str | None = None
    #: What served it, where the provider sells tiers.
    service_tier: Any = None
    #: Sent with status 200 by gateways whose own provider failed.
    error: Any = None


_DECODER = msgspec.json.Decoder(Completion)


def decode(body: bytes) -> Completion:
    """Return a response's body. Raises ``UnreadableError``."""
    if _crowded(body):
        raise UnreadableError(f"more than {_MOST_VALUES:,} values")
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise UnreadableError(f"its JSON is no chat completion: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_untidy(body)


def _crowded(body: bytes) -> bool:
    """Return whether a body holds so many values that they would fill the memory, however small it is on the line."""
    if _values(body, 0, len(body)) <= _MOST_VALUES:
        return False
    # Mostly they stand in texts, which are one value each.
    values = end = 0
    for text in _TEXT.finditer(body):
        values += _values(body, end, text.start())
        if values > _MOST_VALUES:
            return True
        end = text.end()
    return values + _values(body, end, len(body)) > _MOST_VALUES


def _values(body: bytes, start: int, end: int) -> int:
    return sum(body.count(sign, start, end) for sign in _VALUES)


def _decode_untidy(body: bytes) -> Completion:
    """Read JSON that holds lone surrogates, NaN, bytes that are not UTF-8 or a BOM."""
    try:
        value = valid_throughout(json.loads(body.decode("utf-8-sig", "replace")))
        return msgspec.convert(value, Completion)
    except (ValueError, RecursionError):
        raise UnreadableError(_what(body)) from None


def _what(body: bytes) -> str:
    start = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        return "an HTML page instead of JSON"
    if start.startswith((b"data:", b"event:")):
        return "a stream of events, which was not asked for"
    return "broken JSON" if start else "an empty body"


def answer(completion: Completion, message: Message, request: Request, seconds: float) -> Answer:
    """Return the record of an answer: its first choice's ``message``."""
    calls = tuple(_calls(message.tool_calls or []))
    reason = completion.choices[0].finish_reason if completion.choices else None
    content, thinking = _content(message)
    reasoning = _string(message.reasoning_content) or _string(message.reasoning) or thinking
    kept = tuple(_kept(calls, MOST_CHARS - len(content)))
    whole = len(content) <= MOST_CHARS and kept == calls
    return Answer(
        content=content[:MOST_CHARS],
        tool_calls=kept,
        # As if the provider had cut it off: the model goes on, or does it in smaller pieces.
        finish_reason=_finish_reason(reason, called=bool(calls)) if whole else "length",
        reasoning=reasoning[:MOST_CHARS],
        reasoning_back=bool(request.tools) and isinstance(message.reasoning_content, str),
        usage=_usage(_fields(completion.usage), request, (content, reasoning), calls),
        model=completion.model or "",
        seconds=seconds,
        service_tier=_string(completion.service_tier)[:_TIER],
        stated_usd=_stated(_fields(completion.usage)),
    )


def _content(message: Message) -> tuple[str, str]:
    """Return an answer's text, and the thinking in front of it."""
    parts = [message.content] if isinstance(message.content, str) else message.content or []
    text = "".join(map(_part, parts)) or message.refusal or ""
    thinking = _THINKING.match(text)
    return (text[thinking.end() :], thinking.group(1).strip()) if thinking else (text, "")


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS:
        return _string(part.get("text"))
    return _string(part)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _calls(calls: list[Call]) -> Iterator[ToolCall]:
    seen = set()
    for call in calls:
        function = call.function or Function()
        # Replies name the call that they answer: an id must be there, and only once.
        name = call.id if call.id and call.id not in seen else f"call_{secrets.token_hex(8)}"
        seen.add(name)
        yield ToolCall(name, function.name or "", _arguments(function.arguments))


def _kept(calls: tuple[ToolCall, ...], room: int) -> Iterator[ToolCall]:
    """Yield the calls that fit into ``room`` characters; of the first that does not, the arguments are cut off."""
    for call in calls:
        room -= len(call.id) + len(call.name)
        if room <= 0:
            return
        yield (
            call if len(call.arguments) <= room else replace(call, arguments=call.arguments[:room])
        )
        room -= len(call.arguments)


def _arguments(value: Any) -> str:
    if isinstance(value, str):
        return value or "{}"
    return "{}" if value is None else msgspec.json.encode(value).decode()


def _finish_reason(reason: str | None, *, called: bool) -> str:
    given = (reason or "").lower()
    if given in _LENGTH:
        return "length"
    if given in _FILTERED:
        return "content_filter"
    return "tool_calls" if called else "stop"


def _usage(
    counts: Mapping[str, Any],
    request: Request,
    texts: tuple[str, ...],
    calls: tuple[ToolCall, ...],
) -> Usage:
    """Return the usage as the provider counts it; what it does not count is counted here."""
    inside = _fields(counts.get("prompt_tokens_details"))
    outside = _fields(counts.get("completion_tokens_details"))
    read, written = _number(counts.get("prompt_tokens")), _number(counts.get("completion_tokens"))
    if read:
        # Gemini and Grok leave the thinking out of completion_tokens, but not out of the total.
        written = max(written, _number(counts.get("total_tokens")) - read)
    said = bool(calls or any(texts))
    estimated = not read or (said and not written)
    read = read or _count_input(request)
    if said and not written:
        written = sum(map(tokens.count, (*texts, *(c.name + c.arguments for c in calls))))
    # The second one is DeepSeek's name for it.
    cached = inside.get("cached_tokens")
    if not cached:
        cached = counts.get("prompt_cache_hit_tokens", cached)
    reported = cached is not None and bool(counts.get("prompt_tokens"))
    cached = min(_number(cached), read)
    kept = min(_number(inside.get("cache_write_tokens")), read - cached)
    lasting = _fields(inside.get("cache_write_tokens_details"))
    return Usage(
        calls=1,
        input_tokens=read,
        cached_input_tokens=cached,
        cache_write_tokens=kept,
        cache_write_long_tokens=min(_number(lasting.get("ttl_12h_tokens")), kept),
        cache_reported_tokens=read if reported else 0,
        output_tokens=written,
        reasoning_tokens=min(_number(outside.get("reasoning_tokens")), written),
        estimated=estimated,
    )


def _stated(counts: Mapping[str, Any]) -> float | None:
    """Return what the provider says that a call cost, in dollars (OpenRouter); None where it does not, or where others bill it."""
    cost = counts.get("cost")
    if not isinstance(cost, int | float) or isinstance(cost, bool) or counts.get("is_byok"):
        return None
    return float(cost) if 0 <= cost < 1e9 else None  # noqa: PLR2004 (beyond any cost, infinity too)


def _count_input(request: Request) -> int:
    tools = msgspec.json.encode(request.tools).decode() if request.tools else ""
    return tokens.count_messages(request.messages) + tokens.count(tools)


def _fields(value: Any) -> Mapping[str, Any]:
    """Return an object's fields; whatever is none has none."""
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int:
    """Return a count; whatever is none counts as 0."""
    return int(value) if isinstance(value, int | float) and 0 < value < 1e15 else 0  # noqa: PLR2004 (beyond any count, infinity too)
