"""How things stand, as pages are given it, and programs at ``/api``: bounded in number.

Fields are added, none is renamed or removed; ``batchd schema api`` prints their JSON Schema.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeAlias

from msgspec import Struct, field, structs

from batchd import formats
from batchd.control import OpenTrouble
from batchd.control.status import DayStatus, ProviderStatus, RunningTask
from batchd.observe import standstill
from batchd.observe.status import Provider, Status
from batchd.records import BatchStatus, Ref, TaskStatus
from batchd.store.queries import Split, StoreReader, named
from batchd.store.rows import BatchRow, SpendRow, TaskRow
from batchd.store.shown import filled
from batchd.web.store_queries import Excerpts
from batchd.words import Standstill, standstills

#: Lines of each list; how many there are is said.
_MAX_LINES = 50
#: Characters of what a task at work does.
_MAX_DETAIL_CHARS = 200

#: Returns how the prompt of a batch's task begins, of none that of its first.
Excerpt: TypeAlias = Callable[[BatchRow, str], str]


class Figures(Struct, frozen=True, kw_only=True):
    """Calls, tokens and dollars."""

    calls: int
    total_tokens: int = field(name="tokens")
    input_tokens: int = field(name="input")
    cached_input_tokens: int = field(name="cached")
    output_tokens: int = field(name="output")
    estimated: bool
    estimated_calls: int
    #: null: a price is missing.
    cost_usd: float | None = field(name="usd")
    known_usd: float
    unpriced_calls: int
    unsettled_calls: int
    unsettled_usd: float
    #: The part of the input that came from the provider's cache, 0 to 1, and what it saved;
    #: null: no provider says.
    cache_share: float | None
    cache_saved: float | None


class BatchLine(Figures, frozen=True, kw_only=True):
    """A batch in a line."""

    name: str
    status: BatchStatus
    tasks: int
    completed: int
    timeout: int
    error: int
    cancelled: int
    running: int
    parked: int
    queued: int
    budget_usd: float
    received_at: float
    finished_at: float | None
    retry_of: str | None
    folder: str
    #: How that of its first task begins.
    prompt: str
    pruned: int
    problems: tuple[str, ...]


class AgentLine(Struct, frozen=True, kw_only=True):
    """A task at work in a line."""

    batch: str
    task: str
    step: str
    detail: str
    since: float
    model: str
    round: int = field(name="rounds")
    calls: int
    prompt: str


class TaskLine(Figures, frozen=True, kw_only=True):
    """A task in a line."""

    task: str = field(name="id")
    status: TaskStatus
    reason: str
    #: What ended it, or what it waits for.
    why: str
    model: str
    round: int = field(name="rounds")
    queued_at: float
    started_at: float | None
    finished_at: float | None
    took_s: float | None
    since: float
    priority: int
    attempts: int
    directory: str
    after: tuple[str, ...]
    doing: AgentLine | None
    #: How it begins.
    prompt: str


class WaitLine(Standstill, frozen=True, kw_only=True):
    """Something that waits, why, and how to go on."""

    #: The same as ``fix``.
    mend: str


class DayFigures(DayStatus, frozen=True, kw_only=True):
    """The day's money."""

    #: null: a price is missing.
    cost_usd: float | None
    unsettled_usd: float


class DaemonFigures(Struct, frozen=True, kw_only=True):
    """The daemon."""

    pid: int
    version: str
    #: What to do where it is of another version; empty: it is not.
    differs: str
    started_at: float
    draining: bool
    workers: int
    nodes: int
    slots: int
    day: DayFigures | None
    troubles: tuple[OpenTrouble, ...]


class ProviderLine(ProviderStatus, frozen=True, kw_only=True):
    """A provider; what it answered in the last minute, where there was something to measure."""

    name: str
    calls: int | None
    tokens: int | None
    parked: tuple[WaitLine, ...]


class SpeedFigures(Struct, frozen=True, kw_only=True):
    """What was done in a minute."""

    tasks: float
    tokens: int
    usd: float


class Head(Struct, frozen=True, kw_only=True):
    """What every page shows: whether a daemon runs, what it cannot do, what waits as a whole."""

    at: float
    daemon: DaemonFigures | None = None
    silent: bool = False
    #: Why the store cannot be read; empty: it can.
    trouble: str = ""
    parked: tuple[WaitLine, ...] = ()


