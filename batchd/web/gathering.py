"""All that is known of tasks: from the store, and of pruned ones from their batch's folder."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders, words
from batchd.errors import UsageError
from batchd.events import Event
from batchd.formats import ResultV1, TimingV1
from batchd.results import timestamp
from batchd.store import lookups
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, TaskRow

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class TaskRecord:
    """What is known of one task."""

    #: Its batch's tasks.
    source: Gathered
    row: TaskRow
    #: None: it has not ended, or it was pruned and its ``results.jsonl`` is gone.
    result: ResultV1 | None

    @cached_property
    def events(self) -> list[Event]:
        """Its journal, read when it is asked for first; empty once it was pruned."""
        return self.source.reader.read(lookups.events, self.row.ref)


class Gathered:
    """The tasks of one batch, each read when it is asked for: all at once may be too much."""

    def __init__(self, reader: StoreReader, batch: BatchRow) -> None:
        self.reader = reader
        self.batch = batch
        #: In the outbox.
        self.folder = Path(batch.batch.folder)
        self.rows = reader.tasks(batch.batch.name)
        self._kept: Mapping[str, ResultV1] = _kept(batch) if batch.pruned else {}

    @property
    def note(self) -> str:
        """What is missing; empty: nothing."""
        return _note(self.batch, kept=bool(self._kept))

    def read(self, row: TaskRow) -> TaskRecord:
        """Read one task. Raises ``StoreError``."""
        result = self._kept.get(row.ref.task)
        if row.status.final and (text := self.reader.result(row.ref)):
            result = decoders.decode(text, ResultV1)
        return TaskRecord(self, row, result)

    def __iter__(self) -> Iterator[TaskRecord]:
        return map(self.read, self.rows)


def missing(batch: BatchRow) -> str:
    """Return what a report on a batch will not have, before one is made; empty: nothing."""
    folder = Path(batch.batch.folder)
    note = _note(batch, kept=(folder / RESULTS).is_file())
    if note or batch.published_at is None or folder.is_dir():
        return note
    return f"{folder} is gone: links to transcripts lead nowhere."


def _note(batch: BatchRow, *, kept: bool) -> str:
    """``kept``: whether its results lie in the outbox still."""
    name = batch.batch.name
    if not batch.pruned:
        return ""
    if kept:
        return f"The journal of {name} was pruned: its results are from results.jsonl, transcripts are files."
    return (
        f"{name} was pruned, and its results.jsonl is gone: statuses, tokens and money are all that is left;"
        " prompts, answers and transcripts are missing."
    )


def chosen(
    reader: StoreReader, names: tuple[str, ...], since: dt.date | None, until: dt.date | None
) -> list[BatchRow]:
    """Return the batches that are meant, oldest first:
    by name, by days in UTC, or else the newest that was accepted.

    A batch belongs to every day that it was at work on. Raises ``UsageError`` where there is none.
    """
    if names:
        found = [reader.batch(name) for name in dict.fromkeys(names)]
    else:
        newest = 1 if since is None and until is None else None
        found = [row for row in reader.batches() if not row.problems][:newest]
    found = [row for row in found if _within(row, since, until)]
    for row in found:
        if row.problems:
            name = row.batch.name
            raise UsageError(f"{name} was rejected when it came: `batchd status {name}` says why")
    if not found:
        raise UsageError(
            "there is no batch to report on" + (" in that time" if since or until else "")
        )
    return sorted(found, key=lambda row: (row.batch.received_at, row.batch.claim))


def _within(row: BatchRow, since: dt.date | None, until: dt.date | None) -> bool:
    ends = (row.batch.received_at, row.finished_at or time.time())
    first, last = (dt.datetime.fromtimestamp(at, dt.UTC).date() for at in ends)
    return (since is None or last >= since) and (until is None or first <= until)


def _kept(batch: BatchRow) -> dict[str, ResultV1]:
    """Return the results that lie in the outbox still, by their tasks."""
    try:
        with Path(batch.batch.folder, RESULTS).open("rb") as file:
            found = [result for line in file if (result := _result(line))]
    except OSError:
        return {}
    return {result.task: result for result in found}


def _result(text: str | bytes) -> ResultV1 | None:
    """Return a result; None for an invalid one, as somebody may have edited it."""
    try:
        return decoders.decode(text, ResultV1)
    except msgspec.DecodeError:
        return None


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
    "calls": lambda t: t.row.tally.calls,
    "input_tokens": lambda t: t.row.tally.input_tokens,
    "cached_input_tokens": lambda t: t.row.tally.cached_input_tokens,
    "output_tokens": lambda t: t.row.tally.output_tokens,
    "reasoning_tokens": lambda t: t.row.tally.reasoning_tokens,
    "total_tokens": lambda t: t.row.tally.total_tokens,
    "estimated": lambda t: int(t.row.tally.estimated),
    "cost_usd": lambda t: _money(t.row.tally.cost_usd),
    "unsettled_calls": lambda t: t.row.tally.unsettled_calls,
    "unsettled_usd": lambda t: _money(t.row.tally.unsettled_usd),
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
    "near_limits": _of_result(lambda r: words.near_limits(r.near_limits)),
    "score": _of_result(lambda r: r.score),
    "flaky": _of_result(lambda r: int(r.flaky)),
}


def record(task: TaskRecord) -> dict[str, Any]:
    """Return a task's value in each column."""
    return {name: read(task) for name, read in COLUMNS.items()}


def _money(usd: float | None) -> str | None:
    return None if usd is None else f"{usd:.8f}"


def _moment(at: float | None) -> str | None:
    return None if at is None else timestamp(at)
