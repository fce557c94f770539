"""Row records: each field that people look at, and what it is made of."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from batchd.records import Ref, TaskStatus
from batchd.records.needs import needs_of_column
from batchd.store.fold import LedgerAmounts
from batchd.store.lookups import BATCH_COLUMNS, to_batch, to_problems
from batchd.store.rows import BatchRow, TaskRow

#: The fields of a task's row that are no column of that name.
_TASK_MADE = {
    "directory": "CASE t.dir WHEN '' THEN b.outbox || '/' || b.name || '/' || t.name ELSE t.dir END",
    "round": "t.rounds + t.round_open",
    "attempts": "t.attempt",
    "queued_at": "b.received_at",
}
_TASK = {f.name: _TASK_MADE.get(f.name, f"t.{f.name}") for f in fields(TaskRow) if f.name != "ref"}
TASKS = (
    f"SELECT b.name, t.name, {', '.join(_TASK.values())}"  # noqa: S608 (constants)
    " FROM tasks t JOIN batches b ON b.id = t.batch"
)

_OPEN = (
    "(SELECT count(*) FROM tasks t WHERE t.batch = b.id AND t.published = 0 AND t.status = '{}')"
)
#: The fields of a batch's row that are no column of that name:
#: sums over the ledger, and what is made of others.
_BATCH_MADE = {
    **{f.name: f"coalesce(sum(s.{f.name}), {f.default})" for f in fields(LedgerAmounts)},
    "cost_usd": "CASE coalesce(sum(s.unpriced_calls), 0)"
    " WHEN 0 THEN coalesce(sum(s.input_usd + s.output_usd), 0.0) END",
    "known_usd": "coalesce(sum(s.input_usd + s.output_usd), 0.0)",
    "running": _OPEN.format(TaskStatus.RUNNING),
    "parked": _OPEN.format(TaskStatus.PARKED),
}
_BATCH = {
    f.name: _BATCH_MADE.get(f.name, f"b.{f.name}")
    for f in fields(BatchRow)
    if f.name not in {"batch", "queued"}
}
BATCHES = (
    f"SELECT {', '.join(_BATCH.values())}, {BATCH_COLUMNS}"  # noqa: S608 (constants)
    " FROM batches b LEFT JOIN spend s ON s.batch = b.id"
)

#: What tasks can be sorted by. What is not known comes last, whichever way.
SORTS = {
    "": "t.id",
    "id": "t.name COLLATE NOCASE",
    "status": "t.status || ' ' || coalesce(t.reason, '')",
    "model": "t.model",
    "rounds": _TASK["round"],
    "calls": "t.calls",
    "tokens": "t.input_tokens + t.output_tokens",
    "usd": "t.cost_usd",
    "started_at": "t.started_at",
    "took_s": "t.finished_at - t.started_at",
}
#: Tasks of batch ?1, of the statuses in the JSON list ?2 (empty:
#: all), with the text ?3 (empty: any).
MATCHING = (
    " WHERE t.batch = ?1 AND (?2 = '[]' OR t.status IN (SELECT value FROM json_each(?2)))"
    " AND (?3 = '' OR instr(lower(t.name || char(10) || t.model || char(10) || t.message || char(10)"
    " || replace(coalesce(t.reason, ''), '_', ' ')), lower(?3)))"
)


def task_row(row: tuple[Any, ...]) -> TaskRow:
    """Return the record of a row of ``TASKS``."""
    batch, task, *values = row
    known = dict(zip(_TASK, values, strict=True))
    known["status"] = TaskStatus(known["status"])
    known["estimated"] = bool(known["estimated"])
    known["published"] = bool(known["published"])
    known["after"] = tuple(known["after"].split()) if known["after"] else ()
    known["needs"] = str(needs_of_column(known["needs"])) if known["needs"] else ""
    return TaskRow(ref=Ref(batch, task), **known)


def batch_row(row: tuple[Any, ...]) -> BatchRow:
    """Return the record of a row of ``BATCHES``."""
    known = dict(zip(_BATCH, row, strict=False))
    known["problems"] = to_problems(known["problems"])
    begun = ("running", "parked", "completed", "timeout", "error", "cancelled")
    return BatchRow(
        batch=to_batch(row[len(_BATCH) :]),
        queued=known["tasks"] - sum(known[name] for name in begun),
        **known,
    )
