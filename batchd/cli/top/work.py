"""Tasks as `top` lists them:
those at work, those that gave their slot back, or all of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from batchd.cli.top.columns import Column, bar, table
from batchd.observe.standstill import WaitReasons, earlier_batches
from batchd.observe.status import Status
from batchd.records import Ref, TaskStatus
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import view
from batchd.words import at_least, compact, limit, money, span, uncertain

#: The colours of what a task does, or how it ended; the rest has none.
_STYLES = {
    "model": "cyan",
    "tool": "green",
    "evaluating": "magenta",
    "waiting": "yellow",
    "parked": "yellow",
    "completed": "green",
    **dict.fromkeys(view.WORDS, "yellow"),
    "cancelled": "yellow",
    "error": "red",
}


@dataclass(frozen=True, slots=True)
class TaskActivity:
    """A task, and what is done for it."""

    row: TaskRow
    #: A step of the agent's, or where the task stands.
    step: str
    #: Which model, which command; what it waits for; why it did not complete.
    detail: str
    #: When this step began; 0 where that is no question.
    since: float
    #: When this was seen.
    at: float
    #: Each on one line; empty where they are not known.
    prompt: str = ""
    command: str = ""

    @property
    def elapsed_s(self) -> float:
        """Time since the task began, or that it took in all."""
        began, ended = self.row.started_at, self.row.finished_at
        return max(0.0, (ended or self.at) - began) if began else 0.0


class Activities:
    """Knows of each task what is done for it, as a snapshot has it."""

    def __init__(
        self,
        snapshot: Status,
        batch: Iterable[TaskRow] = (),
        prompts: Mapping[Ref, str] | None = None,
    ) -> None:
        """``batch``: tasks that others may come after; ``prompts``: theirs."""
        self._prompts = {**snapshot.prompts, **(prompts or {})}
        self._commands = snapshot.commands
        self._at = snapshot.at
        self._doing = snapshot.doing
        begun = [*snapshot.agents, *snapshot.waiting]
        left = {row.ref for row in batch if not row.status.final}
        daemon = snapshot.runs
        batches = earlier_batches(snapshot.batches)
        self._waiting = WaitReasons(snapshot.parked, begun, left, earlier=batches, daemon=daemon)

    def work(self, row: TaskRow) -> TaskActivity:
        """Return what is done for a task."""
        doing = self._doing.get(row.ref)
        prompt, command = self._prompts.get(row.ref, ""), self._commands.get(row.ref, "")
        if row.status is TaskStatus.RUNNING and doing:
            since, at = doing.since, self._at
            return TaskActivity(row, doing.step, doing.said, since, at, prompt, command)
        since = row.since if row.status is TaskStatus.PARKED else 0.0
        step, why = view.word(row.status, row.reason), self._waiting.in_short(row)
        return TaskActivity(row, step, why, since, self._at, prompt, command)


def at_work(snapshot: Status) -> list[TaskRow]:
    """Return the tasks of agents, and those that wait in the middle of their work."""
    return [*snapshot.agents, *snapshot.waiting]


#: What people look for first; what has no rank comes last.
_RANKS = {
    step: rank
    for rank, step in enumerate(
        (
            "error",
            *sorted(view.WORDS),
            "cancelled",
            "parked",
            "waiting",
            "evaluating",
            "model",
            "tool",
        )
    )
}
#: What lists are sorted by, one after the other with every `s`; the first is the default.
SORTS: dict[str, tuple[Callable[[TaskActivity], Any], bool]] = {
    "TIME": (lambda w: w.elapsed_s, True),
    "TOKENS": (lambda w: w.row.tally.total_tokens, True),
    "COST": (lambda w: w.row.tally.cost_usd or 0.0, True),
    "STEP": (lambda w: (_RANKS.get(w.step, len(_RANKS)), w.step), False),
    "TASK": (lambda w: w.row.ref, False),
}
#: The default for a batch's tasks: as they stand in the file.
IN_ORDER = ""


def listed(works: Iterable[TaskActivity], by: str, words: str) -> list[TaskRow]:
    """Return the tasks in which a text occurs, in any case of letters, sorted;
    of what is equal, as it came.
    """
    wanted = words.casefold()
    if wanted:
        works = (
            w
            for w in works
            if wanted in f"{w.row.ref}\n{w.step}\n{w.detail}\n{w.row.model}\n{w.prompt}".casefold()
        )
    if by != IN_ORDER:
        key, backwards = SORTS[by]
        works = sorted(works, key=key, reverse=backwards)
    return [work.row for work in works]


def columns(by: str, *, of_one: bool, unsettled: bool) -> list[Column[TaskActivity]]:
    """Return the columns; the one that the list is sorted by is marked.

    ``of_one``: all are of one batch. ``unsettled``: some have calls without an answer on record.
    """
    made: list[Column[TaskActivity]] = [
        Column(
            head="TASK",
            cell=(lambda w: w.row.ref.task) if of_one else (lambda w: str(w.row.ref)),
            flexible=True,
            name=True,
            least=14 if of_one else 26,
        ),
        Column(head="STEP", cell=_step, least=12 if of_one else 15),
        Column(head="ROUND", cell=lambda w: str(w.row.round), right=True, rank=4),
        Column(
            head="TIME",
            cell=lambda w: span(w.elapsed_s) if w.elapsed_s else "",
            right=True,
            least=6,
        ),
        Column(
            head="TOKENS",
            cell=lambda w: _tokens(w.row),
            right=True,
            least=7,
            rank=3 if of_one else 2,
        ),
        Column(
            head="COST", cell=lambda w: money(w.row.tally.cost_usd), right=True, least=7, rank=1
        ),
        *(
            [
                Column(
                    head="UNSETTLED",
                    cell=lambda w: uncertain(w.row.tally),
                    right=True,
                    least=9,
                    rank=2,
                )
            ]
            if unsettled
            else ()
        ),
        # Where tasks have ended, why they did so says more than figures.
        Column(
            head="DETAIL",
            cell=lambda w: w.detail,
            flexible=True,
            least=12,
            rank=2 if of_one else 5,
        ),
        Column(head="LAST COMMAND", cell=lambda w: w.command, flexible=True, least=20, rank=6),
        Column(head="PROMPT", cell=lambda w: w.prompt, flexible=True, least=20, rank=7),
    ]
    if by == IN_ORDER:
        return made
    return [
        replace(c, head=f"▾{c.head}" if c.right else f"{c.head} ▾") if c.head == by else c
        for c in made
    ]


def _step(work: TaskActivity) -> Text:
    since = f" {span(max(0.0, work.at - work.since))}" if work.since else ""
    return Text.assemble((work.step, _STYLES.get(work.step, "")), (since, "dim"))


_BATCH_STYLES = {
    "running": "cyan",
    "parked": "yellow",
    "completed": "green",
    "cancelled": "yellow",
    "failed": "red",
    "rejected": "red",
}
_BAR, _SMALL_BAR = 10, 4
#: From here on a budget's gauge is red.
_RED_FROM = 0.9


def batch_columns(rows: Sequence[BatchRow]) -> list[Column[BatchRow]]:
    """Return the columns that say something."""
    made: list[Column[BatchRow]] = [
        Column(head="BATCH", cell=lambda b: b.batch.name, flexible=True, name=True, least=13),
        Column(
            head="STATUS", cell=lambda b: Text(b.status, _BATCH_STYLES.get(b.status, "")), least=9
        ),
        Column(head="DONE", cell=_done),
        Column(head="BAD", cell=_bad, right=True, least=3),
        Column(head="TOKENS", cell=_tokens, right=True, least=6, rank=3),
        Column(
            head="COST",
            cell=lambda b: at_least(b.tally.cost_usd, b.tally.known_usd),
            right=True,
            least=7,
            rank=1,
        ),
    ]
    if any(b.tally.unsettled_calls for b in rows):
        made.append(
            Column(head="UNSETTLED", cell=lambda b: uncertain(b.tally), right=True, least=9, rank=2)
        )
    if any(b.batch.budget_usd for b in rows):
        made.append(Column(head="BUDGET", cell=_budget, rank=2))
    return made


def _done(row: BatchRow) -> Text:
    if not row.tasks:
        return Text()
    gauge = bar(row.finished / row.tasks, _BAR, "green")
    return Text.assemble(gauge, f" {row.finished:,}/{row.tasks:,}")


def _bad(row: BatchRow) -> Text:
    bad = row.finished - row.completed
    return Text(f"{bad:,}" if bad else "", "red")


def _tokens(row: BatchRow | TaskRow) -> str:
    return compact(row.tally.total_tokens)


def _budget(row: BatchRow) -> Text:
    budget = row.batch.budget_usd
    if not budget:
        return Text()
    part = ((row.tally.cost_usd or 0.0) + row.tally.unsettled_usd) / budget
    gauge = bar(part, _SMALL_BAR, "red" if part >= _RED_FROM else "green")
    return Text.assemble(gauge, f" {limit(budget)}")


_END_STYLES = {"completed": "green", "timeout": "yellow", "cancelled": "yellow", "error": "red"}
#: Fewer lines than these show nothing: a head and a task.
_MIN_LINES = 2


def lately(snapshot: Status, width: int, height: int) -> list[Text]:
    """Return a table of as many tasks as have room; nothing where none ended lately."""
    shown = snapshot.ended[: height - 1]
    if height < _MIN_LINES or not shown:
        return []
    columns: Sequence[Column[TaskRow]] = (
        Column(head="TASK", cell=lambda t: str(t.ref), flexible=True, name=True, least=20),
        Column(
            head="HOW",
            cell=lambda t: Text(
                view.said(t.status, t.reason, t.round), _END_STYLES.get(t.status, "")
            ),
            least=9,
        ),
        Column(head="TIME", cell=_took, right=True, least=6, rank=2),
        Column(head="TOKENS", cell=_tokens, right=True, least=7, rank=3),
        Column(head="COST", cell=lambda t: money(t.tally.cost_usd), right=True, least=7, rank=1),
        Column(
            head="PROMPT",
            cell=lambda t: snapshot.prompts.get(t.ref, ""),
            flexible=True,
            least=20,
            rank=4,
        ),
    )
    found = table(columns, shown, width, title="ENDED LATELY")
    found[0].stylize("dim underline")
    found[0].pad_right(max(0, width - found[0].cell_len))
    return found


def _took(row: TaskRow) -> str:
    if row.started_at is None or row.finished_at is None:
        return ""
    return span(max(0.0, row.finished_at - row.started_at))
