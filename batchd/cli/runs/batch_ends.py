"""How commands that wait for batches end: with each summary, and one exit code for all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders
from batchd.cli.display import formatting, summary_text
from batchd.records import Batch
from batchd.store.rows import BatchRow


def report(rows: Iterable[BatchRow], *, as_json: bool = False) -> int:
    """Print the summaries; return 0 if all completed, 2 if a file was refused, else 1.

    As JSON, that of a single task has its answer too.
    """
    rows = list(rows)
    found = [(row.batch, _read(row.batch)) for row in rows]
    if as_json:
        answers = [{"answer": answer(row)} if row.tasks == 1 else {} for row in rows]
        formatting.print_json(
            [one | more for (_, one), more in zip(found, answers, strict=True) if one is not None]
        )
    for batch, one in () if as_json else found:
        if one is None:
            print(f"\n{batch.name} has been collected already.")
        else:
            print(
                "",
                *summary_text.lines(one, {line.task: line.first_prompt for line in _tasks(batch)}),
                "",
                f"Results: {batch.folder}/",
                *_page(batch),
                sep="\n",
            )
    if any(row.problems for row in rows):
        return 2
    return 0 if all(row.completed == row.tasks for row in rows) else 1


def _page(batch: Batch) -> list[str]:
    """Return the line that names a batch's report, where it has one."""
    page = Path(batch.folder, "report.html")
    return [f"Report:  {page}"] if page.is_file() else []


def answer(row: BatchRow) -> str:
    """Return the answer of a batch's first task; empty: it has none, or has been collected."""
    return next((line.answer for line in _tasks(row.batch)), "")


class _Line(msgspec.Struct):
    """The fields of a line in ``results.jsonl`` that a summary does not have."""

    task: str
    first_prompt: str
    answer: str


def _tasks(batch: Batch) -> list[_Line]:
    """Return the lines of the first tasks; none where a collector has taken the results away."""
    decoder: msgspec.json.Decoder[_Line] = decoders.decoder(_Line)
    try:
        with Path(batch.folder, "results.jsonl").open("rb") as file:
            return [decoder.decode(line) for line in itertools.islice(file, summary_text.MOST_ROWS)]
    except (OSError, msgspec.MsgspecError):
        return []


def _read(batch: Batch) -> dict[str, Any] | None:
    """Return a published summary; None where a collector has taken it away."""
    try:
        found: dict[str, Any] = json.loads(Path(batch.folder, "summary.json").read_bytes())
    except FileNotFoundError:
        return None
    return found
