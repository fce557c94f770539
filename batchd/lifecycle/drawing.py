"""The drawing of the lifecycle's table in docs/architecture.md: `make drawing`.

A test holds the page to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from batchd.lifecycle.entry import Phase
from batchd.lifecycle.table import TABLE, Transition

BEGIN, END = "<!-- drawn by `make drawing` -->\n", "<!-- end of the drawing -->\n"


def drawn() -> str:
    """Return the table in Markdown: by input, in the order of a task's life;
    phases that do alike share a line.
    """
    lines = ["| in | comes | if | then | do |", "| --- | --- | --- | --- | --- |"]
    alike: dict[tuple[str, ...], list[Phase]] = {}
    for rows in TABLE.values():
        for row in rows:
            alike.setdefault(tuple(_cells(row)), []).append(row.phase)
    for cells, phases in alike.items():
        lines.append(" | ".join((f"| {', '.join(phases)}", *cells)) + " |")
    return "\n".join(lines) + "\n"


def put(page: str) -> str:
    """Return a page with the table in place of the one that it has.

    Raises ``ValueError`` where it has no place for it.
    """
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"it has no lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}{drawn()}{END}{after}"


def _cells(row: Transition) -> Iterator[str]:
    """Yield what a row says beside its phase."""
    yield f"`{row.input.__name__}`"
    yield row.when.__name__.replace("_", " ") if row.when else ""
    if row.then is None:
        yield "queued or held"
    else:
        yield "the same" if row.then is row.phase else f"**{row.then}**"
    yield ", ".join(f"`{make.__name__}`" for make in row.makes)


if __name__ == "__main__":
    for each in map(Path, sys.argv[1:]):
        each.write_text(put(each.read_text("utf-8")), "utf-8")
