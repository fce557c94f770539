"""How prompts begin, a line of each:
lists show it, and pages that are open ask for it again each second.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeAlias

from batchd.records import Ref
from batchd.spool import outbox
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow

#: Characters of an excerpt.
_MAX_EXCERPT_CHARS = 140
#: Excerpts that are kept; beyond it all are read again.
_KEPT = 50_000

#: A batch by its claim, which no other has, a task of it, and whether the batch was pruned.
_Key: TypeAlias = tuple[str, str, bool]


class Excerpts:
    """Reads each prompt once. For several threads."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}

    def line(self, reader: StoreReader, batch: BatchRow, task: str = "") -> str:
        """Return how a task's prompt begins, of a batch that of its first task;
        empty: no one knows any more.

        Raises ``StoreError`` where the store cannot be read.
        """
        key = (batch.batch.claim, task, bool(batch.pruned))
        if (found := self._known.get(key)) is None:
            found = _excerpt(_prompt(reader, batch, task or _first(reader, batch)))
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = found
        return found


def prompt(reader: StoreReader, ref: Ref, folder: str) -> str:
    """Return a task's prompt; of a pruned one as its result
    in the outbox has it, and empty where that is gone.
    """
    if not reader.pruned(ref):
        return reader.spec(ref).first_prompt
    with contextlib.suppress(OSError, ValueError):
        found = outbox.result(Path(folder), ref.task) or {}
        return str(found.get("first_prompt", ""))
    return ""


def _prompt(reader: StoreReader, batch: BatchRow, task: str) -> str:
    if not task:
        return ""
    return prompt(reader, Ref(batch.batch.name, task), batch.batch.folder)


def _first(reader: StoreReader, batch: BatchRow) -> str:
    _, rows = reader.tasks_where(batch.batch.name, limit=1)
    return rows[0].ref.task if rows else ""


def _excerpt(text: str) -> str:
    """Return the beginning of a text on one line."""
    whole = " ".join(text[: 4 * _MAX_EXCERPT_CHARS].split())
    return (
        whole
        if len(whole) <= _MAX_EXCERPT_CHARS
        else f"{whole[: _MAX_EXCERPT_CHARS - 2].rstrip()} …"
    )
