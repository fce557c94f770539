"""Anthropic's Messages API.

The model's thinking comes as blocks that are signed: they go back whole, in place, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from batchd import decoders
from batchd.llm.answer import (
    TokenCounts,
    bounded,
    fields,
    item_of,
    named,
    number,
    stated,
    string,
    unpacked,
)
from batchd.llm.dialect import Dialect, ModelRequest, ModelTarget, arguments
from batchd.llm.failures import CallPlace, coded_failure
from batchd.records import (
    PATHS,
    Answer,
    Effort,
    Failure,
    FinishReason,
    Message,
    ModelSetup,
    ToolCall,
    options,
)

_WHAT = "message"
#: What all that imitate this API know; another one goes into [providers.NAME] headers.
_VERSION = "2023-06-01"
#: `minimal` is none of its words.
_EFFORTS: tuple[Effort, ...] = ("none", "low", "medium", "high", "xhigh", "max")
#: What ends here is kept in the provider's cache.
_BREAKPOINT: Mapping[str, Any] = {"cache_control": {"type": "ephemeral"}}
#: No text of a block may be empty.
_EMPTY = "(empty)"


class MessagesAnswer(msgspec.Struct):
    """A message, as far as it is used: everything may be missing or null."""

    content: list[msgspec.Raw] | None = None
    stop_reason: Any = None
    stop_details: Any = None
    usage: Any = None
    model: Any = None
    error: Any = None


class MessagesBlock(msgspec.Struct):
    """A block of its content, as far as it is used."""

    type: Any = None
    text: Any = None
    thinking: Any = None
    id: Any = None
    name: Any = None
    #: An object, kept as it is written.
    input: msgspec.Raw = msgspec.Raw()


_DECODER = decoders.decoder(MessagesAnswer)
_BLOCK = decoders.decoder(MessagesBlock)
_FINISH: Mapping[str, FinishReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # It wants to go on, which it is asked to.
    "pause_turn": "length",
    "refusal": "content_filter",
}
#: With these the last block may be half of one.
_CUT = frozenset({"max_tokens", "model_context_window_exceeded"})
_THOUGHT = frozenset({"thinking", "redacted_thinking"})
#: What stands behind thinking that nothing came of: the API refuses it at a message's end.
_STUB = msgspec.Raw(msgspec.json.encode({"type": "text", "text": _EMPTY}))


def encode(setup: ModelSetup, target: ModelTarget, request: ModelRequest) -> dict[str, Any]:
    """Return what asks for a message."""
    caching = bool(request.cache_key)
    body: dict[str, Any] = {"model": setup.model, "max_tokens": request.max_output_tokens}
    if system := [m.content for m in request.messages if m.role == "system"]:
        # Behind the tools, which are the same for all tasks: the one breakpoint keeps both.
        block = {"type": "text", "text": "\n\n".join(system)}
        body["system"] = [{**block, **_BREAKPOINT} if caching else block]
    body["messages"] = list(_turns(request, target, caching=caching))
    if request.tools:
        body["tools"] = [
            {"name": t.name, "description": t.description, "input_schema": t.parameters}
            for t in request.tools
        ]
    if request.stop:
        body["stop_sequences"] = request.stop
    output: dict[str, Any] = {}
    if effort := request.effort(setup, _EFFORTS):
        if effort == "none":
            body["thinking"] = {"type": "disabled"}
        else:
            output["effort"] = effort
    if request.schema is not None and setup.json_mode != "none":
        output["format"] = {"type": "json_schema", "schema": request.schema}
    if output:
        body["output_config"] = output
    if request.service_tier:
        body["service_tier"] = request.service_tier
    return body


def _settled(body: dict[str, Any]) -> None:
    """Switch thinking by a budget off where the last calls have come without: the API refuses it
    for a turn that goes on, until the user's next words.
    """
    own = [turn["content"] for turn in body["messages"] if turn["role"] == "assistant"]
    if fields(body.get("thinking")).get("type") == "enabled" and own:
        types = [_BLOCK.decode(msgspec.json.encode(block)).type for block in own[-1]]
        if "tool_use" in types and types[0] not in _THOUGHT:
            body["thinking"] = {"type": "disabled"}


def _turns(
    request: ModelRequest, target: ModelTarget, *, caching: bool
) -> Iterator[Mapping[str, Any]]:
    """Yield the turns of a conversation, the user's and the model's by turns.

    Breakpoints stand where this request ends and where the one before did: what that one wrote to
    the cache is found however many blocks have come since.
    """
    messages = [m for m in request.messages if m.role != "system"]
    own = [i for i, m in enumerate(messages) if m.role == "assistant"]
    ends = {own[-1] - 1 if own else -1, len(messages) - 1} if caching else set()
    role, blocks = "", list[Any]()
    for i, message in enumerate(messages):
        speaker = "assistant" if message.role == "assistant" else "user"
        if speaker != role and blocks:
            yield {"role": role, "content": blocks}
            blocks = []
        role = speaker
        blocks += _blocks(message, target)
        if i in ends and role == "user":
            blocks[-1] = {**blocks[-1], **_BREAKPOINT}
    if blocks:
        yield {"role": role, "content": blocks}


def _blocks(message: Message, target: ModelTarget) -> Iterator[Any]:
    """Yield a message as blocks: those that it came in, where their maker is asked."""
    if message.role == "tool" and message.tool_call_id is not None:
        yield {
            "type": "tool_result",
            "tool_use_id": message.tool_call_id,
            "content": message.content,
        }
    elif message.role != "assistant":
        yield {"type": "text", "text": message.content if message.content.strip() else _EMPTY}
    elif message.replay is not None and target.takes(message.replay):
        yield from message.replay.items
    else:
        if message.content.strip() or not message.tool_calls:
            # Text at the end of a conversation may not end with white space.
            yield {"type": "text", "text": message.content.rstrip() or _EMPTY}
        for call in message.tool_calls:
            given = msgspec.Raw(arguments(call).encode("utf-8", "replace"))
            yield {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def decode(
    place: CallPlace, target: ModelTarget, body: bytes, request: ModelRequest, seconds: float
) -> Answer | Failure:
    """Return what a message says. Raises ``UnreadableError``."""
    said = unpacked(body, _DECODER, _WHAT)
    if said.error:
        return coded_failure(place, said.error)
    if said.content is None:
        return place.unusable(f"it is not a {_WHAT}")
    counts = _counts(fields(said.usage))
    blocks = [item_of(raw, _BLOCK) for raw in said.content]
    known = [block or MessagesBlock() for block in blocks]
    reason = string(said.stop_reason)
    cut, refused = reason in _CUT, reason == "refusal"
    given = tuple(_calls(known, cut=cut))
    calls = tuple(named(given, request))
    # Half a call, one without a name of its own and what is no block cannot go back as they came.
    whole = not refused and not (cut and calls) and calls == given and None not in blocks
    items = tuple(_items(said.content, known)) if whole else ()
    answer = Answer(
        # What it broke off is not to be used, the vendor says.
        content="" if refused else "".join(string(b.text) for b in known if b.type == "text"),
        tool_calls=() if refused else calls,
        finish_reason=_FINISH.get(reason, "tool_calls" if calls else "stop"),
        reasoning="\n\n".join(filter(None, (string(b.thinking) for b in known))),
        model=string(said.model),
        seconds=seconds,
        refusal=_refusal(fields(said.stop_details)) if refused else "",
        window_full=reason == "model_context_window_exceeded",
        replay=target.replay(items, counts.thinking) if items else None,
    )
    return bounded(answer, request, counts)


def _items(raws: list[msgspec.Raw], blocks: list[MessagesBlock]) -> Iterator[msgspec.Raw]:
    """Yield a message's blocks as they go back: the API refuses some that it writes itself."""
    last = ""
    for raw, block in zip(raws, blocks, strict=True):
        if block.type != "text" or string(block.text).strip():
            last = string(block.type)
            yield raw.copy()
    if last in _THOUGHT:
        yield _STUB


