"""What tasks have changed that runs code when somebody uses their directories,
for people who look at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import msgspec

from batchd import decoders
from batchd.formats import ResultV1
from batchd.log import escape
from batchd.store.reader import StoreReader

#: By task: the results that have something to report.
Cautions: TypeAlias = Mapping[str, ResultV1]

#: Tasks, and files of each, that are shown; the results have all.
_MOST_TASKS, _MOST_FILES = 20, 10
_WORDS = "runs code when you use this directory"


def read(reader: StoreReader, batch: str, task: str = "") -> Cautions:
    """Return what there is to report of a batch, or of one task in it."""
    texts = reader.cautions(batch, task)
    return {name: decoders.decode(text, ResultV1) for name, text in texts.items()}


def field(cautions: Cautions, task: str) -> object:
    """Return what a task's result says, as JSON has it."""
    return msgspec.to_builtins(cautions[task].runs_code) if task in cautions else []


def lines(cautions: Cautions) -> Iterator[str]:
    """Yield lines for people, each file with the command that shows it."""
    for task, result in list(cautions.items())[:_MOST_TASKS]:
        yield from map(escape, _of_task(task, result))
    if (more := len(cautions) - _MOST_TASKS) > 0:
        yield f"… and of {more:,} more tasks: runs_code in their results"


def _of_task(task: str, result: ResultV1) -> Iterator[str]:
    files = result.runs_code
    if files is None:
        yield f"{task} ended before batchd looked whether it left what {_WORDS}: {result.dir}"
        return
    yield f"{task} changed what {_WORDS}: {result.dir}"
    for file in files[:_MOST_FILES]:
        whose = f", for {file.by}" if file.by else ", batchd could not look into it"
        yield f"  {file.show}    ({file.change}{whose})"
    if (more := len(files) - _MOST_FILES) > 0:
        yield f"  … and {more:,} more: runs_code in its result"
