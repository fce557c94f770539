"""One task, as ``batchd status BATCH/TASK`` shows it:
what was asked for, what came of it, and what it took.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchd import decoders, views, words
from batchd.errors import StoreError, cut
from batchd.formats import FilesV1, ResultV1
from batchd.observe import changes
from batchd.records import Ref, TaskStatus
from batchd.store.reader import StoreReader
from batchd.store.rows import TaskRow
from batchd.views import view
from batchd.words import counted, duration, listed, moment, money

#: Characters of a prompt, an answer or a verdict; `batchd logs` and the result have all of it.
_MAX_TEXT_CHARS = 600


def facts(reader: StoreReader, row: TaskRow, why: str) -> dict[str, str]:
    """Return what is known of a task by name, in the order in which people look for it;
    ``why``: what it waits for.
    """
    text = reader.result(row.ref) if row.status.final else ""
    made = decoders.decode(text, ResultV1) if text else None
    return {
        "task": str(row.ref),
        "status": f"{view.word(row.status, row.reason)} since {moment(row.since)}",
        "why": _excerpt(why),
        "prompt": _excerpt(_prompt(reader, row.ref)),
        **(_outcome(made, why) if made else {}),
        "changed": _changed(made, row) if made else "",
        "directory": row.directory,
        "model": row.model,
        "round": str(row.round),
        "tokens": f"{row.input_tokens:,} in ({row.cached_input_tokens:,} cached), "
        f"{row.output_tokens:,} out, in {counted(row.calls, 'call')}",
        "cache": words.from_cache(row.cache_share, row.cache_saved) if row.calls else "",
        "cost": money(row.cost_usd),
        "unsettled": f"{counted(row.unsettled_calls, 'call')}, "
        + (f"at most {money(row.unsettled_usd)}" if row.unsettled_usd else "at a price unknown")
        if row.unsettled_calls
        else "",
        "queued": moment(row.queued_at),
        "started": moment(row.started_at),
        "finished": moment(row.finished_at),
        "took": duration(row.finished_at - row.started_at)
        if row.finished_at and row.started_at
        else "",
        "attempts": str(row.attempts),
        "last step": "" if row.status.final else views.last(row.step).step,
    }


def _prompt(reader: StoreReader, ref: Ref) -> str:
    try:
        return reader.spec(ref).first_prompt
    except StoreError:  # it was pruned
        return ""


def _outcome(made: ResultV1, why: str) -> dict[str, str]:
    """Return what a task has answered, what was said of it,
    unless ``why`` says it, and which files it left.
    """
    verdict = made.evaluation
    done = "" if verdict is None else "done" if verdict.done else "not done"
    new = verdict is not None and verdict.feedback and verdict.feedback not in why
    said = f": {_excerpt(verdict.feedback)}" if verdict and new else ""
    return {
        "answer": _excerpt(made.answer) or ("none" if made.status is TaskStatus.COMPLETED else ""),
        "verdict": f"{verdict.by}: {done}{said}" if verdict and verdict.by != "none" else "",
        "files": _files(made.files),
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
    return "\n".join(_lines(cut(text.strip(), _MAX_TEXT_CHARS)))


def _lines(text: str) -> Iterator[str]:
    yield from (line.rstrip() for line in text.splitlines() if line.strip())
