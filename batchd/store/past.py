"""Tasks that have ended by themselves: what later ones like them may come to."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from batchd.records import TaskStatus, Usage

_COLUMNS = (
    "t.batch, t.status, t.cost_usd, t.finished_at - t.started_at, t.calls,"
    " t.input_tokens, t.cached_input_tokens, t.cache_write_tokens, t.cache_write_long_tokens,"
    " t.output_tokens"
)
#: Who was cancelled was not done, and a task without a call shows nothing.
_ENDED = (
    f"t.status IN ('{TaskStatus.COMPLETED}', '{TaskStatus.TIMEOUT}', '{TaskStatus.ERROR}')"
    " AND t.calls > 0 AND t.started_at IS NOT NULL"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PastTask:
    """A task that has ended, and what it came to."""

    #: The key of its batch: tasks of one batch are more alike than others.
    batch: int
    status: TaskStatus
    #: None: a price was missing.
    cost_usd: float | None
    #: From its first start to its end, waits included.
    seconds: float
    usage: Usage


def of_model(db: sqlite3.Connection, model: str, most: int) -> list[PastTask]:
    """Return the newest tasks of a model, newest first."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM tasks t WHERE {_ENDED} AND t.model = ?1 ORDER BY t.id DESC LIMIT ?2",  # noqa: S608 (constants)
        (model, most),
    )
    return [_past(row) for row in rows]


def _past(row: tuple[Any, ...]) -> PastTask:
    batch, status, cost_usd, seconds, calls, given, cached, written, kept_long, made = row
    return PastTask(
        batch=batch,
        status=TaskStatus(status),
        cost_usd=cost_usd,
        seconds=max(0.0, seconds),
        usage=Usage(
            calls=calls,
            input_tokens=given,
            cached_input_tokens=cached,
            cache_write_tokens=written,
            cache_write_long_tokens=kept_long,
            output_tokens=made,
        ),
    )
