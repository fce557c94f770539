"""Bodies of responses: JSON from any server, read within bounds."""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec

from batchd.records.unicode import valid_throughout

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


def decode(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
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
        return _decode_untidy(body, decoder)


def item(raw: msgspec.Raw, decoder: msgspec.json.Decoder[T]) -> T | None:
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


def _decode_untidy(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Read JSON that holds lone surrogates, NaN, bytes that are not UTF-8 or a BOM."""
    try:
        text = body.decode("utf-8-sig", "replace")
        value = valid_throughout(json.loads(text, parse_constant=lambda _: None))
        return decoder.decode(json.dumps(value, ensure_ascii=False).encode())
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise UnreadableError(_what(body)) from None


def _what(body: bytes) -> str:
    start = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        return "an HTML page instead of JSON"
    if start.startswith((b"data:", b"event:")):
        return "a stream of events, which was not asked for"
    return "broken JSON" if start else "an empty body"
