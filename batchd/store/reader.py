"""Read-only access, for commands: light to import, and no writer waits for it."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from batchd.errors import StoreError
from batchd.events import Event
from batchd.records import Parking, Ref, Task, ToolCall, summed
from batchd.store import held, lookups, past, peeks, recent, spending
from batchd.store.database_file import NONSENSE, explain, open_reader
from batchd.store.past import PastTask
from batchd.store.recent import AnsweredCall
from batchd.store.row_records import BATCHES, MATCHING, SORTS, TASKS, batch_row, task_row
from batchd.store.rows import BatchRow, PrunableBatch, SpendRow, TaskRow, WorkDone
from batchd.store.spending import Split

P = ParamSpec("P")
T = TypeVar("T")


class ReadConnection:
    """A connection that can only read. Every read is a short transaction of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = open_reader(path)

    def read(
        self,
        query: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what a query returns. Raises ``StoreError``."""
        try:
            return query(self._db, *args, **kwargs)
        except (sqlite3.Error, *NONSENSE) as error:
            raise explain(error, self._path) from error

    def rows(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of a statement. Raises ``StoreError``."""
        return self.made(tuple, statement, *values)

    def made(self, make: Callable[[Any], T], statement: str, *values: object) -> list[T]:
        """Return what ``make`` makes of each row of a statement. Raises ``StoreError``."""
        return self.read(lambda db: [make(row) for row in db.execute(statement, values)])

    def results(self, batch: str) -> Iterator[tuple[str, str]]:
        """Yield id and result text of each task that has ended:
        one at a time, there may be many.
        """
        for ref in self.read(lookups.ended, batch):
            yield ref.task, self.read(lookups.result, ref)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


class StoreReader:
    """The reader of the store, for people: as of the last commit, beside a daemon or without one.

    Every method raises ``StoreError`` where the file cannot be read,
    and for names that it does not know.
    """

    def __init__(self, path: Path) -> None:
        self._source = ReadConnection(path)

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(self, *, limit: int = -1, unpublished: bool = False) -> list[BatchRow]:
        """Return the batches, newest first; at most ``limit`` of them, if it is not negative."""
        where = "WHERE b.published_at IS NULL" if unpublished else ""
        return self._source.made(
            batch_row,
            f"{BATCHES} {where} GROUP BY b.id ORDER BY b.id DESC LIMIT ?",
            limit,
        )

    def batch(self, name: str) -> BatchRow:
        """Return one batch."""
        key = self._source.read(lookups.batch_key, name)
        (row,) = self._source.made(batch_row, f"{BATCHES} WHERE b.id = ? GROUP BY b.id", key)
        return row

    def tasks(self, batch: str) -> list[TaskRow]:
        """Return the tasks of a batch, in the order of its file."""
        key = self._source.read(lookups.batch_key, batch)
        return self._source.made(task_row, f"{TASKS} WHERE t.batch = ? ORDER BY t.id", key)

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
        key = self._source.read(lookups.batch_key, batch)
        given = (key, json.dumps([*statuses]), text)
        [(count,)] = self._source.rows(f"SELECT count(*) FROM tasks t{MATCHING}", *given)  # noqa: S608 (constants)
        by, way = SORTS[sort], "DESC" if descending else "ASC"
        rows = self._source.made(
            task_row,
            f"{TASKS}{MATCHING} ORDER BY {by} IS NULL, {by} {way}, t.id LIMIT ?4 OFFSET ?5",
            *(*given, limit, offset),
        )
        return int(count), rows

    def changes(self) -> int:
        """Return a number that is another one once somebody has stored something."""
        [(number,)] = self._source.rows("PRAGMA data_version")
        return int(number)

    def lengths(self, batch: str, task: str = "") -> dict[str, int]:
        """Return how many events each task of a batch has had, or one task;
        of those that had any.
        """
        return self._source.read(lookups.lengths, batch, task)

    def unfinished(self, batch: str) -> int:
        """Return how many tasks of a batch have not ended."""
        return self._source.read(lookups.unfinished, batch)

    def left(self, batch: str, among: Collection[str]) -> set[Ref]:
        """Return which of some tasks of a batch have not ended."""
        return self._source.read(lookups.left, batch, among)

    def open_before(self, batch: str) -> list[str]:
        """Return the batches that have not ended, of those that a batch comes after."""
        return self._source.read(lookups.open_before, batch)

    def task(self, ref: Ref) -> TaskRow:
        """Return one task, as people look at it."""
        key = self._source.read(lookups.task_key, ref)
        (row,) = self._source.made(task_row, f"{TASKS} WHERE t.id = ?", key)
        return row

    def running(self) -> list[TaskRow]:
        """Return the tasks of all batches that run now, or are parked, longest first."""
        return self._source.made(
            task_row,
            f"{TASKS} WHERE t.published = 0 AND t.status IN ('running', 'parked') ORDER BY t.since, t.id",
        )

    def begun(self) -> list[TaskRow]:
        """Return the tasks of all batches that have begun and not ended:
        each has its directory to itself.
        """
        return self._source.made(
            task_row, f"{TASKS} WHERE t.published = 0 AND t.finished_at IS NULL AND t.attempt > 0"
        )

    def done_since(self, at: float) -> WorkDone:
        """Return how many tasks have ended since then,
        and what was used by all that were at work.
        """
        return self._source.read(recent.done, at)

    def answered_since(self, at: float) -> list[AnsweredCall]:
        """Return the calls that were answered since then."""
        return self._source.read(recent.answered, at)

    def held(self, parked: Sequence[Parking]) -> int:
        """Return how many tasks are parked, or queued for what is parked as a whole."""
        return self._source.read(held.held, parked)

    def idle(self, parked: Sequence[Parking]) -> frozenset[str]:
        """Return which providers and models are out of order, and no task waits for them."""
        return self._source.read(held.idle, parked)

    def parked(self) -> tuple[Parking, ...]:
        """Return what waits, and why; oldest first."""
        return summed(self._source.read(lookups.parked))

    def notices(self) -> dict[str, int]:
        """Return how many events wait for each receiver of notifications."""
        return self._source.read(lookups.notice_counts)

    def prunable(self, before: float) -> tuple[PrunableBatch, ...]:
        """Return the batches published at ``before`` or earlier, and what is kept of them."""
        return self._source.read(lookups.prunable, before)

    def spec(self, ref: Ref) -> Task:
        """Return one task, as its file asked for it; not once it was pruned."""
        return self._source.read(lookups.find_task, ref)

    def pruned(self, ref: Ref) -> bool:
        """Return whether a task's text and journal were dropped:
        its status, tokens and money are all that is left.
        """
        return self._source.read(lookups.pruned, ref)

    def prompts(self, batch: str, most: int = -1) -> dict[str, str]:
        """Return the prompts of a batch's tasks by their ids, of the first ``most``,
        if it is not negative; of pruned ones none.
        """
        return self._source.read(peeks.prompts_of_batch, batch, most)

    def first_prompts(self, batches: Collection[str]) -> dict[str, str]:
        """Return by batch the prompt of its first task; of pruned ones none."""
        return self._source.read(peeks.first_prompts, batches)

    def command(self, ref: Ref) -> ToolCall | None:
        """Return the tool call that a task ran last; None: there was none of late."""
        return self._source.read(peeks.command, ref)

    def ended(self, since: float, most: int) -> list[TaskRow]:
        """Return at most so many tasks that have ended since then, the newest first."""
        return self._source.read(peeks.ended, since, most)

    def events(self, ref: Ref, start: int = 0, stop: int | None = None) -> list[Event]:
        """Return a task's events from number ``start`` on, before ``stop``;
        none once it was pruned.
        """
        return self._source.read(lookups.events, ref, start, stop)

    def length(self, ref: Ref) -> int:
        """Return how many events a task has had, pruned ones too."""
        return self._source.read(lookups.length, ref)

    def result(self, ref: Ref) -> str:
        """Return the result text of a task that has ended; empty once it was pruned."""
        try:
            return self._source.read(lookups.result, ref)
        except StoreError:
            return ""

    def results(self, batch: str) -> Iterator[tuple[str, str]]:
        """Yield id and result text of each task that has ended, in order;
        not once it was pruned.
        """
        return self._source.results(batch)

    def cautions(self, batch: str, task: str = "") -> dict[str, str]:
        """Return the results of tasks that changed what runs code
        in their directories, or where no one looked; by id.
        """
        return self._source.read(lookups.cautions, batch, task)

    def past_of_model(self, model: str, most: int) -> list[PastTask]:
        """Return the newest tasks of a model that have ended by themselves."""
        return self._source.read(past.of_model, model, most)

    def past_of_provider(self, provider: str, most: int) -> list[PastTask]:
        """Return the newest tasks of a provider, whatever their model,
        that have ended by themselves.
        """
        return self._source.read(past.of_provider, provider, most)

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
        asked = spending.parameters(
            (batch,) if batch else (), (since, until), models, providers, tags
        )
        make = partial(spending.record, tuple(by))
        return self._source.made(make, spending.statement(tuple(by)), *asked)
