"""The tables of ``batchd status``: of batches, and of the tasks of one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from batchd import decoders, views, words
from batchd.cli.display import formatting, tables
from batchd.cli.display.tables import Column
from batchd.control.status import RunningTask
from batchd.errors import cut
from batchd.formats import FilesV1, ResultV1
from batchd.log import escape
from batchd.observe import changes, status
from batchd.observe.standstill import WaitReasons
from batchd.records import Ref, TaskStatus
from batchd.store import lookups
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import view
from batchd.words import at_least, counted, duration, listed, moment, money, span, uncertain


def batches(rows: Sequence[BatchRow], prompts: Mapping[str, str] | None = None) -> Iterator[str]:
    """Yield the lines of a table of batches;
    ``prompts``: by batch, of its first task, as far as they are known.
    """

    def about(row: BatchRow) -> str:
        # A refused file has no task: what is wrong with it stands there.
        wrong = str(row.problems[0]) if row.problems else ""
        return formatting.one_line(wrong or (prompts or {}).get(row.batch.name, ""))

    return tables.lines(rows, (*_BATCHES, Column("FIRST PROMPT", about, wide="line")))


_BATCHES: tuple[Column[BatchRow], ...] = (
    Column("BATCH", lambda b: b.batch.name, wide="name"),
    Column("STATUS", lambda b: words.status(b.status)),
    Column("DONE", lambda b: f"{b.finished:,}/{b.tasks:,}", right=True),
    Column("FAILED", lambda b: f"{b.failed:,}" if b.failed else "", right=True),
    Column("TOKENS", lambda b: f"{b.tally.total_tokens:,}", right=True),
    Column("COST", lambda b: at_least(b.tally.cost_usd, b.tally.known_usd), right=True),
    Column("UNSETTLED", lambda b: uncertain(b.tally), right=True, optional=True),
    Column("RECEIVED", lambda b: moment(b.batch.received_at)),
)


def tasks(
    rows: Sequence[TaskRow],
    prompts: Mapping[str, str],
    waiting: WaitReasons,
    doing: Mapping[Ref, RunningTask],
) -> Iterator[str]:
    """Yield the lines of a table of one batch's tasks;
    ``prompts``: theirs, as far as they are known; ``doing``: what is done for those at work.
    """

    def why(row: TaskRow) -> str:
        return waiting.why(row, brief=True) or now(doing.get(row.ref))

    def prompt(row: TaskRow) -> str:
        return formatting.one_line(prompts.get(row.ref.task, ""))

    columns = [*_TASKS, Column("PROMPT", prompt, wide="line")]
    columns.append(Column("WHY", why, wide="text"))
    if len({row.model for row in rows}) > 1:
        columns.insert(2, Column("MODEL", lambda t: t.model, wide="name"))
    return tables.lines(rows, columns)


def now(doing: RunningTask | None) -> str:
    """Return what is done for a task at work, and for how long; empty: it is not at work."""
    if doing is None:
        return ""
    what = ": ".join(filter(None, (doing.step, doing.said)))
    return f"{what} for {span(max(0.0, time.time() - doing.since))}"


_TASKS: tuple[Column[TaskRow], ...] = (
    Column("TASK", lambda t: t.ref.task, wide="name"),
    Column("STATUS", lambda t: view.word(t.status, t.reason)),
    Column("ROUND", lambda t: t.round, right=True),
    Column("CALLS", lambda t: t.tally.calls, right=True),
    Column("TOKENS", lambda t: f"{t.tally.total_tokens:,}", right=True),
    Column("COST", lambda t: money(t.tally.cost_usd), right=True),
    Column("UNSETTLED", lambda t: uncertain(t.tally), right=True, optional=True),
)
#: Characters of a prompt, an answer or a verdict; `batchd logs` and the result have all of it.
_MAX_TEXT_CHARS = 600


def task_facts(reader: StoreReader, row: TaskRow, why: str) -> dict[str, str]:
    """Return what is known of a task by name, in the order in which people look for it;
    ``why``: what it waits for.
    """
    text = reader.result(row.ref) if row.status.final else ""
    made = decoders.decode(text, ResultV1) if text else None
    used = row.tally
    return {
        "task": str(row.ref),
        "status": f"{view.word(row.status, row.reason)} since {moment(row.since)}",
        "why": _excerpt(why),
        "prompt": _excerpt(status.prompt(reader, row.ref)),
        **(_outcome(made, why) if made else {}),
        "changed": _changed(made, row) if made else "",
        "directory": row.directory,
        "model": row.model,
        "round": str(row.round),
        "tokens": f"{used.input_tokens:,} in ({used.cached_input_tokens:,} cached), "
        f"{used.output_tokens:,} out, in {counted(used.calls, 'call')}",
        "cache": words.from_cache(used.cache_share, used.cache_saved) if used.calls else "",
        "cost": money(used.cost_usd),
        "unsettled": f"{counted(used.unsettled_calls, 'call')}, "
        + (f"at most {money(used.unsettled_usd)}" if used.unsettled_usd else "at a price unknown")
        if used.unsettled_calls
        else "",
        "queued": moment(row.queued_at),
        "started": moment(row.started_at),
        "finished": moment(row.finished_at),
        "took": duration(row.took_s),
        "attempts": str(row.attempts),
        "last step": "" if row.status.final else views.last(row.step).step,
    }


def _outcome(made: ResultV1, why: str) -> dict[str, str]:
    """Return what a task has answered, what was said of it,
    unless ``why`` says it, and which files it left.
    """
    verdict = made.evaluation
    done = "" if verdict is None else "done" if verdict.done else "not done"
    first = verdict is not None and verdict.already_true is True
    more = words.of_check(made.score, first=first, flaky=made.flaky)
    new = verdict is not None and verdict.feedback and verdict.feedback not in why
    said = f": {_excerpt(verdict.feedback)}" if verdict and new else ""
    return {
        "answer": _excerpt(made.answer) or ("none" if made.status is TaskStatus.COMPLETED else ""),
        "verdict": f"{verdict.by}: {done}{more}{said}" if verdict and verdict.by != "none" else "",
        "files": _files(made.files) if made.timing.started_at else "",
    }


def _files(files: FilesV1 | None) -> str:
    if files is None:
        return "not listed: too many, or the task ended before batchd looked"
    found = {"created": files.created, "modified": files.modified, "deleted": files.deleted}
    return "; ".join(f"{what} {listed(paths)}" for what, paths in found.items() if paths) or "none"


def _changed(made: ResultV1, row: TaskRow) -> str:
    """Return what a task has changed in its clone or copy, or why its files may be lost;
    empty: neither.
    """
    if remarks := changes.remarks(made):
        return "; ".join(remarks)
    if made.workspace is None:
        return ""
    if made.patch is None:
        return f"nothing, in its {made.workspace.kind} of {made.workspace.source}"
    return f"{changes.lines(made)}: `batchd diff {row.ref}`, `batchd apply {row.ref}`"


def _excerpt(text: str) -> str:
    """Return the beginning of a text, its lines as they are, none of them empty."""
    lines = cut(text.strip(), _MAX_TEXT_CHARS).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())


#: By task: the results that have something to report.
Cautions: TypeAlias = Mapping[str, ResultV1]

#: Tasks, and files of each, that are shown; the results have all.
_MOST_TASKS, _MOST_FILES = 20, 10
_WORDS = "runs code when you use this directory"


def cautions(reader: StoreReader, batch: str, task: str = "") -> Cautions:
    """Return what there is to report of a batch, or of one task in it."""
    texts = reader.read(lookups.cautions, batch, task)
    return {name: decoders.decode(text, ResultV1) for name, text in texts.items()}


def reported(cautions: Cautions, task: str) -> dict[str, object]:
    """Return what a task's result reports, as JSON has it."""
    if (found := cautions.get(task)) is None:
        return {"runs_code": (), "near_limits": {}}
    return {"runs_code": found.runs_code, "near_limits": found.near_limits}


