"""The picture of what runs, on a terminal: a bar for the whole and a line for each running task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from rich import live
from rich.console import Console
from rich.text import Text

from batchd.cli.display import tables
from batchd.cli.display.formatting import MARKS
from batchd.cli.display.progress import Picture, ProgressScreen
from batchd.cli.display.tables import Column
from batchd.records import Tally, TaskStatus
from batchd.store.rows import TaskRow
from batchd.views import last
from batchd.words import duration, money

_WIDTH = 80
#: Columns of the bar.
_BAR = 24
_STYLES = {
    "✓": "green",
    "✗": "red",
    "◷": "yellow",
    "○": "yellow",
    "‖": "yellow",
    "▸": "cyan",
    "↻": "bold",
}


class LivePicture(ProgressScreen):
    """News scroll by above, the picture stays below and is gone at the end."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._console.width = min(_WIDTH, self._console.width)
        # Redrawn by show() alone: no thread that outlives it.
        self._live = live.Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(Text(""))
        self._live.stop()

    def show(self, news: Sequence[str], picture: Picture) -> None:
        """Print the news above, and draw the picture again."""
        for line in news:
            text = Text.assemble(
                (f"{time.strftime('%H:%M:%S')} ", "dim"), (line[:1], _STYLES.get(line[:1], ""))
            )
            self._console.print(text.append(line[1:]), overflow="ellipsis", no_wrap=True)
        self._live.update(self._draw(picture), refresh=True)

    def _draw(self, picture: Picture) -> Text:
        room, now = max(1, self._console.height - 4), time.time()
        columns: tuple[Column[TaskRow], ...] = (
            Column("", lambda t: t.ref.task),
            Column("", lambda t: "waiting" if t.status is TaskStatus.PARKED else last(t.step).then),
            Column("", lambda t: f"round {t.round}", right=True),
            Column("", lambda t: duration(now - (t.started_at or now)), right=True),
            Column("", lambda t: picture.prompts.get(t.ref, "")),
        )
        rows = tables.lines(picture.running[:room], columns, heads=False, width=self._console.width)
        shown = [Text.from_ansi(row) for row in rows]
        if (more := len(picture.running) - room) > 0:
            shown.append(Text(f"… and {more} more", "dim"))
        return Text("\n", no_wrap=True, overflow="ellipsis").join([self._whole(picture), *shown])

    def _whole(self, picture: Picture) -> Text:
        """Return the line about all batches: how much is done, and what it took."""
        batches = picture.batches
        total, done = sum(b.tasks for b in batches), sum(b.finished for b in batches)
        failed = sum(b.failed for b in batches)
        tally = sum((b.tally for b in batches), Tally())
        full = _BAR * done // max(1, total)
        return Text.assemble(
            ("━" * full, "green"),
            ("━" * (_BAR - full), "dim"),
            (f" {done}/{total}", "bold"),
            (f" {MARKS['error']} {failed}" if failed else "", "red"),
            f" {tally.total_tokens:,} tokens",
            f" {money(tally.cost_usd)}",
            (f" {duration(time.monotonic() - picture.begun)}", "dim"),
        )
