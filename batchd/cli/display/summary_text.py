"""A batch's summary for people: what ``summary.json`` says, within 80 columns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders
from batchd.cli.display import formatting, tables
from batchd.cli.display.formatting import MARKS, coloured, room
from batchd.cli.display.tables import Column
from batchd.config.sections import CostSection
from batchd.console import hanging
from batchd.errors import Problem
from batchd.log import escape, escape_text
from batchd.records import Batch, TaskStatus
from batchd.store.rows import BatchRow
from batchd.views import view
from batchd.words import counted, duration, from_cache, listed, money, percent

#: Longer lists are cut here; summary.json has them all.
MOST_ROWS = 50
#: Messages of tasks that did not complete.
_MOST_CAUSES = 10


def lines(summary: Mapping[str, Any], prompts: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines of a summary, of a finished batch or a rejected file;
    ``prompts``: of its tasks, as far as they are known.
    """
    name = escape(summary["batch"])
    if summary["status"] == "rejected":
        head = f"{name} was rejected: {counted(len(summary['errors']), 'error')} in the file"
        problems = [Problem(e["place"], e["message"], e["hint"]) for e in summary["errors"]]
        return [coloured(head, "rejected"), *(f"  {escape(str(problem))}" for problem in problems)]
    cancelled = " was cancelled" if summary["status"] == "cancelled" else ""
    head = (
        f"{name}{cancelled}: {summary['counts']['completed']:,} of {counted(summary['total'], 'task')} "
        f"completed in {duration(summary['wall_s'])}"
    )
    cautions = []
    if found := sum(task.get("runs_code", 0) != 0 for task in summary["tasks"]):
        may = f"{counted(found, 'task')} may have changed what runs code when you use the directory"
        cautions = [f"{may}: `batchd status {name}` says what"]
    if near := [task["task"] for task in summary["tasks"] if task.get("near_limits")]:
        cautions.append(f"Near a limit: {escape(listed(near))}; `batchd status {name}` says which")
    found = [head, "", *_figures(summary), "", *_tasks(summary["tasks"], prompts or {})]
    return [*found, "", *cautions] if cautions else found


def _figures(summary: Mapping[str, Any]) -> list[str]:
    counts, usage, cost = summary["counts"], summary["usage"], summary["cost"]
    estimated = " (partly estimated)" if usage["estimated"] else ""
    rows = {
        "outcome": _outcome(counts, summary["tasks"]),
        "success": percent(summary["success_rate"] or 0.0),
        "tokens": f"{usage['total_tokens']:,}{estimated}: {usage['input_tokens']:,} in "
        f"({usage['cached_input_tokens']:,} cached), {usage['output_tokens']:,} out",
        "cache": from_cache(usage.get("cache_share"), cost.get("cache_saved")),
        "calls": f"{usage['calls']:,}, {usage['average_tokens_per_call']:,} tokens on average",
        "cost": _cost(cost, summary["tasks"]),
    }
    if usage.get("cache_share") is None:
        del rows["cache"]
    if not usage["calls"]:
        del rows["tokens"], rows["calls"], rows["cost"]
    if usage["unsettled_calls"]:
        rows["unsettled"] = (
            f"{counted(usage['unsettled_calls'], 'call')} without an answer on record, "
            f"at most {money(cost['unsettled'])}"
        )
    figures = [*formatting.facts(rows, "  ")]
    # Those that batchd compares with unasked stand in the report.
    asked = [c["model"] for c in cost["compare"]] != [*CostSection().compare]
    elsewhere = cost["compare"] if usage["calls"] and asked else []
    compared = [f"  {c['model']:<32} {money(c['total']):>12}" for c in elsewhere]
    return figures + (["", "The same tokens elsewhere:", *compared] if compared else [])


def _outcome(counts: Mapping[str, int], tasks: Sequence[Mapping[str, Any]]) -> str:
    refused = sum(not view.accepted(task["status"], task["reason"]) for task in tasks)
    not_accepted = f"{refused:,} {view.NOT_ACCEPTED}, " if refused else ""
    return (
        f"{counts['completed']:,} completed, {counts['error']:,} failed, {not_accepted}"
        f"{counts['timeout'] - refused:,} over a limit, {counts['cancelled']:,} cancelled"
    )


