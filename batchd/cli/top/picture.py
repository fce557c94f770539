"""How things stand as lines of a terminal: the head, and tables of batches and tasks.

Pure: `top` shows these lines in its window, `top --once` prints them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from rich.text import Text

from batchd.cli.display import tables
from batchd.cli.display.tables import Column
from batchd.console import hanging, name_in
from batchd.log import escape
from batchd.observe import standstill
from batchd.observe.status import Provider, Status
from batchd.records import Ref, Scope, TaskStatus
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import view
from batchd.words import (
    at_least,
    compact,
    counted,
    limit,
    money,
    on_nodes,
    parked_lines,
    rough,
    span,
    status,
    uncertain,
    unsettled,
)

T = TypeVar("T")
Cell: TypeAlias = Text | str

#: The colours of what a batch or a task does, or how it ended; the rest has none.
_STYLES = {
    **dict.fromkeys(("running", "model"), "cyan"),
    **dict.fromkeys(("tool", "completed"), "green"),
    "evaluating": "magenta",
    **dict.fromkeys(("waiting", "parked", "cancelled", *view.WORDS), "yellow"),
    **dict.fromkeys(("error", "failed", "rejected"), "red"),
}
#: From here on a gauge of what must not be full is red.
_RED_FROM = 0.9


def gauge(part: float, width: int, text: str, style: str = "cyan", *, limit: bool = False) -> Text:
    """Return a bar that is filled by ``part``, 0 to 1, and what it says;
    what has begun shows, and only what is full is full.
    """
    part = min(1.0, max(0.0, part))
    full = int(part * width) if part in {0.0, 1.0} else min(width - 1, max(1, round(part * width)))
    style = "red" if limit and part >= _RED_FROM else style
    return Text.assemble(("█" * full, style), ("░" * (width - full), "dim"), f" {text}")


# The head: the daemon, the work as a whole, money, providers, and what is wrong.

#: So many providers have a line each, and so many things that wait have two.
_PROVIDERS, _PARKINGS = 5, 2
#: A label's columns, and the most that a provider's name gets.
_LABEL, _LONGEST_LABEL = 7, 14


def head(snapshot: Status, width: int) -> list[Text]:
    """Return the lines above the lists, the most important first."""
    found = [_daemon(snapshot, width)]
    if daemon := snapshot.daemon:
        if warning := standstill.differs(daemon.version):
            found.append(Text(escape(warning), "bold yellow"))
        for trouble in daemon.troubles:
            what, fix = standstill.trouble_lines(trouble)
            found += [*_said(what, width, "bold red"), *_said(fix, width, "red")]
    facts = {label: [part for part in parts if part] for label, parts in _facts(snapshot)}
    room = min(_LONGEST_LABEL, max(_LABEL, *map(len, facts)))
    for label, parts in facts.items():
        found += _labelled(Text(label, "dim"), parts, room, width)
    if (more := len(snapshot.providers) - _PROVIDERS) > 0:
        found.append(Text(f"… and {counted(more, 'provider')} more", "dim"))
    # What concerns all first, single tasks last.
    ranks = [*Scope]
    parked = sorted(snapshot.parked, key=lambda p: ranks.index(p.scope))
    said = [*parked_lines(parked, snapshot.idle)]
    for place, line in enumerate(islice(said, 2 * _PARKINGS)):
        found += _said(line, width, "dim" if place % 2 else "yellow")
    if (more := len(said) // 2 - _PARKINGS) > 0:
        found.append(Text(f"… and {more:,} more: batchd status", "dim"))
    return found


def _said(line: str, width: int, style: str) -> Iterator[Text]:
    """Yield a text in at most two lines; `batchd status` has all of it."""
    first, *rest = hanging(line, width)
    yield Text(first, style)
    if rest:
        yield Text(rest[0] if len(rest) == 1 else f"{rest[0][: width - 1]}…", style)


def _labelled(name: Text, parts: Iterable[Cell], room: int, width: int) -> Iterator[Text]:
    """Yield parts in as many lines as they take: none of them is cut for another."""
    name.truncate(room, overflow="ellipsis", pad=True)
    line = Text.assemble(name, " ")
    gap = 0
    for part in parts:
        cell = Text(part) if isinstance(part, str) else part
        if gap and line.cell_len + gap + cell.cell_len > width:
            yield line
            line, gap = Text(" " * (room + 1)), 0
        line.append(" " * gap).append_text(cell)
        gap = len(tables.GAP)
    yield line


def _daemon(snapshot: Status, width: int) -> Text:
    daemon = snapshot.daemon
    if daemon is None:
        return Text(snapshot.unheard, "bold red" if snapshot.silent else "bold yellow")
    agents, slots = len(snapshot.agents), daemon.slots or len(snapshot.agents)
    workers = (
        f"{agents}/{slots} agents, {counted(len(daemon.workers), 'worker')}{on_nodes(daemon.nodes)}"
    )
    line = Text.assemble(
        (f"batchd {daemon.version}  ", "bold"),
        ("draining", "bold yellow") if daemon.draining else ("running", "green"),
        f" for {span(max(0.0, snapshot.at - daemon.started_at))}, pid {daemon.pid}  ",
        gauge(agents / max(1, slots), 8, workers),
    )
    clock = time.strftime("%H:%M:%S", time.localtime(snapshot.at))
    gap = width - line.cell_len - len(clock)
    return line.append(" " * gap + clock, "dim") if gap > 1 else line


def _facts(snapshot: Status) -> Iterator[tuple[str, Iterable[Cell]]]:
    """Yield what is said of the work, the money and the providers, each with its label."""
    daemon = snapshot.daemon
    yield "tasks", _tasks(snapshot)
    if snapshot.left and (daemon or snapshot.silent):
        yield "speed", _speed(snapshot)
    if snapshot.held:
        verb = "waits" if snapshot.held == 1 else "wait"
        held = f"{counted(snapshot.held, 'task')} {verb} for something else"
        held += ": not in the time left" if snapshot.seconds_left else ""
        yield "waits", [Text(held, "yellow")]
    if daemon and (day := daemon.day):
        # What was spent, what of that is not certain, and what is set aside.
        spent = f"{at_least(snapshot.spent_today_usd, day.spent_usd)} spent (UTC day)"
        if day.limit_usd:
            part = (day.spent_usd + day.reserved_usd) / day.limit_usd
            said = spent.replace("spent", f"of {limit(day.limit_usd)}")
            first: Cell = gauge(part, 8, said, "green", limit=True)
        else:
            first = spent
        reserved = round(day.reserved_usd, 8)  # what sums of it leave is none
        held = f"+{money(reserved)} set aside" if reserved > 0 else ""
        yield "today", (first, unsettled(snapshot.today.unsettled_usd), held)
    for provider in snapshot.providers[:_PROVIDERS]:
        yield escape(provider.name), _provider(provider)


def _tasks(snapshot: Status) -> Iterator[Cell]:
    """Yield what of all batches that have not ended is done, and where the rest stands."""
    left = [b for b in snapshot.batches if b.published_at is None and b.tasks]
    if not left:
        yield "nothing is left to do"
        return
    tasks, finished = sum(b.tasks for b in left), sum(b.finished for b in left)
    done = gauge(finished / tasks, 16, f"{finished:,}/{tasks:,} done", "green")
    done.stylize("bold", 16)
    yield done
    for count, said, style in (
        (sum(b.timeout + b.error for b in left), "✗ {:,} failed", "red"),
        (sum(b.cancelled for b in left), "{:,} cancelled", "yellow"),
        (sum(b.parked for b in left), "{:,} waiting", "yellow"),
    ):
        yield Text(said.format(count), style) if count else ""
    yield f"{snapshot.queued:,} queued"
    yield f"{len(snapshot.agents):,} at work"


def _speed(snapshot: Status) -> Iterator[Cell]:
    speed = snapshot.speed
    if speed is None:
        yield Text("is known in some seconds", "dim")
        return
    yield f"{speed.tasks_a_minute:.1f} tasks/min"
    yield f"{compact(speed.tokens_a_minute)} tokens/min"
    hourly = speed.usd_a_minute * 60
    yield f"${hourly:,.2f}/h" if hourly >= 0.1 else f"{money(hourly)}/h"  # then cents are enough
    if (left := snapshot.seconds_left) and snapshot.left:
        yield Text(f"about {rough(left)} left", "bold")


def _provider(provider: Provider) -> Iterator[Cell]:
    if provider.parked:
        yield Text(f"waiting: {provider.parked[0].cause}", "yellow")
        return
    status, rate = provider.status, provider.rate
    used = status.under_way / status.concurrent if status.concurrent else 0.0
    yield gauge(used, 8, f"{status.under_way}/{status.concurrent} calls")
    for answered, most, unit in (
        (rate.calls if rate else None, status.rpm, "req/min"),
        (rate.tokens if rate else None, status.tpm, "tok/min"),
    ):
        if answered is None:
            yield f"≤{compact(most)} {unit}" if most else ""
        elif most:
            said = f"{compact(answered)}/{compact(most)} {unit}"
            yield gauge(answered / most, 4, said, limit=True)
        else:
            yield f"{compact(answered)} {unit}"
    yield Text(f"{status.waiting} wait", "yellow") if status.waiting else ""
    yield Text(f"pauses {span(status.paused_s)}", "yellow") if status.paused_s else ""


# Tables: a line a row, with colours

#: So much of a title is always shown.
_LONGEST_TITLE = 20


def table(columns: Sequence[Column[T]], items: Sequence[T], width: int, title: str) -> list[Text]:
    """Return the head, which begins with a title, and a line for each item;
    what cells say is neutralised here.
    """
    least = max(columns[0].least, min(len(title), _LONGEST_TITLE))
    columns = [replace(columns[0], head=title, least=least), *columns[1:]]
    cells = [[_cell(column.of(item)) for column in columns] for item in items]
    rows = [[_cell(column.head) for column in columns], *cells]
    natural = {
        place: max(column.least, *(row[place].cell_len for row in rows))
        for place, column in enumerate(columns)
        if not column.optional or any(row[place] for row in cells)
    }
    narrow = {place: column.least for place, column in enumerate(columns) if column.wide}
    widths = tables.layout(columns, natural, narrow, width)
    gap = Text(tables.GAP)
    return [gap.join(_fitted(row[p], columns[p], w) for p, w in widths.items()) for row in rows]


def _cell(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(escape(str(cell)))


def _fitted(cell: Text, column: Column[T], width: int) -> Text:
    # Names may begin alike: they are cut in their middle.
    cut = Text(name_in(cell.plain, width)) if column.wide == "name" else cell.copy()
    cut.truncate(width, overflow="ellipsis")
    gap = Text(" " * (width - cut.cell_len))
    return gap + cut if column.right else cut + gap


def underlined(drawn: Sequence[Text], width: int, *, active: bool) -> list[Text]:
    """Return a table with its head over the whole width."""
    top, *rows = drawn
    top.pad_right(max(0, width - top.cell_len))
    top.stylize("bold underline" if active else "dim underline")
    return [top, *rows]


def batches(rows: Sequence[BatchRow], width: int, title: str) -> list[Text]:
    """Return a table of batches, with the columns that say something."""
    columns: list[Column[BatchRow]] = [
        Column("BATCH", lambda b: b.batch.name, wide="name", least=13),
        Column("STATUS", lambda b: _styled(status(b.status)), least=9),
        Column("DONE", _done),
        Column("FAILED", lambda b: _some(b.failed, "red"), right=True),
        Column(
            "CANCELLED", lambda b: _some(b.cancelled, "yellow"), right=True, optional=True, rank=4
        ),
        Column("TOKENS", _tokens, right=True, least=6, rank=3),
        Column("COST", _known, right=True, least=7, rank=1),
        Column("UNSETTLED", _unsettled, right=True, optional=True, least=9, rank=2),
        Column("BUDGET", _budget, optional=True, rank=2),
    ]
    return table(columns, rows, width, title)


def _styled(word: str) -> Text:
    return Text(word, _STYLES.get(word, ""))


def _some(count: int, style: str) -> Text:
    return Text(f"{count:,}" if count else "", style)


def _done(row: BatchRow) -> Cell:
    said = f"{row.finished:,}/{row.tasks:,}"
    return gauge(row.finished / row.tasks, 10, said, "green") if row.tasks else ""


def _tokens(row: BatchRow | TaskRow) -> str:
    return compact(row.tally.total_tokens)


def _known(row: BatchRow) -> str:
    return at_least(row.tally.cost_usd, row.tally.known_usd)


def _unsettled(row: BatchRow | TaskRow) -> str:
    return uncertain(row.tally)


def _budget(row: BatchRow) -> Cell:
    budget = row.batch.budget_usd
    spent = (row.tally.cost_usd or 0.0) + row.tally.unsettled_usd
    return gauge(spent / budget, 4, limit(budget), "green", limit=True) if budget else ""


class Doing:
    """Knows of each task what is done for it, as a snapshot has it."""

    def __init__(
        self,
        snapshot: Status,
        batch: Iterable[TaskRow] = (),
        prompts: Mapping[Ref, str] | None = None,
    ) -> None:
        """``batch``: tasks that others may come after; ``prompts``: theirs."""
        self.at = snapshot.at
        self.prompts = {**snapshot.prompts, **(prompts or {})}
        self.commands = snapshot.commands
        self._doing = snapshot.doing
        self._waiting = standstill.WaitReasons(
            snapshot.parked,
            working(snapshot),
            {row.ref for row in batch if not row.status.final},
            earlier=standstill.earlier_batches(snapshot.batches),
            daemon=snapshot.runs,
        )

    def step(self, row: TaskRow) -> tuple[str, str, float]:
        """Return the agent's step, or where the task stands; which model or command, what it waits
        for or why it did not complete; and since when (seconds since the epoch; 0: no question).
        """
        doing = self._doing.get(row.ref)
        if row.status is TaskStatus.RUNNING and doing:
            return doing.step, doing.said, doing.since
        since = row.since if row.status is TaskStatus.PARKED else 0.0
        # Of a check's output the last line says most.
        why = self._waiting.why(row, brief=True).strip().rpartition("\n")[2]
        return view.word(row.status, row.reason), why, since

    def took(self, row: TaskRow) -> float:
        """Return the seconds since the task began, or that it took in all."""
        began, ended = row.started_at, row.finished_at
        return max(0.0, (ended or self.at) - began) if began else 0.0

    def holds(self, row: TaskRow, wanted: str) -> bool:
        """Return whether a text occurs in what is known of a task, in any case of letters."""
        step, detail, _ = self.step(row)
        said = f"{row.ref}\n{step}\n{detail}\n{row.model}\n{self.prompts.get(row.ref, '')}"
        return wanted.casefold() in said.casefold()


def working(snapshot: Status) -> list[TaskRow]:
    """Return the tasks of agents, and those that wait in the middle of their work."""
    return [*snapshot.agents, *snapshot.waiting]


def failed(row: TaskRow) -> bool:
    """Return whether a task failed: to be cancelled is no failure."""
    return row.status in {TaskStatus.ERROR, TaskStatus.TIMEOUT}


#: What people look for first; what has no rank comes last.
_FIRST = (
    "error",
    *sorted(view.WORDS),
    "cancelled",
    "parked",
    "waiting",
    "evaluating",
    "model",
    "tool",
)
_RANKS = {step: rank for rank, step in enumerate(_FIRST)}
#: What tasks are sorted by, one after the other with every `s`; the first is the default for a
#: batch: as they stand in the file, but what failed first.
SORTS: dict[str, Callable[[TaskRow, Doing], Any]] = {
    "": lambda row, _: not failed(row),
    "TIME": lambda row, doing: -doing.took(row),
    "TOKENS": lambda row, _: -row.tally.total_tokens,
    "COST": lambda row, _: -(row.tally.cost_usd or 0.0),
    "STEP": lambda row, doing: (_RANKS.get(step := doing.step(row)[0], len(_RANKS)), step),
    "TASK": lambda row, _: row.ref,
}


def tasks(
    rows: Sequence[TaskRow],
    doing: Doing,
    width: int,
    title: str,
    *,
    by: str = "",
    one: bool = False,
) -> list[Text]:
    """Return a table of tasks, of ``one`` batch; the column that they are sorted by is marked."""

    def step(row: TaskRow) -> Text:
        step, _, since = doing.step(row)
        ago = f" {span(max(0.0, doing.at - since))}" if since else ""
        return _styled(step).append(ago, "dim")

    def time(row: TaskRow) -> str:
        return span(doing.took(row)) if row.started_at else ""

    def command(row: TaskRow) -> str:
        return doing.commands.get(row.ref, "")

    def prompt(row: TaskRow) -> str:
        return doing.prompts.get(row.ref, "")

    def name(row: TaskRow) -> str:
        return row.ref.task if one else str(row.ref)

    columns: list[Column[TaskRow]] = [
        Column("TASK", name, wide="name", least=14 if one else 26),
        Column("STEP", step, least=12 if one else 15),
        Column("ROUND", lambda row: row.round, right=True, rank=4),
        Column("TIME", time, right=True, least=6),
        Column("TOKENS", _tokens, right=True, least=7, rank=3 if one else 2),
        Column("COST", lambda row: money(row.tally.cost_usd), right=True, least=7, rank=1),
        Column("UNSETTLED", _unsettled, right=True, optional=True, least=9, rank=2),
        # Where tasks have ended, why they did so says more than figures.
        Column(
            "DETAIL", lambda row: doing.step(row)[1], wide="text", least=12, rank=2 if one else 5
        ),
        Column("LAST COMMAND", command, wide="text", optional=True, least=20, rank=6),
        Column("PROMPT", prompt, wide="text", least=20, rank=7),
    ]
    for place, column in enumerate(columns):
        if by == column.head:
            mark = f"▾{by}" if column.right else f"{by} ▾"
            columns[place] = replace(column, head=mark)
    return table(columns, rows, width, f"{title} ▾" if by == "TASK" else title)


def ended(snapshot: Status, width: int, height: int) -> list[Text]:
    """Return a table of what ended lately, behind an empty line;
    nothing where there is no room for a head and a task.
    """
    if not (rows := snapshot.ended[: max(0, height - 2)]):
        return []
    drawn = tasks(rows, Doing(snapshot), width, "ENDED LATELY")
    return [Text(), *underlined(drawn, width, active=False)]


def once(snapshot: Status, width: int) -> list[Text]:
    """Return all of it: one picture for a file or a pipe has as many lines as it takes."""
    doing = Doing(snapshot)
    at_work = sorted(working(snapshot), key=lambda row: SORTS["TIME"](row, doing))
    above = batches(snapshot.batches, width, f"BATCHES {len(snapshot.batches):,}")
    below = tasks(at_work, doing, width, f"AT WORK {len(at_work):,}", by="TIME")
    return [
        *head(snapshot, width),
        *underlined(above, width, active=False),
        *underlined(below, width, active=True),
        *([] if at_work else [Text("nothing", "dim")]),
        *ended(snapshot, width, 1 << 16),
    ]
