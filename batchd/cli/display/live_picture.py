"""The picture of what runs, on a terminal: a bar for the whole and a line for each running task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, Self

from rich import live
from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchd.cli.display.formatting import MARKS
from batchd.cli.display.progress import Picture, ProgressScreen
from batchd.records import TaskStatus
from batchd.views import last
from batchd.words import duration, money

_WIDTH = 80
_STYLES = {
    "✓": "green",
    "✗": "red",
    "◷": "yellow",
    "○": "yellow",
    "‖": "yellow",
    "▸": "cyan",
    "↻": "bold",
}
#: Of the columns before the prompt: task, step, round, time.
_JUSTIFY: Sequence[Literal["left", "right"]] = ("left", "left", "right", "right")


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

    def _draw(self, picture: Picture) -> Group:
        rows = max(1, self._console.height - 4)
        tasks = Table.grid(padding=(0, 1), expand=True)
        for justify in _JUSTIFY:
            tasks.add_column(justify=justify, no_wrap=True)
        tasks.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        now = time.time()
        for task in picture.running[:rows]:
            parked = task.status is TaskStatus.PARKED
            tasks.add_row(
                Text(task.ref.task, "bold"),
                Text(
                    "waiting" if parked else last(task.step).then,
                    "yellow" if parked else "cyan",
                ),
                Text(f"round {task.round}"),
                Text(duration(now - (task.started_at or now)), "dim"),
                Text(picture.prompts.get(task.ref, ""), "dim"),
            )
        more = len(picture.running) - rows
        rest = [Text(f"… and {more} more", "dim")] if more > 0 else []
        return Group(self._bar(picture), tasks, *rest)

    def _bar(self, picture: Picture) -> Table:
        total = sum(b.tasks for b in picture.batches)
        done = sum(b.finished for b in picture.batches)
        tokens = sum(b.tally.total_tokens for b in picture.batches)
        costs = [b.tally.cost_usd for b in picture.batches]
        cost = None if None in costs else sum(c for c in costs if c)
        bad = done - sum(b.completed for b in picture.batches)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=max(1, total), completed=done, width=24),
            Text(f"{done}/{total}", "bold"),
            Text(f"{MARKS['error']} {bad}" if bad else "", "red"),
            Text(f"{tokens:,} tokens"),
            Text(money(cost)),
            Text(duration(time.monotonic() - picture.begun), "dim"),
        )
        return bar
