"""OpenAI's Responses API, without its memory: each request holds the whole conversation.

The model's thinking comes as items that only its provider can read.
They go back in order and byte for byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from batchd import decoders
from batchd.llm.answer import (
    argument_text,
    bounded,
    counted,
    fields,
    item_of,
    named,
    string,
    unpacked,
)
from batchd.llm.chat import bearer
from batchd.llm.dialect import Dialect, ModelRequest, ModelTarget, arguments, by_user
from batchd.llm.failures import CallPlace, coded_failure
from batchd.records import (
    EFFORTS,
    PATHS,
    Answer,
    Failure,
    FinishReason,
    JsonMode,
    Message,
    ModelSetup,
    ToolCall,
    options,
)

_WHAT = "response"
_FINAL = frozenset({"completed", "incomplete"})
#: A `prompt_cache_key` has at most so many characters.
_KEY_CHARS = 64


class ResponsesAnswer(msgspec.Struct):
    """A response, as far as it is used: everything may be missing or null."""

    status: Any = None
    output: list[msgspec.Raw] | None = None
    usage: Any = None
    model: Any = None
    service_tier: Any = None
    error: Any = None
    incomplete_details: Any = None
    input_transformations: Any = None


class ResponsesItem(msgspec.Struct):
    """An item of its output, as far as it is used."""

    type: Any = None
    status: Any = None
    #: Of a message, and with open models of their thinking.
    content: Any = None
    summary: Any = None
    call_id: Any = None
    name: Any = None
    arguments: Any = None


_DECODER = decoders.decoder(ResponsesAnswer)
_ITEM = decoders.decoder(ResponsesItem)


def encode(setup: ModelSetup, target: ModelTarget, request: ModelRequest) -> dict[str, Any]:
    """Return what asks for a response."""
    body: dict[str, Any] = {
        "model": setup.model,
        "input": [item for m in request.messages for item in _items(m, target)],
        "max_output_tokens": request.max_output_tokens,
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    if request.tools:
        # Our schemas leave arguments out, which strict ones may not;
        # where it is missing it counts as true.
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": False,
            }
            for tool in request.tools
        ]
    if request.schema is not None and setup.json_mode != "none":
        body["text"] = {"format": _format(setup.json_mode, request.schema)}
    if effort := request.effort(setup, EFFORTS):
        body["reasoning"] = {"effort": effort}
    if request.cache_key:
        body["prompt_cache_key"] = _cache_key(request.cache_key)
    if request.service_tier:
        body["service_tier"] = request.service_tier
    return body


def _format(mode: JsonMode, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if mode == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "name": "answer", "strict": True, "schema": schema}


def _cache_key(name: str) -> str:
    """Return a task's name as a key: of a long one the beginning,
    and what distinguishes it from others.
    """
    if len(name) <= _KEY_CHARS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:16]
    return f"{name[: _KEY_CHARS - 17]}-{digest}"


def _items(message: Message, target: ModelTarget) -> Iterator[Any]:
    """Yield a message as items: those that it came in, where their maker is asked."""
    if message.role == "system":
        # `instructions` may stand behind the input, where no cache finds them.
        yield {"role": "developer", "content": message.content}
    elif by_user(message):
        yield {"role": "user", "content": message.content}
    elif message.role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": message.tool_call_id,
            "output": message.content,
        }
    elif message.replay is not None and target.takes(message.replay):
        yield from message.replay.items
    else:
        if message.content or not message.tool_calls:
            phase = "commentary" if message.tool_calls else "final_answer"
            # Its type may be left out, but llama.cpp's server wants it of an assistant's.
            yield {
                "type": "message",
                "role": "assistant",
                "content": message.content,
                "phase": phase,
            }
        for call in message.tool_calls:
            yield {
                "type": "function_call",
                "call_id": call.id,
                "name": call.name,
                "arguments": arguments(call),
            }


def decode(
    place: CallPlace, target: ModelTarget, body: bytes, request: ModelRequest, seconds: float
) -> Answer | Failure:
    """Return what a response says, its status first. Raises ``UnreadableError``."""
    response = unpacked(body, _DECODER, _WHAT)
    status = string(response.status)
    if status == "failed" or response.error:
        return coded_failure(place, response.error)
    if status not in _FINAL or response.output is None:
        said = f"it is not a {_WHAT}"
        if status:
            said = "it holds no output" if status in _FINAL else f"its status is {status!r}"
        return place.unusable(said)
    counts = counted(fields(response.usage), string(response.service_tier), "input", "output")
    items = [item_of(raw, _ITEM) for raw in response.output]
    known = [item or ResponsesItem() for item in items]
    answer, whole = _answer(response, known, request)
    back = _followed(known)
    if whole and back and None not in items:
        raws = tuple(raw.copy() for raw in response.output[:back])
        answer = replace(answer, replay=target.replay(raws, counts.thinking))
    return bounded(replace(answer, seconds=seconds), request, counts)


def _followed(items: list[ResponsesItem]) -> int:
    """Return how many items may go back:
    thinking that nothing came of is refused without what follows it.
    """
    return max((i for i, item in enumerate(items, 1) if item.type != "reasoning"), default=0)


def _answer(
    response: ResponsesAnswer, items: list[ResponsesItem], request: ModelRequest
) -> tuple[Answer, bool]:
    """Return an answer without its usage, and whether its items may go back as they are."""
    texts, refusals = [], []
    for part in _parts(items):
        texts.append(string(part.get("text")))
        refusals.append(string(part.get("refusal")))
    content, refusal = "".join(texts), "".join(refusals)
    # It knows no `stop`: the answer ends where it should have.
    ends = [at for text in request.stop if (at := content.find(text)) >= 0]
    content, cut = (content[: min(ends)], True) if ends else (content, False)
    halves = [_half(item, items, response) for item in items]
    given = tuple(
        _call(item, half=half)
        for item, half in zip(items, halves, strict=True)
        if item.type == "function_call"
    )
    calls = tuple(named(given, request))
    reason = _finish_reason(response, called=bool(calls), refused=bool(refusal) and not content)
    answer = Answer(
        content=content,
        tool_calls=calls,
        finish_reason=reason,
        reasoning="\n\n".join(_thinking(items)),
        model=string(response.model),
        refusal=refusal,
        removed=tuple(_removed(response.input_transformations)),
    )
    # Half a call, and one without a name of its own, cannot go back as they came.
    return answer, not (cut or any(halves)) and calls == given


def _parts(items: list[ResponsesItem]) -> Iterator[Mapping[str, Any]]:
    for item in items:
        if item.type == "message":
            parts = item.content if isinstance(item.content, list) else [{"text": item.content}]
            yield from map(fields, parts)


def _half(item: ResponsesItem, items: list[ResponsesItem], response: ResponsesAnswer) -> bool:
    """Whether a call's arguments may be half of them."""
    if item.type != "function_call":
        return False
    status = string(item.status)
    last = response.status == "incomplete" and item is items[-1]
    return status == "incomplete" or (last and status != "completed")