def _cost(cost: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    if cost["total"] is None:
        known = [t["cost"] for t in tasks if t["cost"] is not None]
        if not any(known):
            return "unknown: there is no price for the model"
        unpriced = counted(len(tasks) - len(known), "task")
        return f"more than {money(sum(known))}: there is no price for the model of {unpriced}"
    parts = f"{money(cost['input'])} in, {money(cost['output'])} out"
    source = f"; prices: {cost['price_source']}" if cost["price_source"] else ""
    return f"{money(cost['total'])} ({parts}{source})"


_COLUMNS: tuple[Column[Mapping[str, Any]], ...] = (
    Column("", lambda t: MARKS.get(t["status"], " ")),
    Column("TASK", lambda t: t["task"], wide="name"),
    Column("STATUS", lambda t: view.word(t["status"], t["reason"])),
    Column(
        "REASON",
        lambda t: "" if t["status"] == TaskStatus.TIMEOUT else t["reason"] or "",
        optional=True,
    ),
    Column("ROUNDS", lambda t: t["iterations"], right=True),
    Column("AT WORK", lambda t: duration(t["run_s"]), right=True),
    Column("TOKENS", lambda t: f"{t['total_tokens']:,}", right=True),
    Column("COST", lambda t: money(t["cost"]), right=True),
)


def _tasks(tasks: list[Mapping[str, Any]], prompts: Mapping[str, str]) -> list[str]:
    tasks = sorted(tasks, key=lambda task: task["status"] == TaskStatus.COMPLETED)
    prompt: Column[Mapping[str, Any]] = Column(
        "PROMPT", lambda t: formatting.one_line(prompts.get(t["task"], "")), wide="line"
    )
    rows = tasks[:MOST_ROWS]
    found = [*tables.lines(rows, (*_COLUMNS, prompt))]
    more = len(tasks) - len(rows)
    found += [f"… and {more:,} more, in summary.json"] if more > 0 else []
    causes: dict[str, list[str]] = {}
    for task in tasks:
        if task["message"]:
            causes.setdefault(task["message"], []).append(task["task"])
    # What ended several tasks stands once.
    kept = [f"{listed(names)}: {cause}" for cause, names in causes.items()][:_MOST_CAUSES]
    said: list[str] = []
    for cause in kept:
        # What a check printed has several lines.
        first, *rest = cause.splitlines()
        for line in (escape(first), *(f"  {escape(line)}" for line in rest if line.strip())):
            said += hanging(line, room())
    return [*found, "", *said] if said else found


def report(rows: Iterable[BatchRow], *, as_json: bool = False, answers: bool = True) -> int:
    """Print the summaries; return 0 if all completed, 2 if a file was refused, else 1.

    As JSON, that of a single task has its answer too; for people, the only task's, if ``answers``.
    """
    rows = list(rows)
    found = [(row.batch, _read(row.batch)) for row in rows]
    if as_json:
        more = [{"answer": answer(row)} if row.tasks == 1 else {} for row in rows]
        formatting.print_json(
            [one | said for (_, one), said in zip(found, more, strict=True) if one is not None]
        )
    for batch, one in () if as_json else found:
        if one is None:
            print(f"\n{batch.name} has been collected already.")
        else:
            print(
                "",
                *lines(one, {line.task: line.first_prompt for line in _result_lines(batch)}),
                "",
                f"Results: {batch.folder}/",
                # Not every batch has a report.
                *(
                    [f"Report:  {page}"]
                    if (page := Path(batch.folder, "report.html")).is_file()
                    else []
                ),
                *next_steps(batch.name, [(t["task"], t["status"]) for t in one["tasks"]]),
                sep="\n",
            )
    if answers and not as_json and [row.tasks for row in rows] == [1] and (said := answer(rows[0])):
        print(f"\n{escape_text(said)}")
    if any(row.problems for row in rows):
        return 2
    return 0 if all(row.completed == row.tasks for row in rows) else 1


def next_steps(batch: str, tasks: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield what to do about tasks that did not complete, of those with their statuses; nothing
    where all did.
    """
    failed = [task for task, status in tasks if status in {TaskStatus.ERROR, TaskStatus.TIMEOUT}]
    if failed:
        yield f"Look:    batchd logs {batch}/{failed[0]}"
    if any(status != TaskStatus.COMPLETED for _, status in tasks):
        yield f"Again:   batchd retry --failed {batch}"


def answer(row: BatchRow) -> str:
    """Return the answer of a batch's first task; empty: it has none, or has been collected."""
    return next((line.answer for line in _result_lines(row.batch)), "")


class _Line(msgspec.Struct):
    """The fields of a line in ``results.jsonl`` that a summary does not have."""

    task: str
    first_prompt: str
    answer: str


def _result_lines(batch: Batch) -> list[_Line]:
    """Return the lines of the first tasks; none where a collector has taken the results away."""
    decoder: msgspec.json.Decoder[_Line] = decoders.decoder(_Line)
    try:
        with Path(batch.folder, "results.jsonl").open("rb") as file:
            return [decoder.decode(line) for line in itertools.islice(file, MOST_ROWS)]
    except (OSError, msgspec.MsgspecError):
        return []


def _read(batch: Batch) -> dict[str, Any] | None:
    """Return a published summary; None where a collector has taken it away."""
    try:
        found: dict[str, Any] = json.loads(Path(batch.folder, "summary.json").read_bytes())
    except FileNotFoundError:
        return None
    return found
