"""Tables and lists of facts for people:
in the columns of a terminal nothing is lost, in a pipe a row is a line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from batchd.cli.display.formatting import coloured, room
from batchd.console import clipped, width_of, wrapped
from batchd.log import escape

_GAP = "  "
#: A column of text that has less room than these stands below its row instead.
_MIN_TEXT_COLUMNS = 24
#: A name gets so many columns at the least.
_LEAST_NAME = 8
#: Columns of a fact's name at the least: so lists of facts look alike.
_NAME = 9
#: Of a prompt, so many characters stand in a pipe.
_LINE = 100


def line(text: str) -> str:
    """Return the beginning of a prompt, or of what a model said, as one line."""
    return clipped(" ".join(text[: 4 * _LINE].split()), _LINE)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    flexible: str = "",
    extra: Collection[str] = (),
    texts: Collection[str] = (),
    brief: Collection[str] = (),
) -> list[str]:
    """Return the lines of a table; cells are neutralised here,
    and coloured where they are a status.

    Columns named in ``right`` are aligned to the right. Where the terminal is too narrow, the one
    named ``flexible`` is wrapped. Columns of ``extra`` and ``texts`` are left out where no row has
    any. Those of ``texts`` are wrapped by words, or cut, if they are ``brief``,
    and stand below their row where they would get too little room.
    """
    # What a check printed has lines.
    cells = [[escape(" ".join(cell.split("\n"))) for cell in row] for row in rows]
    optional = {*extra, *texts}
    used = {head for i, head in enumerate(heads) if any(row[i] for row in cells)}
    shown = [i for i, head in enumerate(heads) if head not in optional or head in used]
    natural = {i: max(width_of(row[i]) for row in [heads, *cells]) for i in shown}
    flex = {i for i in shown if heads[i] == flexible}
    long = [i for i in shown if heads[i] in texts]
    base = [i for i in shown if i not in long]
    least = {
        i: min(natural[i], _LEAST_NAME if i in flex else _MIN_TEXT_COLUMNS) for i in (*flex, *long)
    }
    needed = sum(least.get(i, natural[i]) for i in shown) + len(_GAP) * (len(shown) - 1)
    inline, below = (shown, []) if needed <= room() else (base, long)
    layout = _Layout(
        heads=heads,
        columns=inline,
        widths=_widths(inline, natural, least, room()),
        right=frozenset(right),
        brief=frozenset(brief),
    )
    found = [*layout.lines(heads, plain=True)]
    for row in cells:
        found += layout.lines(row)
        for i in below:
            text = clipped(row[i], room() - len(_GAP)) if heads[i] in brief else row[i]
            found += [_GAP + piece for piece in wrapped(text, room() - len(_GAP)) if piece]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Which columns stand beside each other, and how wide each is."""

    heads: Sequence[str]
    columns: Sequence[int]
    widths: Mapping[int, int]
    right: frozenset[str]
    brief: frozenset[str]

    def lines(self, row: Sequence[str], *, plain: bool = False) -> Iterator[str]:
        """Yield a row in as many lines as its longest cell takes."""
        cells = [[*self._pieces(row[i], i)] for i in self.columns]
        for pieces in zip_longest(*cells, fillvalue=""):
            parts = []
            for i, piece in zip(self.columns, pieces, strict=True):
                gap = " " * (self.widths[i] - width_of(piece))
                text = piece if plain else coloured(piece, row[i])
                parts.append(gap + text if self.heads[i] in self.right else text + gap)
            yield _GAP.join(parts).rstrip()

    def _pieces(self, cell: str, column: int) -> Iterator[str]:
        width = self.widths[column]
        return (
            iter([clipped(cell, width)])
            if self.heads[column] in self.brief
            else wrapped(cell, width)
        )


def _widths(
    columns: Sequence[int], natural: Mapping[int, int], least: Mapping[int, int], whole: int
) -> dict[int, int]:
    """Return how wide each column is:
    those that may be narrower than they are long share what the others leave.
    """
    widths = {i: natural[i] for i in columns}
    sharing = sorted((i for i in columns if i in least), key=lambda i: natural[i])
    left = whole - len(_GAP) * (len(columns) - 1)
    left -= sum(natural[i] for i in columns if i not in least)
    for place, i in enumerate(sharing):
        widths[i] = max(least[i], min(natural[i], left // (len(sharing) - place)))
        left -= widths[i]
    return widths


def facts(named: Mapping[str, str], margin: str = "") -> Iterator[str]:
    """Yield what is known of one thing, a fact a line, further lines below its beginning;
    empty facts are left out.

    A fact of several lines keeps them.
    """
    width = max(_NAME, *(len(name) for name, fact in named.items() if fact))
    for name, fact in named.items():
        head = f"{margin}{name:<{width}}{_GAP}"
        for text in fact.splitlines():
            for piece in wrapped(escape(text.rstrip()), max(20, room() - len(head))):
                yield f"{head}{piece}".rstrip()
                head = " " * len(head)
