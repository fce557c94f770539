"""Tasks that have ended by themselves: what later ones like them may come to."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from batchd.records import TaskStatus, Usage

_COLUMNS = (
    "t.batch, t.model, t.tags, t.evaluation, t.prompt_chars, t.cost_usd, t.finished_at - t.started_at,"
    " t.calls, t.input_tokens, t.cached_input_tokens, t.cache_write_tokens, t.cache_write_long_tokens,"
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
    #: ``provider/model``.
    model: str
    #: As ``labels`` writes them.
    tags: str
    #: Likewise; empty: not known any more.
    evaluation: str
    #: None: not known any more.
    prompt_chars: int | None
    #: None: a price was missing.
    cost_usd: float | None
    #: From its first start to its end, waits included.
    seconds: float
    usage: Usage


def of_model(db: sqlite3.Connection, model: str, most: int) -> list[PastTask]:
    """Return the newest tasks of a model, newest first."""
    return _found(db, "t.model = ?1", model, most=most)


def of_provider(db: sqlite3.Connection, provider: str, most: int) -> list[PastTask]:
    """Return the newest tasks of all models of a provider, newest first."""
    return _found(db, "substr(t.model, 1, length(?1)) = ?1", f"{provider}/", most=most)


def _found(db: sqlite3.Connection, where: str, name: str, *, most: int) -> list[PastTask]:
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM tasks t WHERE {_ENDED} AND {where} ORDER BY t.id DESC LIMIT ?2",  # noqa: S608 (constants)
        (name, most),
    )
    return [_past(row) for row in rows]


def _past(row: tuple[Any, ...]) -> PastTask:
    batch, model, tags, evaluation, chars, cost_usd, seconds, calls, *tokens = row
    given, cached, written, kept_long, made = tokens
    return PastTask(
        batch=batch,
        model=model,
        tags=tags,
        evaluation=evaluation,
        prompt_chars=chars,
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