class Overview(Head, frozen=True, kw_only=True):
    """The first page; where the store cannot be read, its head alone."""

    left: int
    queued: int
    waiting: int
    held: int
    seconds_left: int | None
    speed: SpeedFigures | None
    running: int
    agents: tuple[AgentLine, ...]
    providers: tuple[ProviderLine, ...]
    open: int
    batches: tuple[BatchLine, ...]
    ended: tuple[BatchLine, ...]


def head(status: Status) -> Head:
    """Return what every page shows."""
    waits = parked(status.parked, status.idle)
    return filled(Head, status, daemon=_daemon(status), parked=waits)


class Failed(Head, frozen=True, kw_only=True):
    """A page that cannot be shown, and why."""

    error: str


def failed(status: Status, error: Exception) -> Failed:
    """Return the page where something cannot be shown."""
    return filled(Failed, head(status), error=str(error))


def overview(status: Status, excerpt: Excerpt) -> Head:
    """Return the first page."""
    if status.trouble:
        return head(status)
    left = [row for row in status.batches if row.finished < row.tasks]
    ended = [row for row in status.batches if row.finished >= row.tasks]
    known = {row.batch.name: row for row in status.batches}
    speed = status.speed

    def prompt(ref: Ref) -> str:
        row = known.get(ref.batch)
        return excerpt(row, ref.task) if row else ""

    return filled(
        Overview,
        head(status),
        status,
        waiting=len(status.waiting),
        seconds_left=None if status.seconds_left is None else round(status.seconds_left),
        speed=speed
        and SpeedFigures(
            tasks=round(speed.tasks_a_minute, 1),
            tokens=round(speed.tokens_a_minute),
            usd=round(speed.usd_a_minute, 4),
        ),
        running=len(status.agents),
        agents=tuple(
            agent(row, status.doing[row.ref], prompt(row.ref)) for row in status.agents[:_MAX_LINES]
        ),
        providers=tuple(map(_provider, status.providers)),
        open=len(left),
        batches=tuple(batch(row, excerpt(row, "")) for row in left[:_MAX_LINES]),
        ended=tuple(batch(row, excerpt(row, "")) for row in ended),
    )


def batch(row: BatchRow, prompt: str = "") -> BatchLine:
    """Return a batch in a line. ``prompt``: how that of its first task begins."""
    problems = tuple(map(str, row.problems[:_MAX_LINES]))
    return filled(BatchLine, row, row.batch, row.tally, prompt=prompt, problems=problems)


def task(row: TaskRow, why: str, doing: RunningTask | None, prompt: str = "") -> TaskLine:
    """Return a task in a line.

    ``why``: what ended it, or what it waits for; ``prompt``: how that begins.
    """
    return filled(
        TaskLine,
        row,
        row.ref,
        row.tally,
        reason=row.reason or "",
        why=why,
        after=row.after[:_MAX_LINES],
        doing=doing and agent(row, doing),
        prompt=prompt,
    )


def agent(row: TaskRow, doing: RunningTask, prompt: str = "") -> AgentLine:
    """Return a task at work in a line."""
    return filled(
        AgentLine,
        row.ref,
        row.tally,
        row,
        step=doing.step,
        detail=doing.said[:_MAX_DETAIL_CHARS],
        since=round(doing.since, 1),
        prompt=prompt,
    )


def parked(found: Iterable[Any], idle: frozenset[str] = frozenset()) -> tuple[WaitLine, ...]:
    """Return what waits, why, and how to go on."""
    shown = islice(standstills(found, idle), _MAX_LINES)
    return tuple(filled(WaitLine, each, mend=each.fix) for each in shown)


def _daemon(status: Status) -> DaemonFigures | None:
    daemon = status.daemon
    if daemon is None:
        return None
    unsettled = round(status.today.unsettled_usd, 8)
    return filled(
        DaemonFigures,
        daemon,
        differs=standstill.differs(daemon.version),
        workers=len(daemon.workers),
        day=daemon.day
        and filled(
            DayFigures, daemon.day, cost_usd=status.spent_today_usd, unsettled_usd=unsettled
        ),
        troubles=tuple(
            structs.replace(each, what=standstill.what(each)) for each in daemon.troubles
        ),
    )


