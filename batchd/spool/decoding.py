"""The bytes of a task file become JSON values, or problems that say where and how to fix them."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from batchd.errors import Problem, cut

#: Deeper than any sensible metadata or schema,
#: and far from where an encoder would overflow its stack.
MAX_DEPTH = 64

#: What is shown of a key; a place has at most 64 of them.
_KEY = 200

Place = tuple[str | int, ...]

#: The endings of a file with one task a line, of a plain prompt, and all that a task file may have;
#: a file with another one is taken from the inbox, and refused.
LINES, PLAIN = (".jsonl", ".ndjson"), (".md", ".txt")
ENDINGS = (".json", *LINES, *PLAIN)

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_TYPOGRAPHIC = frozenset("\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Doubled(dict[str, Any]):
    """An object that gives a key twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        times = Counter(name for name, _ in pairs)
        self.twice = sorted(name for name, count in times.items() if count > 1)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else _Doubled(pairs)


def text(data: bytes) -> str | Problem:
    """Return a file's text, without its byte order mark."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return Problem("", f"the file is {name}", "save it as UTF-8")
    if b"\0" in data:
        why = "the file holds zero bytes: it is UTF-16, no text, or a crash has cut it off"
        return Problem("", why, "save it as UTF-8, or write it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8", "replace")
        return Problem(
            _line_and_column(before, len(before)),
            f"byte 0x{data[error.start]:02x} is not UTF-8"
            if error.object == data
            else "this is not UTF-8",
            "save the file as UTF-8",
        )


def json_value(source: str) -> Any | Problem:
    """Return the value of one JSON text; ``unfit`` says what must not be in it."""
    try:
        return json.loads(source, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        at = _line_and_column(source, error.pos)
        return Problem(at, *_explain(source, error))
    except RecursionError:
        return Problem("", "it is nested too deep")
    except ValueError:
        return Problem("", "it holds a number of more than 4300 digits")


def _line_and_column(source: str, position: int) -> str:
    lines = re.split(r"\r\n|\r|\n", source[:position])
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


def _explain(source: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """Return what is wrong with broken JSON, and for the commonest mistakes the fix."""
    here = source[error.pos : error.pos + 2]
    before = source[: error.pos].rstrip()
    # Python 3.13 points at the comma itself, older ones at what follows it.
    after = source[error.pos + 1 :].lstrip() if here[:1] == "," else source[error.pos :]
    if (before.endswith(",") or here[:1] == ",") and after[:1] in {"}", "]"}:
        return "there is a comma before the closing bracket", "remove that comma"
    if here[:1] == "'":
        return "text is in single quotes", 'use double quotes: "…"'
    if here[:1] in _TYPOGRAPHIC:
        return f"{here[:1]} is a typographic quote", 'write straight ones: "…"'
    if here in {"//", "/*"} or here[:1] == "#":
        return "JSON has no comments", "remove the comment"
    word = re.match(r"[A-Za-z_]\w*", source[error.pos :])
    if word and word.group() in {"True", "False", "None", "undefined"}:
        fix = {"True": "true", "False": "false"}.get(word.group(), "null")
        return f"{word.group()} is not JSON", f"write {fix}"
    if word and error.msg.startswith("Expecting property name"):
        return f"the key {word.group()} has no quotes", f'write "{word.group()}"'
    if error.msg == "Expecting value" and (found := source[error.pos :].strip()):
        return f"JSON has no value that begins with {found[:10]!r}", 'text stands in quotes: "…"'
    return _plainer(error.msg, at_end=not source[error.pos :].strip())


def _plainer(message: str, *, at_end: bool) -> tuple[str, str]:
    if message.startswith("Unterminated string"):
        return "the text that begins here never ends", 'a closing " is missing'
    if at_end:
        return "the file ends too early", "a closing bracket is missing, or it was cut off"
    if message.startswith("Invalid control character"):
        return "there is a raw line break or control character within a text", r"write \n or \t"
    if message.startswith("Invalid \\escape"):
        return "there is a single backslash within a text", r"write \\ for a backslash"
    if message.startswith("Expecting ',' delimiter"):
        return "a comma is missing before this", r"or a quote within a text lacks its backslash: \""
    if message.startswith("Expecting ':' delimiter"):
        return "a colon is missing between key and value", ""
    if message.startswith("Extra data"):
        return "a second value begins here", "for one task a line, name the file .jsonl"
    return message[:1].lower() + message[1:], ""


def unfit(value: Any) -> Iterator[tuple[Place, str]]:
    """Yield the place and the fault of whatever Python reads but JSON or UTF-8 does not have."""
    waiting: list[tuple[Place, Any]] = [((), value)]
    while waiting:
        at, item = waiting.pop()
        if len(at) > MAX_DEPTH:
            yield at[:3], f"it is nested deeper than {MAX_DEPTH} levels"
            return
        if isinstance(item, dict):
            if isinstance(item, _Doubled):
                yield from (((*at, key), "this key is given twice") for key in item.twice)
            waiting += [((*at, key), below) for key, below in reversed(item.items())]
            if any(map(broken, item)):
                yield at, "a key holds half of a surrogate pair, which is not a character"
        elif isinstance(item, list):
            waiting += [((*at, index), item[index]) for index in reversed(range(len(item)))]
        elif isinstance(item, float) and not math.isfinite(item):
            yield at, "NaN, Infinity and numbers beyond 1e308 are not JSON"
        elif isinstance(item, str) and not item.isascii() and (half := _SURROGATE.search(item)):
            yield (
                at,
                f"it holds {ascii(half.group())[1:-1]}, half of a surrogate pair: not a character",
            )


def broken(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair."""
    return not text.isascii() and bool(_SURROGATE.search(text))


def written(place: Place) -> str:
    """Return a place as users write it: ``tasks[3].limits.timeout_s``;
    of a long key, head and tail.
    """
    return "".join(map(_step, place)).removeprefix(".")


def _step(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    # A long key may stand above thousands of problems:
    # written out in each, they would take gigabytes.
    short = cut(key, _KEY)
    return f".{short}" if short.isidentifier() else f"[{short!a}]"
