"""How text fits into the columns of a terminal: measured, cut, wrapped at spaces."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterator

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
