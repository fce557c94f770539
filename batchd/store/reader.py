"""Read-only access, for commands: light to import, and no writer waits for it."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from batchd.errors import StoreError
from batchd.records import Parking, Ref, summed
from batchd.store import lookups, queries
from batchd.store.database_file import NONSENSE, explain, open_reader
from batchd.store.queries import BATCHES, MATCHING, SORTS, TASKS, Split, batch_row, task_row
from batchd.store.rows import BatchRow, SpendRow, TaskRow

P = ParamSpec("P")
T = TypeVar("T")


class StoreReader:
    """The reader of the store: as of the last commit, beside a daemon or without one.

    Its connection can only read, and every read is a short transaction of its own. Every method
    raises ``StoreError`` where the file cannot be read, and for names that it does not know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_reader(path)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self,
        query: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what a query returns."""
        try:
            return query(self._db, *args, **kwargs)
        except (sqlite3.Error, *NONSENSE) as error:
            raise explain(error, self._path) from error

    def _made(self, make: Callable[[Any], T], statement: str, *values: object) -> list[T]:
        """Return what ``make`` makes of each row of a statement."""
        return self.read(lambda db: [make(row) for row in db.execute(statement, values)])

    def batches(self, *, limit: int = -1, unpublished: bool = False) -> list[BatchRow]:
        """Return the batches, newest first; at most ``limit`` of them, if it is not negative."""
        where = "WHERE b.published_at IS NULL" if unpublished else ""
        return self._made(
            batch_row,
            f"{BATCHES} {where} GROUP BY b.id ORDER BY b.id DESC LIMIT ?",
            limit,
        )

    def batch(self, name: str) -> BatchRow:
        """Return one batch."""
        key = self.read(lookups.batch_key, name)
        (row,) = self._made(batch_row, f"{BATCHES} WHERE b.id = ? GROUP BY b.id", key)
        return row

    def tasks(self, batch: str) -> list[TaskRow]:
        """Return the tasks of a batch, in the order of its file."""
        key = self.read(lookups.batch_key, batch)
        return self._made(task_row, f"{TASKS} WHERE t.batch = ? ORDER BY t.id", key)

    def tasks_where(
        self,
        batch: str,
        *,
        statuses: Sequence[str] = (),
        text: str = "",
        sort: str = "",
        descending: bool = False,
        limit: int,
        offset: int = 0,
    ) -> tuple[int, list[TaskRow]]:
        """Return how many tasks of a batch match, and some of them:
        ``sort`` is one of ``row_records.SORTS``.
        """
        key = self.read(lookups.batch_key, batch)
        given = (key, json.dumps([*statuses]), text)
        [(count,)] = self._made(tuple, f"SELECT count(*) FROM tasks t{MATCHING}", *given)  # noqa: S608 (constants)
        by, way = SORTS[sort], "DESC" if descending else "ASC"
        rows = self._made(
            task_row,
            f"{TASKS}{MATCHING} ORDER BY {by} IS NULL, {by} {way}, t.id LIMIT ?4 OFFSET ?5",
            *(*given, limit, offset),
        )
        return int(count), rows

    def changes(self) -> int:
        """Return a number that is another one once somebody has stored something."""
        [(number,)] = self._made(tuple, "PRAGMA data_version")
        return int(number)

    def task(self, ref: Ref) -> TaskRow:
        """Return one task, as people look at it."""
        key = self.read(lookups.task_key, ref)
        (row,) = self._made(task_row, f"{TASKS} WHERE t.id = ?", key)
        return row

    def running(self) -> list[TaskRow]:
        """Return the tasks of all batches that run now, or are parked, longest first."""
        return self._made(
            task_row,
            f"{TASKS} WHERE t.published = 0 AND t.status IN ('running', 'parked') ORDER BY t.since, t.id",
        )

    def begun(self) -> list[TaskRow]:
        """Return the tasks of all batches that have begun and not ended:
        each has its directory to itself.
        """
        return self._made(
            task_row, f"{TASKS} WHERE t.published = 0 AND t.finished_at IS NULL AND t.attempt > 0"
        )

    def parked(self) -> tuple[Parking, ...]:
        """Return what waits, and why; oldest first."""
        return summed(self.read(lookups.parked))

    def prompt(self, ref: Ref) -> str:
        """Return a task's prompt; not once it was pruned."""
        return self.read(lookups.find_task, ref).first_prompt

    def result(self, ref: Ref) -> str:
        """Return the result text of a task that has ended; empty once it was pruned."""
        try:
            return self.read(lookups.result, ref)
        except StoreError:
            return ""

    def results(self, batch: str) -> Iterator[tuple[str, str]]:
        """Yield id and result text of each task that has ended, in order, one at a time;
        not once it was pruned.
        """
        for ref in self.read(lookups.ended, batch):
            yield ref.task, self.read(lookups.result, ref)

    def spend(
        self,
        by: Sequence[Split] = ("day", "batch", "provider", "model", "purpose"),
        *,
        batch: str | None = None,
        since: dt.date | None = None,
        until: dt.date | None = None,
        models: Sequence[str] = (),
        providers: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> list[SpendRow]:
        """Return the ledger, summed up by ``by``: of one batch or all,
        of days in UTC, both included.

        ``models``, with or without their provider, ``providers`` and ``tags``: of these only. By
        tag, what a task with several spent is in the row of each.
        """
        asked = queries.parameters(
            (batch,) if batch else (), (since, until), models, providers, tags
        )
        make = partial(queries.record, tuple(by))
        return self._made(make, queries.statement(tuple(by)), *asked)
