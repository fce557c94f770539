"""Log lines as people read them on a terminal: when, whose, what, and what matters of it.

And how text fits into the columns of a terminal: measured, cut, wrapped at spaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

#: Columns of a terminal that does not say how many it has.
_USUAL = 80
#: Columns that a batch's name has at least, where it is cut before a task's.
_LEAST_NAME = 7
#: What the further lines of a text are indented by.
_HANG = "  "


def columns_of(terminal: int) -> int:
    """Return the columns of a terminal, by its descriptor; 80 where it does not say."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(terminal).columns or _USUAL
    return _USUAL


def width_of(text: str) -> int:
    """Return how many columns of a terminal ``text`` takes:
    Chinese letters two, accents and joiners none.
    """
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(c) in {"Mn", "Me", "Cf"}
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def clipped(text: str, width: int) -> str:
    """Return text cut to ``width`` columns, the cut shown."""
    if width_of(text) <= width:
        return text
    kept, used = "", 1
    for c in text:
        used += width_of(c)
        if used > width:
            break
        kept += c
    return f"{kept}…"


def pinched(text: str, width: int) -> str:
    """Return text cut in its middle to ``width`` columns, the cut shown:
    of names both ends tell one from another.
    """
    if width_of(text) <= width:
        return text
    ahead = clipped(text, (width + 2) // 2)  # with the mark of the cut
    room, behind = width - width_of(ahead), ""
    for c in reversed(text):
        room -= width_of(c)
        if room < 0:
            break
        behind = c + behind
    return ahead + behind


def name_in(name: str, width: int) -> str:
    """Return the name of a batch, or ``BATCH/TASK``, cut to ``width`` columns in its middle:
    within the batch's, as long as that leaves something of it.
    """
    batch, slash, task = name.partition("/")
    room = width - width_of(slash + task)
    if slash and room >= _LEAST_NAME:
        return pinched(batch, room) + slash + task
    return pinched(name, width)


def wrapped(line: str, width: int) -> Iterator[str]:
    """Yield a line in pieces of at most ``width`` columns;
    at spaces, where that leaves none too short.
    """
    while width_of(line) > width and len(line) > 1:
        end = _fits(line, width)
        space = line.rfind(" ", end // 2, end + 1)
        yield line[: space if space > 0 else end]
        line = line[space + 1 if space > 0 else end :]
    yield line


def _fits(line: str, width: int) -> int:
    """Return how many characters fit, at least one."""
    if line[:width].isascii():
        return max(1, width)
    used = 0
    for place, letter in enumerate(line):
        used += width_of(letter)
        if used > width:
            return max(1, place)
    return len(line)


def hanging(line: str, width: int) -> Iterator[str]:
    """Yield a line in pieces of at most ``width`` columns, all but the first indented below it."""
    margin = line[: len(line) - len(line.lstrip(" "))] + _HANG
    first, *_ = wrapped(line, width)
    yield first
    if rest := line[len(first) :].lstrip(" "):
        yield from (margin + piece for piece in wrapped(rest, max(1, width - len(margin))))


#: What stands elsewhere in the line, or is for programs alone.
_LEFT_OUT = frozenset({"timestamp", "level", "event", "batch", "task", "worker", "exception"})
#: Fields that say enough without their names.
_BARE = frozenset({"message", "feedback", "purpose", "status", "reason", "model", "by"})
#: Shorter names of those that OpenTelemetry gives.
_NAMES: Mapping[str, str] = {
    "gen_ai.request.model": "model",
    "gen_ai.usage.input_tokens": "in",
    "gen_ai.usage.cache_read.input_tokens": "cached",
    "gen_ai.usage.output_tokens": "out",
    "gen_ai.response.finish_reasons": "ended",
}
#: The escape sequences of the levels that stand out.
_COLOURS = {"warning": "33", "error": "31", "critical": "31"}
#: The part of a line that the name of a batch, or of a task, may take.
_NAMES_PART = 3
#: Levels at which a line may be cut at the terminal's edge.
_BRIEF = frozenset({"debug", "info"})


def text(line: Mapping[str, Any], width: int) -> str:
    """Return a log line, with its end; ``width``: the columns there are for it, 0 for any number.

    What is only news takes one line of a terminal;
    a warning takes as many as it needs, and so does what has a message.
    """
    at = time.strftime("%H:%M:%S")
    level = "" if line["level"] in _BRIEF else f"{line['level']}: "
    whose = "/".join(str(line[key]) for key in ("batch", "task") if line.get(key))
    brief = bool(width) and line["level"] in _BRIEF and "message" not in line
    if brief:
        whose = name_in(whose, width // _NAMES_PART)  # what happened is to have room, too
    what = f"{whose} " * bool(whose) + level + str(line["event"]).replace("_", " ")
    said = ", ".join(_fields(line))
    whole = f"{at} {what}{': ' * bool(said)}{said}"
    pieces = [clipped(whole, width)] if brief else [*hanging(whole, width)] if width else [whole]
    return "\n".join([*pieces, *str(line.get("exception", "")).splitlines()]) + "\n"


def coloured(text: str, level: str) -> str:
    """Return a line, with its end, in the colour of its level,
    unless somebody wants none: no-color.org.
    """
    colour = "" if os.environ.get("NO_COLOR") else _COLOURS.get(level, "")
    return f"\x1b[{colour}m{text[:-1]}\x1b[0m\n" if colour else text


def _fields(line: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a line's fields say; nothing of those that are empty."""
    for key, value in line.items():
        if key in _LEFT_OUT or value in ("", None, [], {}):
            continue
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            # A model names its tools: what is in a list has not been neutralised yet.
            shown = " ".join(word if word.isprintable() else json.dumps(word) for word in value)
        elif isinstance(value, str):
            shown = value
        else:
            shown = json.dumps(value, default=str, skipkeys=True)
        name = _NAMES.get(key, key)
        yield shown if name in _BARE else f"{name} {shown}"
