"""Tool calls that a model wrote as text.

Two ways, both strict about the whole answer, so that an answer which only talks about tool calls makes none:
the text protocol (one fenced bash block), and call objects written out by models that know
of native calls but do not make them (seen with qwen2.5-coder behind llama.cpp).
"""

from __future__ import annotations

import json
import re
from typing import Any

from batchd.agent import tools
from batchd.records import Answer, ToolCall
from batchd.records.unicode import valid

_BLOCK = re.compile(r"^```(?:bash|sh|shell)[ \t]*\n(.*?)(^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_WRAPPING = re.compile(r"^[ \t]*(?:```\w*|</?tool_calls?>)[ \t]*$", re.MULTILINE)
_TAG = re.compile(r"</?tool_calls?>")
_JSON = json.JSONDecoder(strict=False)  # raw newlines in strings allowed


def calls(answer: Answer, protocol: str, *, native_seen: bool) -> tuple[tuple[ToolCall, ...], bool]:
    """Return the tool calls of an answer, and whether they are answered in text.

    ``protocol`` is ``native``, ``text`` or ``auto``.
    """
    if protocol == "text":
        return bash_block(answer), True
    if answer.tool_calls or protocol == "native" or native_seen:
        return answer.tool_calls, False
    return call_objects(answer.content), False


def bash_block(answer: Answer) -> tuple[ToolCall, ...]:
    """Return the first bash block of an answer as a call of ``shell``.

    A block without its end was ended by the stop sequence, and is whole; one that was cut
    at the output limit becomes a call with broken arguments, which is refused.
    """
    match = _BLOCK.search(answer.content)
    command = match.group(1).strip("\n") if match else ""
    if match is None or not command.strip():
        return ()
    arguments = json.dumps({"command": command}, ensure_ascii=False)
    if answer.finish_reason == "length" and not match.group(2):
        arguments = arguments[:-1]
    return (ToolCall("text", "shell", arguments),)


def call_objects(content: str) -> tuple[ToolCall, ...]:
    """Return the calls of an answer that consists of nothing but valid call objects."""
    text = _TAG.sub("\n", _WRAPPING.sub("", content)).strip()
    found: list[ToolCall] = []
    while text:
        try:
            value, end = _JSON.raw_decode(text)
        except (ValueError, RecursionError):
            return ()
        batch = value if isinstance(value, list) else [value]
        made = [_call(item, f"call_{len(found) + i}") for i, item in enumerate(batch)]
        if not made or None in made:
            return ()
        found += [call for call in made if call]
        text = text[end:].lstrip(" \t\r\n,")
    return tuple(found)


def _call(value: Any, call_id: str) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if value.keys() - {"name", "arguments", "id", "type"}:
        return None
    arguments = value.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    # Half a letter that stood escaped in the answer is whole only now.
    call = ToolCall(call_id, value["name"], valid(arguments))
    return call if isinstance(tools.parse(call), tools.Request) else None
