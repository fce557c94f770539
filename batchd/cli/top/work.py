"""Tasks as `top` lists them: those at work, those that gave their slot back, or all of one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from batchd.cli.top.columns import Column
from batchd.observe.snapshot import Agent, Snapshot
from batchd.observe.words import compact, money, span
from batchd.records import Status
from batchd.store.rows import TaskRow

#: The colours of what a task does, or how it ended; the rest has none.
_STYLES = {
    "model": "cyan",
    "tool": "green",
    "evaluating": "magenta",
    "waiting": "yellow",
    "parked": "yellow",
    "completed": "green",
    "timeout": "yellow",
    "cancelled": "yellow",
    "error": "red",
}


@dataclass(frozen=True, slots=True)
class Work:
    """A task, and what is done for it."""

    row: TaskRow
    #: A step of the agent's, or where the task stands.
    step: str
    detail: str
    #: When this step began; 0 where that is no question.
    since: float
    #: When this was seen.
    at: float

    @property
    def elapsed_s(self) -> float:
        """Time since the task began, or that it took in all."""
        began, ended = self.row.started_at, self.row.finished_at
        return max(0.0, (ended or self.at) - began) if began else 0.0


def at_work(snapshot: Snapshot) -> list[Work]:
    """Return the agents, and the tasks that wait in the middle of their work."""
    agents = [_agent(agent, snapshot.at) for agent in snapshot.agents]
    return [*agents, *(_task(row, {}, snapshot.at) for row in snapshot.waiting)]


def of_batch(tasks: Iterable[TaskRow], snapshot: Snapshot) -> list[Work]:
    """Return a batch's tasks, in the order of its file."""
    doing = {agent.row.ref: agent for agent in snapshot.agents}
    return [_task(row, doing, snapshot.at) for row in tasks]


def _agent(agent: Agent, at: float) -> Work:
    return Work(agent.row, agent.step, agent.detail, agent.since, at)


def _task(row: TaskRow, doing: dict[Any, Agent], at: float) -> Work:
    if row.status is Status.RUNNING and (agent := doing.get(row.ref)):
        return _agent(agent, at)
    why = ": ".join(filter(None, (row.reason, row.message)))
    after = (
        f"comes after {', '.join(row.after)}" if row.status is Status.QUEUED and row.after else ""
    )
    since = row.since if row.status is Status.PARKED else 0.0
    return Work(row, str(row.status), why or after, since, at)


#: What lists are sorted by, one after the other with every `s`; the first is the default.
ORDERS: dict[str, tuple[Callable[[Work], Any], bool]] = {
    "TIME": (lambda w: w.elapsed_s, True),
    "TOKENS": (lambda w: w.row.input_tokens + w.row.output_tokens, True),
    "COST": (lambda w: w.row.cost_usd or 0.0, True),
    "STEP": (lambda w: w.step, False),
    "TASK": (lambda w: w.row.ref, False),
}
#: The default for a batch's tasks: as they stand in the file.
IN_ORDER = ""


def ordered(works: Sequence[Work], by: str) -> list[Work]:
    """Return them sorted; of what is equal, as it came."""
    if by == IN_ORDER:
        return [*works]
    key, backwards = ORDERS[by]
    return sorted(works, key=key, reverse=backwards)


def found(works: Iterable[Work], words: str) -> Iterator[Work]:
    """Yield those in which a text occurs that somebody looks for, in any case of letters."""
    wanted = words.casefold()
    for work in works:
        row = work.row
        if wanted in f"{row.ref}\n{work.step}\n{work.detail}\n{row.model}".casefold():
            yield work


def columns(by: str, *, of_one: bool) -> list[Column[Work]]:
    """Return the columns; the one that the list is sorted by is marked. ``of_one``: all are of one batch."""
    made: list[Column[Work]] = [
        Column(head="TASK", cell=_name if of_one else _whole_name, flexible=True, least=26),
        Column(head="STEP", cell=_step, least=15),
        Column(head="ROUND", cell=lambda w: str(w.row.round), right=True, rank=3),
        Column(
            head="TIME",
            cell=lambda w: span(w.elapsed_s) if w.elapsed_s else "",
            right=True,
            least=6,
        ),
        Column(head="TOKENS", cell=_tokens, right=True, least=7, rank=2),
        Column(head="COST", cell=lambda w: money(w.row.cost_usd), right=True, rank=1),
        Column(head="DOING", cell=lambda w: w.detail, flexible=True, least=12, rank=4),
    ]
    if by == IN_ORDER:
        return made
    return [_marked(c) if c.head == by else c for c in made]


def _name(work: Work) -> str:
    return work.row.ref.task


def _whole_name(work: Work) -> str:
    return str(work.row.ref)


def _marked(column: Column[Work]) -> Column[Work]:
    head = f"▾{column.head}" if column.right else f"{column.head} ▾"
    return replace(column, head=head)


def _step(work: Work) -> Text:
    since = f" {span(max(0.0, work.at - work.since))}" if work.since else ""
    return Text.assemble((work.step, _STYLES.get(work.step, "")), (since, "dim"))


def _tokens(work: Work) -> str:
    return compact(work.row.input_tokens + work.row.output_tokens)