def _call(item: ResponsesItem, *, half: bool) -> ToolCall:
    given = argument_text(item.arguments)
    # What is there of it may be in order all the same: it must not run.
    return ToolCall(string(item.call_id), string(item.name), given[:-1] if half else given)


def _thinking(items: list[ResponsesItem]) -> Iterator[str]:
    """Yield what a model shows of its thinking: its summary, or with open models all of it."""
    for item in items:
        if item.type == "reasoning":
            for part in (*_list(item.summary), *_list(item.content)):
                if text := string(fields(part).get("text")):
                    yield text


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _finish_reason(response: ResponsesAnswer, *, called: bool, refused: bool) -> FinishReason:
    if response.status == "incomplete":
        why = fields(response.incomplete_details).get("reason")
        return "content_filter" if why == "content_filter" else "length"
    if refused:
        return "content_filter"
    return "tool_calls" if called else "stop"


def _removed(transformations: Any) -> Iterator[str]:
    """Yield why items that were sent back were left out:
    the only sign that a provider gives of it.
    """
    for each in transformations if isinstance(transformations, list) else ():
        yield string(fields(each).get("reason")) or "unknown"


DIALECT = Dialect(
    what="Responses API",
    path=PATHS["responses"],
    encode=encode,
    decode=decode,
    headers=bearer,
    account=("openai-organization", "openai-project"),
    refused_items=re.compile(
        r"invalid_encrypted_content|encrypted content|provided without its required|without its required"
        r"|item.{0,200}of type .{0,3}reasoning|item with id .{0,80}not found"
    ),
    sparable={
        **options.fields("responses"),
        "reasoning": "reasoning",
        "reasoning.effort": "reasoning.effort",
        "reasoningeffort": "reasoning.effort",  # xAI
        "text.format": "text.format",
        "include": "include",
        "prompt_cache_key": "prompt_cache_key",
        "parallel_tool_calls": "parallel_tool_calls",
    },
    counted=b'"input_tokens"',
)
