"""The migrations that make the tables (``migrations.sql``); and what these work out of texts and
journals, as far as those have not been pruned.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from batchd.events import decode
from batchd.records import Tally, TaskStatus
from batchd.store.stored_values import labels_of, unpack, unpack_task
from batchd.store.task_transaction import Ledger, TaskLine, fold

_TEXT = Path(__file__).with_suffix(".sql").read_text("utf-8")
#: Statements by version.
MIGRATIONS = tuple(re.split(r"^-- Version \d+$", _TEXT, flags=re.MULTILINE)[1:])


#: Runs within the migration's transaction, behind the statements of its version.
Backfill: TypeAlias = Callable[[sqlite3.Connection], None]

#: The ledger's columns in that version.
_COLUMNS = (
    *("calls", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens"),
    *("reasoning_tokens", "estimated_calls", "unpriced_calls", "input_usd", "output_usd"),
    *("unsettled_calls", "unsettled_usd"),
)
_MOVED = ", ".join(f"{column} = {column} - ?" for column in _COLUMNS)
#: Sums of floats leave a billionth behind: no money without calls.
_NOTHING = "calls = 0 AND unsettled_calls = 0 AND input_tokens = 0 AND output_tokens = 0"


def tags(db: sqlite3.Connection) -> None:
    """Label the tasks whose texts are there,
    and book under their tags what their journals say they spent.
    """
    for batch, first, upto in db.execute(
        "SELECT id, first_task, first_task + tasks FROM batches ORDER BY id"
    ).fetchall():
        ledger: Ledger = defaultdict(Tally)
        for task, model, tagged in _labelled(db, first, upto):
            if tagged:
                line = TaskLine(task, batch, model, tagged, TaskStatus.QUEUED)
                bodies = db.execute("SELECT body FROM events WHERE task = ? ORDER BY seq", (task,))
                for (body,) in bodies:
                    fold(line, decode(unpack(body)), ledger)
        _move(db, ledger)


def _labelled(db: sqlite3.Connection, first: int, upto: int) -> Iterator[tuple[int, str, str]]:
    """Label the tasks of a batch; yield id, model and tags of each."""
    rows = db.execute("SELECT task, body FROM specs WHERE task >= ? AND task < ?", (first, upto))
    for number, body in rows:
        task = unpack_task(body)
        found = labels_of(task)
        db.execute(
            "UPDATE tasks SET tags = ?, evaluation = ?, prompt_chars = ? WHERE id = ?",
            (*found, number),
        )
        yield number, task.model, found.tags


def _move(db: sqlite3.Connection, ledger: Ledger) -> None:
    """Take what is in ``ledger`` out of the rows without tags, and book it in rows of its own."""
    for account, tally in ledger.items():
        values = [getattr(tally, column) for column in _COLUMNS]
        key = account[:-1]
        db.execute(
            f"UPDATE spend SET {_MOVED}"  # noqa: S608 (constants)
            " WHERE batch = ? AND day = ? AND provider = ? AND model = ? AND purpose = ? AND tags = ''",
            (*values, *key),
        )
        db.execute(
            f"INSERT INTO spend (batch, day, provider, model, purpose, tags, {', '.join(_COLUMNS)})"  # noqa: S608 (constants)
            f" VALUES (?, ?, ?, ?, ?, ?, {', '.join('?' * len(values))})",
            (*account, *values),
        )
    db.execute(f"DELETE FROM spend WHERE tags = '' AND {_NOTHING}")  # noqa: S608 (constants)


#: By the version that they complete.
BACKFILLS: Mapping[int, Backfill] = {4: tags}
