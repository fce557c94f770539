"""How rows become the records that people look at: each field, and what it is made of."""

from __future__ import annotations

from typing import Any

from batchd.records import Ref, Status
from batchd.store.lookups import BATCH_COLUMNS, to_batch, to_problems
from batchd.store.rows import BatchRow, TaskRow

_TASK = {
    "reason": "t.reason",
    "message": "t.message",
    "model": "t.model",
    "priority": "t.priority",
    "directory": "CASE t.dir WHEN '' THEN b.outbox || '/' || b.name || '/' || t.name ELSE t.dir END",
    "round": "t.rounds + t.round_open",
    "calls": "t.calls",
    "input_tokens": "t.input_tokens",
    "cached_input_tokens": "t.cached_input_tokens",
    "cache_write_tokens": "t.cache_write_tokens",
    "cache_write_long_tokens": "t.cache_write_long_tokens",
    "cache_reported_tokens": "t.cache_reported_tokens",
    "cache_saved_usd": "t.cache_saved_usd",
    "output_tokens": "t.output_tokens",
    "reasoning_tokens": "t.reasoning_tokens",
    "cost_usd": "t.cost_usd",
    "unsettled_calls": "t.unsettled_calls",
    "unsettled_usd": "t.unsettled_usd",
    "step": "t.step",
    "worker": "t.worker",
    "attempts": "t.attempt",
    "crashes": "t.crashes",
    "queued_at": "b.received_at",
    "since": "t.since",
    "started_at": "t.started_at",
    "finished_at": "t.finished_at",
}
TASKS = (
    f"SELECT b.name, t.name, t.status, t.estimated, t.published, t.after, {', '.join(_TASK.values())}"  # noqa: S608 (constants)
    " FROM tasks t JOIN batches b ON b.id = t.batch"
)

_OPEN = (
    "(SELECT count(*) FROM tasks t WHERE t.batch = b.id AND t.published = 0 AND t.status = '{}')"
)
_BATCH = {
    "tasks": "b.tasks",
    "running": _OPEN.format(Status.RUNNING),
    "parked": _OPEN.format(Status.PARKED),
    "completed": "b.completed",
    "timeout": "b.timeout",
    "error": "b.error",
    "cancelled": "b.cancelled",
    "calls": "coalesce(sum(s.calls), 0)",
    "input_tokens": "coalesce(sum(s.input_tokens), 0)",
    "cached_input_tokens": "coalesce(sum(s.cached_input_tokens), 0)",
    "cache_write_tokens": "coalesce(sum(s.cache_write_tokens), 0)",
    "cache_write_long_tokens": "coalesce(sum(s.cache_write_long_tokens), 0)",
    "cache_reported_tokens": "coalesce(sum(s.cache_reported_tokens), 0)",
    "cache_saved_usd": "coalesce(sum(s.cache_saved_usd), 0.0)",
    "output_tokens": "coalesce(sum(s.output_tokens), 0)",
    "cost_usd": "CASE coalesce(sum(s.unpriced_calls), 0)"
    " WHEN 0 THEN coalesce(sum(s.input_usd + s.output_usd), 0.0) END",
    "known_usd": "coalesce(sum(s.input_usd + s.output_usd), 0.0)",
    "unsettled_calls": "coalesce(sum(s.unsettled_calls), 0)",
    "unsettled_usd": "coalesce(sum(s.unsettled_usd), 0.0)",
    "finished_at": "b.finished_at",
    "published_at": "b.published_at",
    "pruned": "b.pruned",
}
BATCHES = (
    f"SELECT {', '.join(_BATCH.values())}, b.problems, {BATCH_COLUMNS}"  # noqa: S608 (constants)
    " FROM batches b LEFT JOIN spend s ON s.batch = b.id"
)

#: What tasks can be sorted by. What is not known comes last, whichever way.
ORDERS = {
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
#: Tasks of batch ?1, of the statuses in the JSON list ?2 (empty: all), with the text ?3 (empty: any).
MATCHING = (
    " WHERE t.batch = ?1 AND (?2 = '[]' OR t.status IN (SELECT value FROM json_each(?2)))"
    " AND (?3 = '' OR instr(lower(t.name || char(10) || t.model || char(10) || t.message || char(10)"
    " || replace(coalesce(t.reason, ''), '_', ' ')), lower(?3)))"
)


def task_row(row: tuple[Any, ...]) -> TaskRow:
    """Return the record of a row of ``TASKS``."""
    batch, task, status, estimated, published, after, *values = row
    return TaskRow(
        ref=Ref(batch, task),
        status=Status(status),
        estimated=bool(estimated),
        published=bool(published),
        after=tuple(after.split()) if after else (),
        **dict(zip(_TASK, values, strict=True)),
    )


def batch_row(row: tuple[Any, ...]) -> BatchRow:
    """Return the record of a row of ``BATCHES``."""
    values = dict(zip(_BATCH, row, strict=False))
    problems, *batch = row[len(_BATCH) :]
    begun = ("running", "parked", "completed", "timeout", "error", "cancelled")
    return BatchRow(
        batch=to_batch(tuple(batch)),
        problems=to_problems(problems),
        queued=values["tasks"] - sum(values[name] for name in begun),
        **values,
    )