def caution_lines(cautions: Cautions) -> Iterator[str]:
    """Yield lines for people, each file with the command that shows it."""
    near = {task: result for task, result in cautions.items() if result.near_limits}
    for task, result in list(near.items())[:_MOST_TASKS]:
        yield escape(f"{task} came near a limit: {words.near_limits(result.near_limits)}")
    if (more := len(near) - _MOST_TASKS) > 0:
        yield f"… and {more:,} more tasks: near_limits in their results"
    cautions = {task: result for task, result in cautions.items() if result.runs_code != ()}
    for task, result in list(cautions.items())[:_MOST_TASKS]:
        files = result.runs_code
        if files is None:
            yield escape(
                f"{task} ended before batchd looked whether it left what {_WORDS}: {result.dir}"
            )
            continue
        yield escape(f"{task} changed what {_WORDS}: {result.dir}")
        for file in files[:_MOST_FILES]:
            whose = f", for {file.by}" if file.by else ", batchd could not look into it"
            yield escape(f"  {file.show}    ({file.change}{whose})")
        if (more := len(files) - _MOST_FILES) > 0:
            yield f"  … and {more:,} more: runs_code in its result"
    if (more := len(cautions) - _MOST_TASKS) > 0:
        yield f"… and of {more:,} more tasks: runs_code in their results"
