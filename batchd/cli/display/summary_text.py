"""A batch's summary for people: what ``summary.json`` says, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from batchd import catalog
from batchd.cli.display import tables
from batchd.cli.display.formatting import MARKS, coloured, room
from batchd.console import hanging
from batchd.log import escape
from batchd.records import TaskStatus
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
        return [coloured(head, "rejected"), *(f"  {_problem(e)}" for e in summary["errors"])]
    cancelled = " was cancelled" if summary["status"] == "cancelled" else ""
    head = (
        f"{name}{cancelled}: {summary['counts']['completed']:,} of {counted(summary['total'], 'task')} "
        f"completed in {duration(summary['wall_s'])}"
    )
    return [
        head,
        "",
        *_figures(summary),
        "",
        *_tasks(summary["tasks"], prompts or {}),
        *_cautions(summary),
    ]


def _cautions(summary: Mapping[str, Any]) -> list[str]:
    """Return a line where tasks changed what runs code when their directories are used."""
    found = sum(task.get("runs_code", 0) != 0 for task in summary["tasks"])
    if not found:
        return []
    may = f"{counted(found, 'task')} may have changed what runs code when you use the directory"
    return ["", f"{may}: `batchd status {escape(summary['batch'])}` says what"]


def _problem(error: Mapping[str, Any]) -> str:
    text = f"{error['place']}: {error['message']}" if error["place"] else error["message"]
    return escape(f"{text} ({error['hint']})" if error["hint"] else text)


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
    if not usage["calls"]:
        del rows["cache"]
    if usage["unsettled_calls"]:
        rows["unsettled"] = (
            f"{counted(usage['unsettled_calls'], 'call')} without an answer on record, "
            f"at most {money(cost['unsettled'])}"
        )
    figures = [*tables.facts(rows, "  ")]
    elsewhere = [c for c in cost["compare"] if usage["calls"] and _on_sale(c["model"])]
    compared = [f"  {c['model']:<32} {money(c['total']):>12}" for c in elsewhere]
    return figures + (["", "The same tokens elsewhere:", *compared] if compared else [])


def _on_sale(model: str) -> bool:
    """Return whether a model is still to be had:
    summaries are older than what they compare with.
    """
    end = catalog.end(model)
    return end is None or not end.gone(catalog.today())


def _outcome(counts: Mapping[str, int], tasks: Sequence[Mapping[str, Any]]) -> str:
    refused = sum(not view.accepted(task["status"], task["reason"]) for task in tasks)
    not_accepted = f"{refused:,} {view.NOT_ACCEPTED}, " if refused else ""
    return (
        f"{counts['completed']:,} completed, {counts['error']:,} failed, {not_accepted}"
        f"{counts['timeout'] - refused:,} timed out, {counts['cancelled']:,} cancelled"
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


def _tasks(tasks: list[Mapping[str, Any]], prompts: Mapping[str, str]) -> list[str]:
    rows = [
        (
            MARKS.get(t["status"], " "),
            t["task"],
            view.word(t["status"], t["reason"]),
            "" if t["status"] == TaskStatus.TIMEOUT else t["reason"] or "",
            str(t["iterations"]),
            duration(t["run_s"]),
            f"{t['total_tokens']:,}",
            money(t["cost"]),
            tables.line(prompts.get(t["task"], "")),
        )
        for t in tasks[:MOST_ROWS]
    ]
    heads = ("", "TASK", "STATUS", "REASON", "ROUNDS", "AT WORK", "TOKENS", "COST", "PROMPT")
    found = tables.table(
        heads,
        rows,
        right=("ROUNDS", "AT WORK", "TOKENS", "COST"),
        flexible="TASK",
        extra=("REASON",),
        texts=("PROMPT",),
        brief=("PROMPT",),
    )
    more = len(tasks) - len(rows)
    found += [f"… and {more:,} more, in summary.json"] if more > 0 else []
    causes: dict[str, list[str]] = {}
    for task in tasks:
        if task["message"]:
            causes.setdefault(task["message"], []).append(task["task"])
    # What ended several tasks stands once.
    kept = [f"{listed(names)}: {cause}" for cause, names in causes.items()][:_MOST_CAUSES]
    said = [line for cause in kept for line in _hanging(cause)]
    return [*found, "", *said] if said else found


def _hanging(text: str) -> Iterator[str]:
    """Yield the lines of a text, all but the first indented,
    wrapped by words; what a check printed has several.
    """
    first, *more = text.splitlines()
    for line in (escape(first), *(f"  {escape(line)}" for line in more if line.strip())):
        yield from hanging(line, room())
