"""The page of a batch: all that it shows, but what its tasks said and did in full.

One function makes it, for a page that a server fills and for a report, which holds it. Money is in
US dollars, durations are seconds, moments are seconds since the epoch. None: not known.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import msgspec

from batchd.events import Event, Resumed, Suspended, TaskStarted
from batchd.formats import SummaryTaskV1
from batchd.pricing import Compared, elsewhere
from batchd.records import Reason, Tally, TaskStatus, tasks
from batchd.results import figures
from batchd.store.queries import Split, StoreReader, prompts_of_batch
from batchd.store.rows import BatchRow, SpendRow
from batchd.version import __version__
from batchd.web import page_data
from batchd.web.gathering import RESULTS, Gathered, TaskRecord
from batchd.web.store_queries import excerpt

#: Embeds a task, and returns where: the first character, and how many.
Embed: TypeAlias = Callable[[TaskRecord], tuple[int, int]]

#: Characters of a message in the table of all tasks.
_MESSAGE = 300
#: Files of one task that run code.
_FILES = 20
_WELL = {TaskStatus.COMPLETED, TaskStatus.CANCELLED}
#: What the table has of a task, a column each: keys of its line in ``page_data``, and of ``_more``.
_COLUMNS = (
    *("id", "status", "reason", "why", "prompt", "model", "rounds", "calls", "tokens"),
    *("estimated", "usd", "known_usd", "unpriced_calls", "unsettled_calls", "unsettled_usd"),
    *("started_at", "took_s", "folder", "run_s", "model_s", "tool_s", "parked_s", "node"),
    *("own", "transcript", "block"),
)


def whole(
    reader: StoreReader,
    batches: Sequence[BatchRow],
    *,
    compare: Compared = (),
    beside: Path | None = None,
    embed: Embed = lambda _task: (0, 0),
) -> dict[str, Any]:
    """Return the page of batches. Raises ``StoreError``.

    ``beside``: the folder that the page will lie in; None: a server sends it.
    """
    now = time.time()
    sources = [Gathered(reader, batch) for batch in batches]
    found = _Tasks(sources, beside is not None, embed, now)
    names = [row.batch.name for row in batches]
    spend = [r for n in names for r in reader.spend(("provider", "model", "purpose"), batch=n)]
    tagged = [r for n in names for r in reader.spend(("tag",), batch=n) if r.tag is not None]
    total = _share("total", spend)
    lanes, bars = lanes_of((p, s) for p, s in found.spans if not s.parked)
    ends = [row.finished_at or now for row in batches]
    reasons = {line["reason"] for line in found.lines if line["reason"]}
    return {
        "version": __version__,
        "title": names[0] if len(names) == 1 else f"{len(names):,} batches",
        "made_at": now,
        "folders": [_folder(row, beside) for row in batches],
        "counts": {s: sum(line["status"] == s for line in found.lines) for s in TaskStatus},
        # From the first drop to the last end.
        "wall_s": max(ends) - min(row.batch.received_at for row in batches),
        # At work, over all tasks.
        "run_s": sum(line["run_s"] or 0.0 for line in found.lines),
        "total": total,
        "models": _shares(spend, "model"),
        # A task with several tags is counted under each.
        "tags": _shares(tagged, "tag"),
        "purposes": _shares(spend, "purpose"),
        # What the same tokens cost there; highest: that depends on the moment, and is the most.
        "elsewhere": [
            {"name": each.model, "usd": each.total, "highest": each.at_highest}
            for each in elsewhere(compare, [row.tally for row in spend])
        ]
        if total["calls"]
        else [],
        **_side_by_side(names, found),
        # What the reasons of tasks that did not complete mean, and how to go on.
        "advice": {r: _ADVICE[Reason(r)] for r in sorted(reasons) if r in _ADVICE},
        "cautions": sorted(found.cautions, key=lambda caution: caution["task"]),
        # Orders that lead on.
        "orders": [
            f"batchd retry {row.batch.name} --failed"
            for row in batches
            if row.completed < row.finished
        ],
        "lanes": lanes,
        "bars": bars,
        # When tasks were without a slot; their lane says nothing.
        "parked": [Bar(p, 0, s.start, s.end) for p, s in found.spans if s.parked],
        # What is missing, and why.
        "notes": [source.note for source in sources if source.note],
        "tasks": {name: [line[name] for line in found.lines] for name in _COLUMNS},
    }


class _Tasks:
    """The tasks of some batches, each read once: what did not complete first,
    for that is what transcripts are opened for.
    """

    def __init__(self, sources: Sequence[Gathered], beside: bool, embed: Embed, now: float) -> None:
        places = [(f, source, row) for f, source in enumerate(sources) for row in source.rows]
        #: A line each, in the order of the files.
        self.lines: list[dict[str, Any]] = [{}] * len(places)
        #: How each ended that has, with its tags, and what tells its prompt from others.
        self.ends: list[tuple[SummaryTaskV1, Sequence[str], int] | None] = [None] * len(places)
        self.spans: list[tuple[int, TimelineSpan]] = []
        self.cautions: list[dict[str, Any]] = []
        prompts = [_prompts_of_open(source) for source in sources]
        for place in sorted(range(len(places)), key=lambda p: places[p][2].status in _WELL):
            number, source, row = places[place]
            task = source.read(row)
            self.spans += [(place, span) for span in spans_of(task, now)]
            self.cautions += _caution(place, task)
            prompt = task.result.first_prompt if task.result else prompts[number](row.ref.task)
            line = page_data.task(row, row.message[:_MESSAGE], None, excerpt(prompt))
            self.lines[place] = (
                msgspec.to_builtins(line) | _more(task, number, beside) | {"block": embed(task)}
            )
            if row.status.final:
                tags = dict.fromkeys(task.result.tags) if task.result else {}
                # What nobody knows any more is like no other.
                mark = hash(prompt) if prompt else -1 - place
                self.ends[place] = (_end(self.lines[place]), (*tags,), mark)


def _prompts_of_open(source: Gathered) -> Callable[[str], str]:
    """Return what knows the prompts of tasks that have no result yet."""
    row = source.batch
    if row.finished >= row.tasks:
        return lambda _task: ""
    found = source.reader.read(prompts_of_batch, row.batch.name)
    return lambda task: found.get(task, "")


def _more(task: TaskRecord, folder: int, beside: bool) -> dict[str, Any]:
    """Return what the page of a batch has of a task beside its line."""
    timing = task.result.timing if task.result else None
    own, transcript = task.source.folder / task.row.ref.task, f"{task.row.ref.task}.jsonl"
    linked = beside and task.row.directory == str(own) and own.is_dir()
    return {
        # Which of the batches it belongs to.
        "folder": folder,
        "run_s": timing.run_s if timing else None,
        "model_s": timing.model_s if timing else None,
        "tool_s": timing.tool_s if timing else None,
        "parked_s": timing.parked_s if timing else None,
        # The machine that its last attempt ran on; empty: the daemon's, or none.
        "node": tasks.node(task.row.worker),
        # Links from its batch's folder: to the directory that it has to itself there, and to the
        # file that holds every step; empty: there is none.
        "own": f"{quote(task.row.ref.task)}/" if linked else "",
        "transcript": quote(transcript)
        if beside and os.path.lexists(task.source.folder / transcript)
        else "",
    }


def _end(line: Mapping[str, Any]) -> SummaryTaskV1:
    """Return a task that has ended, as a summary has it."""
    run_s = line["took_s"] if line["run_s"] is None else line["run_s"]
    return SummaryTaskV1(
        task=line["id"],
        status=TaskStatus(line["status"]),
        reason=None,
        iterations=line["rounds"],
        total_tokens=line["tokens"],
        cost=line["usd"],
        run_s=run_s or 0.0,
        message=None,
    )


def _caution(place: int, task: TaskRecord) -> Iterator[dict[str, Any]]:
    """Yield what a task changed that runs code when somebody uses its directory, if it did."""
    if task.result is None or task.result.runs_code == ():
        return
    files = task.result.runs_code
    yield {
        "task": place,
        "directory": task.result.dir,
        # None: no one looked.
        "files": None if files is None else [*map(msgspec.to_builtins, files[:_FILES])],
        "more": max(0, len(files or ()) - _FILES),
    }


def _folder(row: BatchRow, beside: Path | None) -> dict[str, Any]:
    """Return a batch, with the link from the page to its folder: empty, or ending in a slash."""
    link = os.path.relpath(row.batch.folder, beside) if beside else "."
    there = {
        "link": "" if link == "." else f"{quote(link)}/",
        "results": os.path.lexists(Path(row.batch.folder, RESULTS)),
    }
    found: dict[str, Any] = msgspec.to_builtins(page_data.batch(row))
    return found | there


class Bar(NamedTuple):
    """A task in its slot, on the timeline."""

    #: Its place among the lines.
    task: int
    lane: int
    start: float
    end: float


class TimelineSpan(NamedTuple):
    """A stretch of a task's life, in seconds since the epoch."""

    start: float
    end: float
    #: Without a slot: it waited for a provider, for money, or for somebody to let it go on.
    parked: bool = False