def _calls(blocks: list[MessagesBlock], *, cut: bool) -> Iterator[ToolCall]:
    last = blocks[-1] if blocks else None
    for block in blocks:
        if block.type != "tool_use":
            continue
        given = bytes(block.input).decode() or "{}"
        if cut and block is last:
            # Half of its arguments may be missing, and what is there in order all the same:
            # it must not run.
            given = given[:-1]
        yield ToolCall(string(block.id), string(block.name), given)


def _refusal(details: Mapping[str, Any]) -> str:
    words = (string(details.get("category")), string(details.get("explanation")))
    return ": ".join(filter(None, words))


def _counts(counts: Mapping[str, Any]) -> TokenCounts:
    written = fields(counts.get("cache_creation"))
    kept = number(counts.get("cache_creation_input_tokens"))
    cached = number(counts.get("cache_read_input_tokens"))
    return TokenCounts(
        # What comes from the cache, or goes into it, is not part of `input_tokens`.
        read=number(counts.get("input_tokens")) + kept + cached,
        cached=cached,
        kept=kept,
        kept_long=number(written.get("ephemeral_1h_input_tokens")),
        reported=counts.get("cache_read_input_tokens") is not None,
        # Its fast mode is priced like a tier, and is none of them.
        tier="fast" if counts.get("speed") == "fast" else string(counts.get("service_tier")),
        stated_usd=stated(counts),
        written=number(counts.get("output_tokens")),
        thinking=number(fields(counts.get("output_tokens_details")).get("thinking_tokens")),
    )


def _headers(key: str) -> Mapping[str, str]:
    version = {"anthropic-version": _VERSION}
    return version | {"x-api-key": key} if key else version


DIALECT = Dialect(
    what="Messages API",
    path=PATHS["messages"],
    encode=encode,
    settled=_settled,
    decode=decode,
    headers=_headers,
    efforts=_EFFORTS,
    account=("anthropic-organization-id",),
    refused_items=re.compile(
        r"invalid .{0,3}signature|bound to a different conversation|`?(?:redacted_)?thinking`? (?:or `?\w+`? )?blocks?"
    ),
    sparable={
        **options.fields("messages"),
        "top_k": "top_k",
        "thinking": "thinking",
        "output_config.effort": "output_config.effort",
        "effort parameter": "output_config.effort",
        "output_config.format": "output_config.format",
        "output_format": "output_config.format",
        "structured outputs": "output_config.format",
        "stop_sequences": "stop_sequences",
    },
    counted=b'"input_tokens"',
)
