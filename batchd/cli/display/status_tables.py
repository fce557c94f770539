"""The tables of ``batchd status``: of batches, and of the tasks of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchd.cli.display import tables
from batchd.observe.standstill import WaitReasons
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import view
from batchd.words import at_least, counted, moment, money


def batches(rows: Sequence[BatchRow], prompts: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines of a table of batches;
    ``prompts``: by batch, of its first task, as far as they are known.
    """
    cells = [
        (
            r.batch.name,
            r.status,
            f"{r.finished:,}/{r.tasks:,}",
            f"{r.finished - r.completed:,}" if r.finished > r.completed else "",
            f"{r.input_tokens + r.output_tokens:,}",
            at_least(r.cost_usd, r.known_usd),
            unsettled(r),
            moment(r.batch.received_at),
            tables.line((prompts or {}).get(r.batch.name, "")),
        )
        for r in rows
    ]
    heads = (
        *("BATCH", "STATUS", "DONE", "BAD", "TOKENS", "COST", "UNSETTLED", "RECEIVED"),
        "FIRST PROMPT",
    )
    return tables.table(
        heads,
        cells,
        right=("DONE", "BAD", "TOKENS", "COST", "UNSETTLED"),
        flexible="BATCH",
        extra=("UNSETTLED",),
        texts=("FIRST PROMPT",),
        brief=("FIRST PROMPT",),
    )


def tasks(rows: Sequence[TaskRow], prompts: Mapping[str, str], waiting: WaitReasons) -> list[str]:
    """Return the lines of a table of one batch's tasks;
    ``prompts``: theirs, as far as they are known.
    """
    cells = [
        (
            t.ref.task,
            view.word(t.status, t.reason),
            str(t.round),
            str(t.calls),
            f"{t.input_tokens + t.output_tokens:,}",
            money(t.cost_usd),
            unsettled(t),
            tables.line(prompts.get(t.ref.task, "")),
            waiting.in_short(t),
        )
        for t in rows
    ]
    heads = (
        *("TASK", "STATUS", "ROUND", "CALLS", "TOKENS", "COST", "UNSETTLED"),
        *("PROMPT", "WHY"),
    )
    return tables.table(
        heads,
        cells,
        right=("ROUND", "CALLS", "TOKENS", "COST", "UNSETTLED"),
        flexible="TASK",
        extra=("UNSETTLED",),
        texts=("PROMPT", "WHY"),
        brief=("PROMPT",),
    )


def unsettled(row: BatchRow | TaskRow) -> str:
    """Return what calls without an answer on record may have cost on top; empty: there are none."""
    if not row.unsettled_calls:
        return ""
    # Nothing at most: they cost nothing, or their price is unknown.
    usd = row.unsettled_usd
    return f"≤ {money(usd)}" if usd else counted(row.unsettled_calls, "call")