def spans_of(task: TaskRecord, now: float) -> list[TimelineSpan]:
    """Return when a task had a slot, and when it was parked; a stop of the daemon is neither."""
    row = task.row
    if row.started_at is None:
        return []
    ended = row.finished_at or now
    # One that never gave its slot back needs no journal to be read.
    once = row.attempts < 2 and task.result is not None and not task.result.timing.parked_s
    events: Sequence[Event] = () if once else task.events
    if not events or not isinstance(events[0], TaskStarted):
        return [_span(row.started_at, ended)]
    found, begun, last = [], events[0].at, events[0].at
    parked_at: float | None = None
    for event in events:
        if isinstance(event, Suspended):
            found.append(_span(begun, event.at))
            begun, parked_at = 0.0, event.at if event.cause == "park" else None
        elif isinstance(event, Resumed):
            if begun:  # its worker died; it is not known when
                found.append(_span(begun, last))
            if parked_at is not None:
                found.append(_span(parked_at, event.at, parked=True))
            begun, parked_at = event.at, None
        last = event.at
    if parked_at is not None:
        found.append(_span(parked_at, ended, parked=True))
    elif begun:
        found.append(_span(begun, ended))
    return found


def lanes_of(work: Iterable[tuple[int, TimelineSpan]]) -> tuple[int, list[Bar]]:
    """Put each task's stretch of work into the first lane that is free; return how many it took."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    count, bars = 0, []
    for task, span in sorted(work, key=lambda item: (item[1].start, item[0])):
        while busy and busy[0][0] <= span.start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
        heapq.heappush(busy, (span.end, lane))
        bars.append(Bar(task, lane, span.start, span.end))
    return count, bars


def _span(start: float, end: float, *, parked: bool = False) -> TimelineSpan:
    # A clock that was set back must not turn a bar around.
    return TimelineSpan(round(start, 3), round(max(start, end), 3), parked)


_ADVICE: Mapping[Reason, str] = {
    Reason.MAX_ITERATIONS: "No round was accepted. Read the last verdict of one of them: make the task or its check"
    " clearer, or raise limits.max_iterations.",
    Reason.MAX_CALLS: "They were still at work at their last call. Raise limits.max_calls, or make the tasks smaller.",
    Reason.TOKENS: "They used up their tokens. Raise limits.max_tokens, or make the tasks smaller.",
    Reason.BUDGET: "What was left of the money was too little for the next call at its highest price. Raise limits.max_cost_usd, or"
    " the batch's budget_usd; or lower limits.max_output_tokens.",
    Reason.WALL_CLOCK: "They were still at work when their time was over. Raise limits.timeout_s.",
    Reason.AUTH: "The provider refused the key. Set a valid one, let `batchd check` confirm it, then retry.",
    Reason.QUOTA: "The account is empty. Top it up, then retry.",
    Reason.BAD_REQUEST: "The request was refused, by the provider or before it was sent, and would be again. The message"
    " says why; `batchd check` tries the model.",
    Reason.CONTENT_FILTER: "The provider's filter refused prompt or answer. Word the task differently, or take another"
    " model.",
    Reason.CONTEXT_OVERFLOW: "The request does not fit into the model's window. Make the task smaller, or take a model with a larger window.",
    Reason.PROVIDER_UNAVAILABLE: "The provider did not answer in spite of all retries. Retry once it is back.",
    Reason.EVALUATOR: "The judge gave no verdict that can be read. Give the tasks a check, or name another"
    " evaluation.judge_model.",
    Reason.LOOP: "The model repeated itself without getting on. A clearer task or another model helps.",
    Reason.SANDBOX: "Their commands could not be run. `batchd check` says what is missing.",
    Reason.DISK: "The disk took nothing more, or they hold more of it than they may: each message says which. Make room, or"
    " allow more in [sandbox], then retry.",
    Reason.WORKER_CRASHED: "The process that worked on them died each time, of memory perhaps. The daemon's log says"
    " more.",
    Reason.INTERNAL: "A fault of batchd's own. The daemon's log has the details; please report it.",
    Reason.USER: "Somebody cancelled them. Retry runs them again.",
    Reason.DEPENDENCY: "They come after tasks that did not complete. A retry of those takes these along.",
}


def _share(name: str, rows: Sequence[SpendRow]) -> dict[str, Any]:
    spent = page_data.spent(SpendRow(tally=sum((row.tally for row in rows), Tally())), name)
    found: dict[str, Any] = msgspec.to_builtins(spent)
    return found


def _shares(rows: Iterable[SpendRow], split: Split) -> list[dict[str, Any]]:
    """Sum the ledger up, split so, what cost most first."""
    groups: dict[str, list[SpendRow]] = {}
    for row in rows:
        groups.setdefault(row.name(split), []).append(row)
    found = (_share(name, group) for name, group in groups.items())
    return sorted(found, key=lambda s: (-s["usd"], -s["tokens"], s["name"]))


#: Rows of a grid.
_MOST_ROWS = 200


def _side_by_side(batches: Sequence[str], found: _Tasks) -> dict[str, Any]:
    """Return batches, models and tags side by side, by the tasks that have ended: each list is
    empty where there is but one; and where the same task ran in several batches, or the same
    prompt on several models, the grid of them.
    """
    ends = [(place, *end) for place, end in enumerate(found.ends) if end]
    batch_of = [batches[line["folder"]] for line in found.lines]
    model_of = [line["model"] for line in found.lines]
    of_batches = figures.groups((batch_of[place], end) for place, end, _, _ in ends)
    of_models = figures.groups((model_of[place], end) for place, end, _, _ in ends)
    of_tags = figures.groups((tag, end) for _, end, tags, _ in ends for tag in tags)
    several = len(of_batches) > 1
    columns = batches if several else [group.name for group in of_models]
    column_of = batch_of if several else model_of
    rows: dict[Any, dict[str, list[int]]] = {}
    for place, end, _, prompt in ends:
        row = rows.setdefault(end.task if several else prompt, {})
        row.setdefault(column_of[place], []).append(place)
    both = [row for row in rows.values() if len(row) > 1]

    def weight(row: Mapping[str, Sequence[int]]) -> int:
        places = [place for cell in row.values() for place in cell]
        well = {found.lines[place]["status"] == TaskStatus.COMPLETED for place in places}
        return 0 if len(well) > 1 else 1 if False in well else 2

    both.sort(key=weight)
    return {
        "by_batch": of_batches if several else [],
        "by_model": of_models if len(of_models) > 1 else [],
        "by_tag": of_tags if len(of_tags) > 1 else [],
        # Rows where columns differ come first. A cell has places of tasks.
        "grid": {
            "columns": columns,
            "by": "batch" if several else "model",
            "rows": [[row.get(name, []) for name in columns] for row in both[:_MOST_ROWS]],
            "more": max(0, len(both) - _MOST_ROWS),
        }
        if both
        else None,
    }
