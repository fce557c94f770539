"""Tables: rows as text for people, as JSON for programs, as CSV for spreadsheets.

Not rich's: its tables put no long text below its row, and take 45 ms to load.
"""

from __future__ import annotations

import csv
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Generic, Literal, TypeAlias, TypeVar

from batchd.cli.display.formatting import coloured, print_json, room
from batchd.console import clipped, width_of, wrapped
from batchd.log import escape, escape_text

T = TypeVar("T")
Form: TypeAlias = Literal["text", "json", "csv"]

GAP = "  "
#: A column of text that has less room than these stands below its row instead.
_MIN_TEXT_COLUMNS = 24
#: A name gets so many columns at the least.
_LEAST_NAME = 8
#: Columns of money whose names do not say so.
_MONEY = frozenset({"total", "spent", "unsettled", "cache_saved"})
#: What spreadsheets take for the beginning of a formula, in whatever width it is written, …
_FORMULA = ("=", "+", "-", "@")
#: … and what some of them leave out in front of it.
_LEFT_OUT = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]*")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column of a table."""

    #: Its head; for programs, the name of its values.
    head: str
    #: What it shows of a row: a text, or a value for programs.
    of: Callable[[T], object]
    right: bool = False
    #: Where a terminal is too narrow, a ``name`` is wrapped. A ``text`` is wrapped by words, a
    #: ``line`` is cut, and both stand below their row where they would get too little room.
    #: In `top`, where each row has one line, all are cut.
    wide: Literal["", "name", "text", "line"] = ""
    #: Whether it is left out where no row says anything; texts and lines are.
    optional: bool = False
    #: So many columns `top` gives it always: the table stands still while figures grow, …
    least: int = 0
    #: … and where it has too little room, it leaves the highest ranks out first; 0: never.
    rank: int = 0

    @property
    def long(self) -> bool:
        """Whether it may stand below its row."""
        return self.wide in {"text", "line"}

    def fitted(self, cell: str, width: int) -> Iterable[str]:
        """Return the lines of a cell that has so much room."""
        return [clipped(cell, width)] if self.wide == "line" else wrapped(cell, width)


def table(rows: Iterable[T], columns: Sequence[Column[T]], as_: Form = "text") -> None:
    """Print rows. As CSV, they begin with a line of heads, and what is not known is empty."""
    if as_ == "json":
        print_json([{column.head: column.of(row) for column in columns} for row in rows])
    elif as_ == "csv":
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerow([column.head for column in columns])
        out.writerows([_value(c.head, c.of(row)) for c in columns] for row in rows)
    else:
        print(*lines(rows, columns), sep="\n")


def lines(
    rows: Iterable[T], columns: Sequence[Column[T]], *, heads: bool = True, width: int = 0
) -> Iterator[str]:
    """Yield the lines of a table for people, of at most ``width`` columns; 0: the terminal's.

    Cells are neutralised here, and coloured where they are a status.
    """
    width = width or room()
    # What a check printed has lines.
    cells = [[escape(" ".join(str(c.of(row)).split("\n"))) for c in columns] for row in rows]
    shown = [
        place
        for place, column in enumerate(columns)
        if not (column.optional or column.long) or any(row[place] for row in cells)
    ]
    if heads:
        cells.insert(0, [column.head for column in columns])
    natural = {i: max((width_of(row[i]) for row in cells), default=0) for i in shown}
    least = {
        i: min(natural[i], _MIN_TEXT_COLUMNS if columns[i].long else _LEAST_NAME)
        for i in shown
        if columns[i].wide
    }
    below = [i for i in shown if columns[i].long] if _needed(natural, least) > width else []
    beside = [i for i in shown if i not in below]
    widths = layout(columns, {i: natural[i] for i in beside}, least, width)
    for number, row in enumerate(cells):
        for line in zip_longest(*(columns[i].fitted(row[i], widths[i]) for i in beside)):
            parts = []
            for i, piece in zip(beside, line, strict=True):
                gap = " " * (widths[i] - width_of(piece or ""))
                text = coloured(piece or "", row[i]) if number or not heads else piece or ""
                parts.append(gap + text if columns[i].right else text + gap)
            yield GAP.join(parts).rstrip()
        for i in below if number or not heads else ():
            for piece in columns[i].fitted(row[i], width - len(GAP)):
                yield from [GAP + piece] if piece else []


def layout(
    columns: Sequence[Column[T]], natural: Mapping[int, int], least: Mapping[int, int], width: int
) -> dict[int, int]:
    """Return how wide columns are, each by its place; those of a rank may be left out.

    ``natural``: how wide they would be; ``least``: of those that may be narrower, how narrow.
    """
    widths = dict(natural)
    while _needed(widths, least) > width and (ranked := [i for i in widths if columns[i].rank]):
        del widths[max(ranked, key=lambda i: columns[i].rank)]
    # Those that may be narrower than they are long share what the others leave.
    left = width - len(GAP) * (len(widths) - 1)
    left -= sum(w for i, w in widths.items() if i not in least)
    sharing = sorted((i for i in widths if i in least), key=natural.__getitem__)
    for place, i in enumerate(sharing):
        widths[i] = max(least[i], min(natural[i], left // (len(sharing) - place)))
        left -= widths[i]
    return widths


def _needed(natural: Mapping[int, int], least: Mapping[int, int]) -> int:
    return sum(least.get(i, w) for i, w in natural.items()) + len(GAP) * (len(natural) - 1)


def _value(name: str, value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula, and no terminal obeys:
    models and task files write its text.

    Money is decimal, with two places at the least,
    so that cents look like cents: ``0.10``, ``0.00004``.
    """
    if isinstance(value, float) and (name in _MONEY or name.endswith("_usd")):
        whole, _, part = f"{value:.10f}".partition(".")
        return f"{whole}.{part.rstrip('0'):0<2}"
    if not isinstance(value, str):
        return value
    text = escape_text(value)
    begins = unicodedata.normalize("NFKC", _LEFT_OUT.sub("", text, count=1)[:1])
    return f"'{text}" if begins.startswith(_FORMULA) else text
