"""Tables for a terminal: columns that say what they show, laid out for the width that there is.

Not rich's own table: that costs ten times as much, once a second and with every key.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from rich.console import Console, Group
from rich.text import Text

from batchd.cli.display import conversation_lines
from batchd.cli.display.formatting import colours_wanted
from batchd.console import name_in
from batchd.log import escape

T = TypeVar("T")
Cell: TypeAlias = Text | str

_GAP = 2
#: So much of a title is always shown.
_LONGEST_TITLE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[T]):
    """One column of a table."""

    head: str
    cell: Callable[[T], Cell]
    right: bool = False
    #: Columns that it always has: so that the table stands still
    #: while figures grow, or that a name can be recognised.
    least: int = 0
    #: Whether it is cut where the line would be too long.
    flexible: bool = False
    #: Whether it is cut in the middle: it holds names, which may begin alike.
    name: bool = False
    #: Where there is too little room,
    #: the columns with the highest rank are left out first; 0: never.
    rank: int = 0


def table(
    columns: Sequence[Column[T]], items: Sequence[T], width: int, *, title: str
) -> list[Text]:
    """Return the head, which begins with a title, and a line for each item;
    what cells say is neutralised here.
    """
    least = max(columns[0].least, min(len(title), _LONGEST_TITLE))
    columns = [replace(columns[0], head=title, least=least), *columns[1:]]
    heads = [Text(escape(column.head)) for column in columns]
    cells = [[column.cell(item) for column in columns] for item in items]
    rows = [
        [cell if isinstance(cell, Text) else Text(escape(cell)) for cell in row] for row in cells
    ]
    natural = [
        max(column.least, *(row[place].cell_len for row in (heads, *rows)))
        for place, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))

    def needed() -> int:
        least = (columns[p].least if columns[p].flexible else natural[p] for p in kept)
        return sum(least) + _GAP * (len(kept) - 1)

    while needed() > width and (ranked := [p for p in kept if columns[p].rank]):
        kept.remove(max(ranked, key=lambda p: columns[p].rank))
    # Flexible ones share what the others leave, the first ones first.
    room = width - _GAP * (len(kept) - 1)
    room -= sum(natural[place] for place in kept if not columns[place].flexible)
    sharing = sum(columns[place].flexible for place in kept)
    for place in kept:
        if columns[place].flexible:
            most = max(columns[place].least, room // sharing)
            natural[place] = max(1, min(natural[place], most))
            room -= natural[place]
            sharing -= 1
    shown = [(place, columns[place], natural[place]) for place in kept]
    return [
        _line([(row[place], column, wide) for place, column, wide in shown])
        for row in (heads, *rows)
    ]


def bar(part: float, width: int, style: str = "") -> Text:
    """Return a bar that is filled by ``part``, 0 to 1;
    what has begun shows, and only what is full is full.
    """
    part = min(1.0, max(0.0, part))
    full = int(part * width) if part in {0.0, 1.0} else min(width - 1, max(1, round(part * width)))
    return Text.assemble(("█" * full, style), ("░" * (width - full), "dim"))


def _line(cells: Sequence[tuple[Text, Column[T], int]]) -> Text:
    line = Text(no_wrap=True)
    for text, column, width in cells:
        if line:
            line.append(" " * _GAP)
        cut = Text(name_in(text.plain, width)) if column.name else text.copy()
        cut.truncate(width, overflow="ellipsis")
        gap = " " * (width - cut.cell_len)
        line.append_text(Text(gap) + cut if column.right else cut + Text(gap))
    return line


class Canvas:
    """Renders whole screens."""

    def __init__(self, *, ascii_only: bool, styled: bool = True) -> None:
        self._ascii = ascii_only
        # Sixteen colours, which every theme makes readable on its own background.
        self._console = Console(
            file=io.StringIO(),
            force_terminal=styled,
            color_system="standard" if styled else None,
            no_color=not colours_wanted(),
            highlight=False,
            markup=False,
            emoji=False,
        )

    def render(self, lines: Sequence[Text], width: int) -> list[str]:
        """Return a string for each line, none of them wider than ``width``."""
        if not lines:
            return []
        self._console.width = width
        with self._console.capture() as capture:
            self._console.print(Group(*lines), no_wrap=True, overflow="ellipsis", crop=True)
        shown = [line.rstrip() for line in capture.get().split("\n")[:-1]]
        return [conversation_lines.plain(line) for line in shown] if self._ascii else shown
