"""Answers of Anthropic's Messages as server-sent events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchd.records import ToolCall
from standin.simulated_request import event, pieces

_Delta = dict[str, Any]


def events(message: Mapping[str, Any], calls: Sequence[ToolCall]) -> Iterator[bytes]:
    """Yield a whole message in pieces; the arguments of its calls are as the model wrote them."""
    ends = ("stop_reason", "stop_sequence", "stop_details")
    usage = message.get("usage")
    started = {**message, "content": [], **dict.fromkeys(ends)}
    if usage is not None:
        started["usage"] = {**usage, "output_tokens": 1, "output_tokens_details": None}
    yield _event("message_start", message=started)
    yield _event("ping")
    written = iter(calls)
    for at, block in enumerate(message["content"]):
        if block["type"] == "tool_use":
            empty, deltas = {**block, "input": {}}, _arguments(next(written))
        else:
            empty, deltas = _said(block)
        yield _event("content_block_start", index=at, content_block=empty)
        for delta in deltas:
            yield _event("content_block_delta", index=at, delta=delta)
        yield _event("content_block_stop", index=at)
    last = {"delta": {end: message[end] for end in ends}}
    yield _event("message_delta", **last, **({} if usage is None else {"usage": _final(usage)}))
    yield _event("message_stop")


def _event(kind: str, **body: Any) -> bytes:
    return event(kind, {"type": kind, **body})


def _arguments(call: ToolCall) -> list[_Delta]:
    parts = ["", *pieces(call.arguments)]
    return [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _said(block: dict[str, Any]) -> tuple[dict[str, Any], list[_Delta]]:
    """Return a block before anything of it was said, and what it says."""
    match block["type"]:
        case "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
            return {**block, "text": ""}, deltas
        case "thinking":
            thought = [
                {"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])
            ]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*thought, signed]
    return block, []


def _final(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the usage as the end of a stream has it."""
    left_out = ("cache_creation", "service_tier")
    return {key: value for key, value in usage.items() if key not in left_out}
