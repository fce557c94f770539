"""A job becomes a page: reads the store, takes its time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from batchd import __version__
from batchd.records import Price, TaskStatus, tasks
from batchd.report.content import (
    Bar,
    BatchContent,
    Caution,
    Content,
    TaskColumns,
    TimelineSpan,
    elsewhere,
    lanes_of,
    nodes,
    retry,
    setbacks,
    share,
    shares,
    spans_of,
)
from batchd.report.gathering import Gathered, TaskRecord
from batchd.report.html_page import DetailBlocks, page
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow

#: Characters of a prompt, and of a message, in the table of all tasks.
_EXCERPT = 140
_MESSAGE = 300
#: Files of one task that run code.
_FILES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a report is made, whatever it is about."""

    #: Bytes of embedded transcripts.
    quota: int
    #: Models to compare the cost with, and what they cost.
    compare: tuple[tuple[str, Price | None], ...] = ()


def make(reader: StoreReader, batches: Sequence[BatchRow], beside: Path, style: Style) -> bytes:
    """Return the report on batches, as a page that will lie in the folder ``beside``.

    Raises ``StoreError``.
    """
    now = time.time()
    sources = [Gathered(reader, batch) for batch in batches]
    folders = tuple(_folder(batch, beside) for batch in batches)
    blocks = DetailBlocks(style.quota)
    tasks, spans, cautions = _columns(sources, blocks, now)
    lanes, bars = lanes_of((p, s) for p, s in spans if not s.parked)
    spend = [
        row
        for batch in batches
        for row in reader.spend(("provider", "model", "purpose"), batch=batch.batch.name)
    ]
    tagged = [
        row
        for batch in batches
        for row in reader.spend(("tag",), batch=batch.batch.name)
        if row.tag is not None
    ]
    total = share("total", spend)
    content = Content(
        version=__version__,
        title=_title(batches),
        made_at=now,
        folders=folders,
        counts={status: tasks.status.count(status) for status in TaskStatus},
        wall_s=_wall(batches, now),
        run_s=sum(seconds or 0.0 for seconds in tasks.run_s),
        total=total,
        models=shares(spend, lambda row: f"{row.provider}/{row.model}"),
        tags=shares(tagged, lambda row: row.tag or ""),
        purposes=shares(spend, lambda row: row.purpose),
        nodes=nodes(tasks),
        elsewhere=elsewhere(style.compare, spend) if total.calls else (),
        setbacks=setbacks(tasks),
        cautions=tuple(sorted(cautions, key=lambda caution: caution.task)),
        orders=tuple(_orders(batches)),
        lanes=lanes,
        bars=tuple(bars),
        parked=tuple(Bar(task=p, lane=0, start=s.start, end=s.end) for p, s in spans if s.parked),
        notes=tuple(_notes(sources, blocks)),
        tasks=tasks,
    )
    return page(content, blocks.text)


def _columns(
    sources: Sequence[Gathered], blocks: DetailBlocks, now: float
) -> tuple[TaskColumns, list[tuple[int, TimelineSpan]], list[Caution]]:
    """Read every task once: what did not complete first,
    for that is what transcripts are opened for.
    """
    places = [(f, source, row) for f, source in enumerate(sources) for row in source.rows]
    well = {TaskStatus.COMPLETED, TaskStatus.CANCELLED}
    order = sorted(range(len(places)), key=lambda p: places[p][2].status in well)
    values: list[dict[str, object]] = [{}] * len(places)
    spans: list[tuple[int, TimelineSpan]] = []
    cautions: list[Caution] = []
    for place in order:
        number, source, row = places[place]
        task = source.read(row)
        spans += [(place, span) for span in spans_of(row, task.events, now)]
        cautions += _caution(place, task)
        folder = Path(source.batch.batch.folder)
        values[place] = _values(task, number, folder) | {"block": blocks.add(task)}
    tasks = TaskColumns()
    for name in TaskColumns.__slots__:
        getattr(tasks, name).extend(value[name] for value in values)
    return tasks, spans, cautions


def _caution(place: int, task: TaskRecord) -> Iterable[Caution]:
    """Yield what a task changed that runs code, if it did."""
    if task.result is None or task.result.runs_code == ():
        return
    files = task.result.runs_code
    yield Caution(
        task=place,
        directory=task.result.dir,
        files=None if files is None else tuple(map(msgspec.to_builtins, files[:_FILES])),
        more=max(0, len(files or ()) - _FILES),
    )


def _values(task: TaskRecord, folder: int, path: Path) -> dict[str, object]:
    """Return a task's value in each column, its block apart."""
    row, result = task.row, task.result
    timing = result.timing if result else None
    transcript = f"{row.ref.task}.jsonl"
    return {
        "id": row.ref.task,
        "folder": folder,
        "status": row.status,
        "reason": row.reason or "",
        "message": row.message[:_MESSAGE],
        "prompt": " ".join(result.first_prompt[: 4 * _EXCERPT].split())[:_EXCERPT]
        if result
        else "",
        "model": row.model,
        "rounds": row.round,
        "calls": row.tally.calls,
        "tokens": row.tally.total_tokens,
        "estimated": int(row.tally.estimated),
        "usd": row.tally.cost_usd,
        "unsettled_usd": row.tally.unsettled_usd,
        "started_at": row.started_at,
        "run_s": timing.run_s if timing else None,
        "model_s": timing.model_s if timing else None,
        "tool_s": timing.tool_s if timing else None,
        "node": tasks.node(row.worker),
        "parked_s": timing.parked_s if timing else None,
        "own": _own(task, path),
        "transcript": quote(transcript) if os.path.lexists(path / transcript) else "",
    }


def _own(task: TaskRecord, folder: Path) -> str:
    """Return the link from a batch's folder to the directory that a task has to itself there."""
    own = folder / task.row.ref.task
    return f"{quote(task.row.ref.task)}/" if task.row.directory == str(own) and own.is_dir() else ""


def _folder(row: BatchRow, beside: Path) -> BatchContent:
    link = os.path.relpath(row.batch.folder, beside)
    return BatchContent(
        name=row.batch.name,
        link="" if link == "." else f"{quote(link)}/",
        received_at=row.batch.received_at,
        finished_at=row.finished_at,
        tasks=row.tasks,
        status=row.status,
        retry_of=row.batch.retry_of,
    )


def _title(batches: Sequence[BatchRow]) -> str:
    names = [row.batch.name for row in batches]
    return names[0] if len(names) == 1 else f"{len(names):,} batches"


def _wall(batches: Sequence[BatchRow], now: float) -> float:
    """Return the time from the first drop to the last end."""
    ends = [row.finished_at or now for row in batches]
    return max(ends) - min(row.batch.received_at for row in batches)


def _orders(batches: Iterable[BatchRow]) -> Iterable[str]:
    for row in batches:
        if row.completed < row.finished:
            yield retry(row.batch.name)


def _notes(sources: Iterable[Gathered], blocks: DetailBlocks) -> Iterable[str]:
    for source in sources:
        if source.note:
            yield source.note
    if blocks.left_out:
        yield (
            f"{blocks.left_out:,} transcripts do not fit into this page ([report] "
            "transcripts_mb): they are files beside the results."
        )
    if blocks.bare:
        yield (
            f"Of {blocks.bare:,} tasks the page has only the table's figures, for the same "
            "reason: their prompts, answers and files are in their results."
        )
