"""The batches, as `top` lists them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from batchd.cli.top.columns import Column, bar
from batchd.store.rows import BatchRow
from batchd.words import at_least, compact, limit, money

_STYLES = {
    "running": "cyan",
    "parked": "yellow",
    "completed": "green",
    "cancelled": "yellow",
    "failed": "red",
    "rejected": "red",
}
_BAR, _SMALL_BAR = 10, 4
#: From here on a budget's gauge is red.
_RED_FROM = 0.9


def columns(rows: Sequence[BatchRow]) -> list[Column[BatchRow]]:
    """Return the columns that say something."""
    made: list[Column[BatchRow]] = [
        Column(head="BATCH", cell=lambda b: b.batch.name, flexible=True, name=True, least=13),
        Column(head="STATUS", cell=_status, least=9),
        Column(head="DONE", cell=_done),
        Column(head="BAD", cell=_bad, right=True, least=3),
        Column(
            head="TOKENS",
            cell=lambda b: compact(b.input_tokens + b.output_tokens),
            right=True,
            least=6,
            rank=3,
        ),
        Column(head="COST", cell=_cost, right=True, least=7, rank=1),
    ]
    if any(b.unsettled_calls for b in rows):
        made.append(Column(head="UNSETTLED", cell=_unsettled, right=True, least=9, rank=2))
    if any(b.batch.budget_usd for b in rows):
        made.append(Column(head="BUDGET", cell=_budget, rank=2))
    return made


def _status(row: BatchRow) -> Text:
    return Text(row.status, _STYLES.get(row.status, ""))


def _done(row: BatchRow) -> Text:
    if not row.tasks:
        return Text()
    gauge = bar(row.finished / row.tasks, _BAR, "green")
    return Text.assemble(gauge, f" {row.finished:,}/{row.tasks:,}")


def _bad(row: BatchRow) -> Text:
    bad = row.finished - row.completed
    return Text(f"{bad:,}" if bad else "", "red")


def _cost(row: BatchRow) -> str:
    return at_least(row.cost_usd, row.known_usd)


def _unsettled(row: BatchRow) -> str:
    usd = row.unsettled_usd
    return f"≤ {money(usd)}" if usd else "yes" if row.unsettled_calls else ""


def _budget(row: BatchRow) -> Text:
    budget = row.batch.budget_usd
    if not budget:
        return Text()
    part = ((row.cost_usd or 0.0) + row.unsettled_usd) / budget
    gauge = bar(part, _SMALL_BAR, "red" if part >= _RED_FROM else "green")
    return Text.assemble(gauge, f" {limit(budget)}")
