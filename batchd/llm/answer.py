"""Answers of models: JSON from any server, read within bounds."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from batchd import tokens
from batchd.llm.dialect import ModelRequest
from batchd.records import Answer, ToolCall, Usage
from batchd.records.models import valid_throughout

T = TypeVar("T")

#: Values that an answer may hold: each takes a hundred bytes of memory, and two of its body.
_MOST_VALUES = 1 << 18
#: In front of each value but the first stands one of these.
_VALUES = (b",", b"[", b"{")
#: A text in JSON; one that never ends goes up to the body's end,
#: so that nothing is looked at twice.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


class UnreadableError(Exception):
    """The body is no answer. The message says what it is instead."""


def unpacked(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Return a response's body, which is to be ``what``. Raises ``UnreadableError``."""
    if _crowded(body):
        raise UnreadableError(f"more than {_MOST_VALUES:,} values")
    try:
        # What stays raw is not looked at by the decoder,
        # and goes into a journal and back over the line.
        body.decode()
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise UnreadableError(f"its JSON is not a {what}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # Lone surrogates, NaN, bytes that are not UTF-8, a BOM.
        try:
            text = body.decode("utf-8-sig", "replace")
            value = valid_throughout(json.loads(text, parse_constant=lambda _: None))
            return decoder.decode(json.dumps(value, ensure_ascii=False).encode())
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise UnreadableError(_what(body)) from None


def item_of(raw: msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T | None:
    """Return an item within a body; None where it is no object."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError:
        return None


def _crowded(body: bytes) -> bool:
    """Return whether a body holds so many values that they would fill the memory,
    however small it is on the line.
    """
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


def _what(body: bytes) -> str:
    start = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        return "an HTML page instead of JSON"
    if start.startswith((b"data:", b"event:")):
        return "a stream of events, which was not asked for"
    return "broken JSON" if start else "an empty body"


#: Characters of an answer that are kept, and as many of its thinking: no model writes as many
#: tokens at a time. What is longer would hold up, at each step, all that runs beside it.
MAX_TEXT_CHARS = 1 << 20
#: Bytes of the items that an answer goes back in: they are kept, and sent, with every later call.
#: Of what is longer its text and its calls go back.
MAX_REPLAY_BYTES = 1 << 20
#: Characters of a service tier's name, or of another such word, that are kept;
#: and of a model's name.
_WORD = 64
_NAME = 512
_NUMBER = (int, float)
#: How providers name what came from their cache, and what went into it: OpenAI, and at the top of a
#: usage Anthropic's OpenAI layer and Cohere; DeepSeek; Databricks, Perplexity and LiteLLM; xAI.
CACHED = (
    *("cached_tokens", "prompt_cache_hit_tokens"),
    *("cache_read_input_tokens", "cached_prompt_text_tokens"),
)
_KEPT = ("cache_write_tokens", "cache_creation_input_tokens")


class TokenCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens as a provider counts them; 0: it does not say."""

    #: All input, what came from its cache and went into it included.
    read: int = 0
    cached: int = 0
    #: Written to the cache, for short and for long.
    kept: int = 0
    kept_long: int = 0
    #: Whether it says how much came from its cache, if only that nothing did.
    reported: bool = False
    #: All output, the thinking included.
    written: int = 0
    thinking: int = 0
    #: The service tier that served it, in the provider's own word; empty: it does not say.
    tier: str = ""
    #: What it says that the call cost, in dollars; None: it does not say.
    stated_usd: float | None = None


def bounded(answer: Answer, request: ModelRequest, counts: TokenCounts) -> Answer:
    """Return an answer with its usage, and no longer than is kept of one."""
    content, reasoning, calls = answer.content, answer.reasoning, answer.tool_calls
    kept = tuple(_kept(calls, MAX_TEXT_CHARS - len(content)))
    whole = len(content) <= MAX_TEXT_CHARS and kept == calls
    return replace(
        answer,
        content=content[:MAX_TEXT_CHARS],
        tool_calls=kept,
        # As if the provider had cut it off: the model goes on, or does it in smaller pieces.
        finish_reason=answer.finish_reason if whole else "length",
        reasoning=reasoning[:MAX_TEXT_CHARS],
        model=answer.model[:_NAME],
        refusal=answer.refusal[:MAX_TEXT_CHARS],
        removed=tuple(reason[:_WORD] for reason in answer.removed),
        replay=answer.replay
        if whole and (answer.replay is not None and answer.replay.size <= MAX_REPLAY_BYTES)
        else None,
        usage=_usage(counts, request, (content, reasoning), calls),
        service_tier=counts.tier[:_WORD],
        stated_usd=counts.stated_usd,
    )


def _kept(calls: tuple[ToolCall, ...], room: int) -> Iterator[ToolCall]:
    """Yield the calls that fit into ``room`` characters;
    of the first that does not, the arguments are cut off.
    """
    for call in calls:
        room -= len(call.id) + len(call.name)
        if room <= 0:
            return
        yield (
            call if len(call.arguments) <= room else replace(call, arguments=call.arguments[:room])
        )
        room -= len(call.arguments)


def named(calls: Iterable[ToolCall], request: ModelRequest) -> Iterator[ToolCall]:
    """Yield calls that replies can name: an id must be there, and only once in the conversation."""
    seen = {call.id for message in request.messages for call in message.tool_calls}
    for call in calls:
        name = call.id if call.id and call.id not in seen else f"call_{secrets.token_hex(8)}"
        seen.add(name)
        yield call if name == call.id else replace(call, id=name)


def _usage(
    counts: TokenCounts, request: ModelRequest, texts: tuple[str, ...], calls: tuple[ToolCall, ...]
) -> Usage:
    """Return the usage as the provider counts it; what it does not count is counted here."""
    read, written = counts.read, counts.written
    said = bool(calls or any(texts))
    estimated = not read or (said and not written)
    read = read or tokens.count_messages(request.messages) + tokens.count_tools(request.tools)
    if said and not written:
        written = sum(map(tokens.count, (*texts, *(c.name + c.arguments for c in calls))))
    cached = min(counts.cached, read)
    kept = min(counts.kept, read - cached)
    return Usage(
        calls=1,
        input_tokens=read,
        cached_input_tokens=cached,
        cache_write_tokens=kept,
        cache_write_long_tokens=min(counts.kept_long, kept),
        cache_reported_tokens=read if counts.reported and counts.read else 0,
        output_tokens=written,
        reasoning_tokens=min(counts.thinking, written),
        estimated=estimated,
    )


def fields(value: Any) -> Mapping[str, Any]:
    """Return an object's fields; whatever is none has none."""
    return value if isinstance(value, dict) else {}


def string(value: Any) -> str:
    """Return a text; whatever is none is empty."""
    return value if isinstance(value, str) else ""


def argument_text(value: Any) -> str:
    """Return a call's arguments as text: some servers send the object itself."""
    if isinstance(value, str):
        return value or "{}"
    return "{}" if value is None else msgspec.json.encode(value).decode()


def number(value: Any) -> int:
    """Return a count; whatever is none counts as 0."""
    return (
        int(value) if isinstance(value, _NUMBER) and 0 < value < 1e15 else 0
    )  # beyond any count, infinity too


def _said(names: Iterable[str], *places: Mapping[str, Any]) -> int | None:
    """Return the largest count under one of these names; None: there is none."""
    found = (place.get(name) for place in places for name in names)
    return max((number(value) for value in found if value is not None), default=None)


def counted(usage: Mapping[str, Any], tier: str, taken: str, made: str) -> TokenCounts:
    """Return what a usage says in one of OpenAI's APIs, whose names for the tokens ``taken`` in and
    ``made`` begin so: ``prompt_tokens``, ``completion_tokens_details`` in chat,
    ``input_tokens``, ``output_tokens_details`` in Responses.
    """
    inside, outside = (fields(usage.get(f"{name}_tokens_details")) for name in (taken, made))
    cached = _said(CACHED, inside, usage)
    return TokenCounts(
        read=number(usage.get(f"{taken}_tokens")),
        cached=cached or 0,
        kept=_said(_KEPT, inside, usage) or 0,
        kept_long=number(fields(inside.get("cache_write_tokens_details")).get("ttl_12h_tokens")),
        reported=cached is not None,
        tier=tier,
        stated_usd=stated(usage),
        written=number(usage.get(f"{made}_tokens")),
        thinking=number(outside.get("reasoning_tokens")),
    )


def stated(counts: Mapping[str, Any]) -> float | None:
    """Return what the provider says that a call cost, in dollars (OpenRouter);
    None where it does not, or where others bill it.
    """
    cost = counts.get("cost")
    if not isinstance(cost, int | float) or isinstance(cost, bool) or counts.get("is_byok"):
        return None
    return float(cost) if 0 <= cost < 1e9 else None  # beyond any cost, infinity too