def _provider(each: Provider) -> ProviderLine:
    return filled(
        ProviderLine,
        each.status,
        name=each.name,
        calls=round(each.rate.calls) if each.rate else None,
        tokens=round(each.rate.tokens) if each.rate else None,
        parked=parked(each.parked),
    )


# Money

#: Lines that are shown.
_MAX_ROWS = 100
#: No ledger goes back further, and a calendar not much.
_MOST_DAYS = 36_500


class SpentLine(Figures, frozen=True, kw_only=True):
    """A part of the ledger in a line; ``usd`` is what the calls came to whose price is known."""

    name: str
    #: Of a batch, how that of its first task begins.
    prompt: str = ""


class CostPage(Struct, frozen=True, kw_only=True):
    """What was spent, split up."""

    by: str
    lines: tuple[SpentLine, ...]
    #: Lines that are not shown.
    more: int
    total: tuple[SpentLine, ...]
    #: What a chart shows: each day with a call, and from when to when.
    days: tuple[SpentLine, ...]
    first: str
    last: str


def cost(reader: StoreReader, by: Split, days: int, prompts: Excerpts) -> CostPage:
    """Return what was spent within so many days, split up; 0: ever. Raises ``StoreError``."""
    back = dt.timedelta(days=min(days, _MOST_DAYS) - 1)
    since = dt.datetime.now(dt.UTC).date() - back if days else None
    rows = reader.spend(named((by,)), since=since)
    lines = [spent(row, row.name(by)) for row in rows]
    # Days as they went by, the newest first; of all else what cost most.
    lines.sort(key=lambda x: x.name if by == "day" else (x.known_usd, x.input_tokens), reverse=True)
    more, lines = max(0, len(lines) - _MAX_ROWS), lines[:_MAX_ROWS]
    if by == "batch":
        first = {line.name: prompts.line(reader, reader.batch(line.name)) for line in lines}
        lines = [structs.replace(line, prompt=first[line.name]) for line in lines]
    daily = rows if by == "day" else reader.spend(("day",), since=since)
    each_day = sorted((spent(row, row.day) for row in daily), key=lambda x: x.name)
    today = str(dt.datetime.now(dt.UTC).date())
    return CostPage(
        by=by,
        lines=tuple(lines),
        more=more,
        total=tuple(spent(row, "total") for row in reader.spend((), since=since)[:1]),
        days=tuple(each_day),
        first=str(since) if since else each_day[0].name if each_day else today,
        last=max(today, each_day[-1].name) if each_day else today,
    )


def spent(row: SpendRow, name: str) -> SpentLine:
    """Return a part of the ledger in a line."""
    return filled(SpentLine, row.tally, name=name, cost_usd=row.tally.known_usd)


# What there is to ask for


class BatchesPage(Struct, frozen=True, kw_only=True):
    """``/api/batches``: batches, newest first."""

    batches: tuple[BatchLine, ...]
    #: Whether there are older ones.
    more: bool


class BatchPage(Head, frozen=True, kw_only=True):
    """``/api/batches/NAME``: a batch, and some of its tasks."""

    batch: BatchLine
    waits: tuple[WaitLine, ...]
    #: How many of its tasks match what was asked for, and which page of them this is.
    matching: int
    page: int
    #: Whether its report lies in its folder, and all its results.
    report: bool
    results: bool
    rows: tuple[TaskLine, ...]


class TaskPage(Head, frozen=True, kw_only=True):
    """``/api/batches/NAME/TASK``: a task, its conversation apart."""

    batch: str
    task: TaskLine
    #: None once it was pruned; as text, and as a tree of Markdown.
    prompt: str | None
    prompt_tree: Any
    pruned: bool
    folder: str
    #: Whether its result lies there.
    kept: bool
    waits: tuple[WaitLine, ...]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of what ``/api`` answers, by what is asked for."""
    asked = {
        "/api/overview": Overview,
        "/api/batches": BatchesPage,
        "/api/batches/NAME": BatchPage,
        "/api/batches/NAME/TASK": TaskPage,
        "/api/cost": CostPage,
    }
    found, definitions = formats.components(*asked.values())
    return {
        "type": "object",
        "properties": dict(zip(asked, found, strict=True)),
        "$defs": definitions,
    }
