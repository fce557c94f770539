"""Tasks that ended lately, as `top` lists them where there is room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from batchd.cli.top.columns import Column, table
from batchd.observe.snapshot import Glimpsed
from batchd.store.rows import TaskRow
from batchd.views import view
from batchd.words import compact, money, span

_STYLES = {"completed": "green", "timeout": "yellow", "cancelled": "yellow", "error": "red"}
#: Fewer lines than these show nothing: a head and a task.
_MIN_LINES = 2


def lines(glimpsed: Glimpsed, width: int, height: int) -> list[Text]:
    """Return a table of as many tasks as have room; nothing where none ended lately."""
    shown = glimpsed.ended[: height - 1]
    if height < _MIN_LINES or not shown:
        return []
    found = table(_columns(glimpsed), shown, width, title="ENDED LATELY")
    found[0].stylize("dim underline")
    found[0].pad_right(max(0, width - found[0].cell_len))
    return found


def _columns(glimpsed: Glimpsed) -> Sequence[Column[TaskRow]]:
    return (
        Column(head="TASK", cell=lambda t: str(t.ref), flexible=True, name=True, least=20),
        Column(head="HOW", cell=_how, least=9),
        Column(head="TIME", cell=_took, right=True, least=6, rank=2),
        Column(
            head="TOKENS",
            cell=lambda t: compact(t.input_tokens + t.output_tokens),
            right=True,
            least=7,
            rank=3,
        ),
        Column(head="COST", cell=lambda t: money(t.cost_usd), right=True, least=7, rank=1),
        Column(
            head="PROMPT",
            cell=lambda t: glimpsed.prompts.get(t.ref, ""),
            flexible=True,
            least=20,
            rank=4,
        ),
    )


def _how(row: TaskRow) -> Text:
    return Text(view.said(row.status, row.reason, row.round), _STYLES.get(row.status, ""))


def _took(row: TaskRow) -> str:
    if row.started_at is None or row.finished_at is None:
        return ""
    return span(max(0.0, row.finished_at - row.started_at))
