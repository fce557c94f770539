"""Tasks as a table for spreadsheets, its columns stable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batchd.formats import ResultV1, TimingV1
from batchd.report.gathering import TaskRecord
from batchd.results import timestamp


def _of_result(read: Callable[[ResultV1], Any]) -> Callable[[TaskRecord], Any]:
    return lambda task: read(task.result) if task.result else None


def _of_timing(read: Callable[[TimingV1], Any]) -> Callable[[TaskRecord], Any]:
    return _of_result(lambda result: read(result.timing))


#: Each column with where it comes from. New ones go to the end;
#: none is renamed or removed. Empty: not known.
COLUMNS: Mapping[str, Callable[[TaskRecord], Any]] = {
    "batch": lambda t: t.row.ref.batch,
    "task": lambda t: t.row.ref.task,
    "status": lambda t: str(t.row.status),
    "reason": lambda t: t.row.reason,
    "message": lambda t: t.row.message,
    "model": lambda t: t.row.model,
    "iterations": lambda t: t.row.round,
    "attempts": lambda t: t.row.attempts,
    "calls": lambda t: t.row.calls,
    "input_tokens": lambda t: t.row.input_tokens,
    "cached_input_tokens": lambda t: t.row.cached_input_tokens,
    "output_tokens": lambda t: t.row.output_tokens,
    "reasoning_tokens": lambda t: t.row.reasoning_tokens,
    "total_tokens": lambda t: t.row.input_tokens + t.row.output_tokens,
    "estimated": lambda t: int(t.row.estimated),
    "cost_usd": lambda t: _money(t.row.cost_usd),
    "unsettled_calls": lambda t: t.row.unsettled_calls,
    "unsettled_usd": lambda t: _money(t.row.unsettled_usd),
    "queued_at": lambda t: _moment(t.row.queued_at),
    "started_at": lambda t: _moment(t.row.started_at),
    "finished_at": lambda t: _moment(t.row.finished_at),
    "queued_s": _of_timing(lambda t: t.queued_s),
    "parked_s": _of_timing(lambda t: t.parked_s),
    "waited_s": _of_timing(lambda t: t.waited_s),
    "run_s": _of_timing(lambda t: t.run_s),
    "model_s": _of_timing(lambda t: t.model_s),
    "tool_s": _of_timing(lambda t: t.tool_s),
    "evaluated_by": _of_result(lambda r: r.evaluation.by if r.evaluation else None),
    "directory": lambda t: t.row.directory,
    "tags": _of_result(lambda r: " ".join(r.tags)),
    "first_prompt": _of_result(lambda r: r.first_prompt),
    "answer": _of_result(lambda r: r.answer),
    "runs_code": _of_result(lambda r: None if r.runs_code is None else len(r.runs_code)),
}


def record(task: TaskRecord) -> dict[str, Any]:
    """Return a task's value in each column."""
    return {name: read(task) for name, read in COLUMNS.items()}


def _money(usd: float | None) -> str | None:
    return None if usd is None else f"{usd:.8f}"


def _moment(at: float | None) -> str | None:
    return None if at is None else timestamp(at)
