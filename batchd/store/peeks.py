"""What lists show of tasks beside their rows:
prompts, the last command, and which have ended lately.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable

import msgspec

from batchd import decoders
from batchd.events import ToolRan, decode
from batchd.records import Ref, ToolCall
from batchd.store.lookups import batch_key, task_key
from batchd.store.row_records import TASKS, task_row
from batchd.store.rows import TaskRow
from batchd.store.stored_values import unpack

#: A command is looked for in so many of a task's last events:
#: behind it come its answer's call, and a verdict.
_LOOKED_BACK = 6


class _Asked(msgspec.Struct):
    """The request of a stored task, without the rest."""

    first_prompt: str = ""


_ASKED: msgspec.json.Decoder[_Asked] = decoders.decoder(_Asked)


def prompts_of_batch(db: sqlite3.Connection, name: str, most: int) -> dict[str, str]:
    """Return the prompts of a batch's tasks by their ids,
    of the first ``most``; of pruned ones none.
    """
    rows = db.execute(
        "SELECT t.name, p.body FROM tasks t JOIN specs p ON p.task = t.id WHERE t.batch = ?"
        " ORDER BY t.id LIMIT ?",
        (batch_key(db, name), most),
    )
    return _prompts(rows)


def first_prompts(db: sqlite3.Connection, names: Collection[str]) -> dict[str, str]:
    """Return by batch the prompt of its first task; of pruned and of refused ones none."""
    rows = db.execute(
        "SELECT b.name, p.body FROM batches b JOIN specs p ON p.task = b.first_task"
        # A refused one has no task, and the number of the next one's first.
        " WHERE b.tasks > 0 AND b.name IN (SELECT value FROM json_each(?))",
        (json.dumps([*names]),),
    )
    return _prompts(rows)


def command(db: sqlite3.Connection, ref: Ref) -> ToolCall | None:
    """Return the tool call that a task ran last; None: there was none of late."""
    rows = db.execute(
        "SELECT body FROM events WHERE task = ? ORDER BY seq DESC LIMIT ?",
        (task_key(db, ref), _LOOKED_BACK),
    )
    found = (decode(unpack(body)) for (body,) in rows)
    return next((event.call for event in found if isinstance(event, ToolRan)), None)


def ended(db: sqlite3.Connection, since: float, most: int) -> list[TaskRow]:
    """Return tasks that have ended since then, the newest first."""
    rows = db.execute(
        f"{TASKS} WHERE (b.published_at IS NULL OR b.published_at >= ?1) AND t.finished_at >= ?1"
        " ORDER BY t.finished_at DESC LIMIT ?2",
        (since, most),
    )
    return [*map(task_row, rows)]


def _prompts(rows: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    return {name: _ASKED.decode(unpack(body)).first_prompt for name, body in rows}
