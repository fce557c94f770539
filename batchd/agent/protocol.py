"""Tool calls that a model wrote as text.

Two ways, both strict about the whole answer, so that an answer which only talks about tool calls
makes none: the text protocol (one fenced bash block), and call objects written out by models that
know of native calls but do not make them (seen with qwen2.5-coder behind llama.cpp).
"""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec.structs import replace

from batchd.agent import tools
from batchd.records import Answer, ToolCall, ToolProtocol
from batchd.records.unicode import valid

#: The end of an indented block is as far in, or not at all: what lies deeper is text within it.
_BLOCK = re.compile(
    r"^([ \t]*)(`{3,}|~{3,})(?i:bash|sh|shell)[ \t]*(\r?)\n(.*?)(^(?:\1)?\2[ \t]*\r?$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_WRAPPING = re.compile(r"^[ \t]*(?:```\w*|</?tool_calls?>)[ \t]*\r?$", re.MULTILINE)
_TAG = re.compile(r"</?tool_calls?>")
_JSON = json.JSONDecoder(strict=False)  # raw newlines in strings allowed
#: What stands between two call objects.
_BETWEEN = re.compile(r"[ \t\r\n,]*")
#: Calls of one answer that are taken; the model sees itself as having made no more.
#: As many as OpenAI's API takes.
MOST_CALLS = 128


def calls(
    answer: Answer, protocol: ToolProtocol, *, native_seen: bool
) -> tuple[tuple[ToolCall, ...], bool]:
    """Return the tool calls of an answer, and whether they are answered in text.

    ``protocol`` is ``native``, ``text`` or ``auto``.
    """
    if protocol == "text":
        return bash_block(answer), True
    if answer.tool_calls or protocol == "native" or native_seen:
        return answer.tool_calls[:MOST_CALLS], False
    return call_objects(answer.content)[:MOST_CALLS], False


def bash_block(answer: Answer) -> tuple[ToolCall, ...]:
    """Return the first bash block of an answer as a call of ``shell``.

    A block without its end was ended by the stop sequence, and is whole; one that was cut
    at the output limit becomes a call with broken arguments, which is refused.
    """
    match = _BLOCK.search(answer.content)
    if match is None:
        return ()
    indent, _, carriage, command, end = match.groups()
    if carriage:  # the answer's line ends, which bash would take for a part of each command
        command = command.replace("\r\n", "\n")
    if indent:
        command = re.sub(f"^{indent}", "", command, flags=re.MULTILINE)
    command = command.strip("\n")
    if not command.strip():
        return ()
    arguments = json.dumps({"command": command}, ensure_ascii=False)
    if answer.finish_reason == "length" and not end:
        arguments = arguments[:-1]
    return (ToolCall("text", "shell", arguments),)


def call_objects(content: str) -> tuple[ToolCall, ...]:
    """Return the calls of an answer that consists of nothing but valid call objects."""
    text = _TAG.sub("\n", _WRAPPING.sub("", content)).strip()
    found: list[ToolCall] = []
    place = 0
    try:
        while place < len(text) and len(found) < MOST_CALLS:
            value, place = _JSON.raw_decode(text, place)
            batch = value[:MOST_CALLS] if isinstance(value, list) else [value]
            made = [call for item in batch if (call := _call(item))]
            if not made or len(made) < len(batch):
                return ()
            found += made
            place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr] # it matches anything
    except (ValueError, RecursionError):
        return ()
    return tuple(replace(call, id=f"call_{i}") for i, call in enumerate(found))


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if value.keys() - {"name", "arguments", "id", "type"}:
        return None
    arguments = value.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    # Half a letter that stood escaped in the answer is whole only now.
    call = ToolCall("", value["name"], valid(arguments))
    return call if isinstance(tools.parse(call), tools.ToolRequest) else None
