"""Answers of OpenAI's Responses as server-sent events."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from standin.simulated_request import event, pieces

_Event = tuple[str, dict[str, Any]]


def events(response: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield a whole response in pieces: each item, and the response once more at the end."""
    numbers = itertools.count()
    for kind, body in _events(response):
        name = f"response.{kind}"
        yield event(name, {"type": name, "sequence_number": next(numbers), **body})


def _events(response: Mapping[str, Any]) -> Iterator[_Event]:
    begun = {**response, "status": "in_progress", "output": [], "incomplete_details": None}
    begun.pop("usage", None)
    yield "created", {"response": begun}
    yield "in_progress", {"response": begun}
    for at, item in enumerate(response["output"]):
        here = {"output_index": at, "item_id": item["id"]}
        yield "output_item.added", {"output_index": at, "item": _empty(item)}
        match item["type"]:
            case "reasoning":
                yield from _summary(item, here)
            case "message":
                yield from _message(item, here)
            case _:
                for piece in pieces(item["arguments"]):
                    yield "function_call_arguments.delta", {**here, "delta": piece}
                whole = {"arguments": item["arguments"], "name": item["name"]}
                yield "function_call_arguments.done", {**here, **whole}
        yield "output_item.done", {"output_index": at, "item": item}
    yield response["status"], {"response": response}


def _empty(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item before anything of it was said."""
    begun = {"status": "in_progress"} if "status" in item else {}
    nothing: dict[str, Any] = {"content": [], "summary": [], "arguments": ""}
    return {**item, **begun, **{k: v for k, v in nothing.items() if k in item}}


def _summary(item: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[_Event]:
    for i, part in enumerate(item["summary"]):
        at = {**here, "summary_index": i}
        yield "reasoning_summary_part.added", {**at, "part": {**part, "text": ""}}
        for piece in pieces(part["text"]):
            yield "reasoning_summary_text.delta", {**at, "delta": piece}
        yield "reasoning_summary_text.done", {**at, "text": part["text"]}
        yield "reasoning_summary_part.done", {**at, "part": part}


def _message(item: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[_Event]:
    for i, part in enumerate(item["content"]):
        at = {**here, "content_index": i}
        kind, field = part["type"], "text" if part["type"] == "output_text" else "refusal"
        more: dict[str, Any] = {"logprobs": []} if field == "text" else {}
        yield "content_part.added", {**at, "part": {**part, field: ""}}
        for piece in pieces(part[field]):
            yield f"{kind}.delta", {**at, **more, "delta": piece}
        yield f"{kind}.done", {**at, **more, field: part[field]}
        yield "content_part.done", {**at, "part": part}
