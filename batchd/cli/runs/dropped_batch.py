"""Which batch a dropped file became, as its dropper finds out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from batchd.cli.display.progress import ProgressSource
from batchd.errors import ForbiddenError, StoreError
from batchd.records import Batch, Ref, Task
from batchd.spool import outbox
from batchd.store.rows import BatchRow

#: Tasks of which the store is asked whether they are the file's.
_COMPARED = 100
#: Batches among which one is looked for.
_LATEST = 1000


def doubts(books: ProgressSource, batch: Batch) -> Iterator[str]:
    """Yield each batch that has ended, of those that one comes after,
    where a later one of the same file has not.
    """
    rows = books.batches(limit=_LATEST) if batch.after_batches else []
    names = [row.batch.name for row in rows]
    # Newest first: those before it in the list came after it.
    before = rows[names.index(batch.name) + 1 :] if batch.name in names else []
    left = [row.batch.name for row in before if row.published_at is None]
    for name in batch.after_batches:
        later = [each for each in left if re.fullmatch(rf"{re.escape(name)}-\d+", each)]
        if later and name not in left and name in names:
            yield (
                f"{batch.name} comes after {name}, which has ended; {later[0]} has not: if you "
                "mean that one, name it in after_batches"
            )


class DroppedBatch:
    """Finds the batch that a dropped file became: another program may drop one of the same name."""

    def __init__(self, newest: str, filename: str, data: bytes, tasks: Sequence[Task]) -> None:
        """``newest``: the newest batch before the drop.

        ``filename``: as it was dropped. ``tasks``: what is in the file.
        """
        self._newest = newest
        self._base = outbox.batch_name(filename)
        self._data = data
        self._tasks = tasks
        #: The batch's, once it is known.
        self.name = ""

    def find(self, reader: ProgressSource) -> list[BatchRow]:
        """Return the batch, alone; nothing as long as it has not been claimed."""
        if not self.name:
            for row in reader.batches(limit=_LATEST):
                if row.batch.name == self._newest:
                    break
                if self._is_mine(reader, row):
                    self.name = row.batch.name
        return [reader.batch(self.name)] if self.name else []

    def _is_mine(self, reader: ProgressSource, row: BatchRow) -> bool:
        batch = row.batch
        if not re.fullmatch(rf"{re.escape(self._base)}(-\d+)?", batch.name):
            return False
        try:
            return Path(batch.folder, batch.request).read_bytes() == self._data
        except OSError:
            # Not moved yet; or a collector was faster than this look, and the store alone can say.
            return row.published_at is not None and self._same_tasks(reader, row)

    def _same_tasks(self, reader: ProgressSource, row: BatchRow) -> bool:
        """Whether the store has tasks of these ids and prompts.

        A refused file has none: its name has to do.
        """
        if row.problems:
            return True
        if row.tasks != len(self._tasks):
            return False
        found = (reader.spec(Ref(row.batch.name, task.id)) for task in self._tasks[:_COMPARED])
        try:
            return all(a.first_prompt == b.first_prompt for a, b in zip(found, self._tasks))  # noqa: B905 (of as many as are compared)
        except StoreError:
            return False  # another id, or pruned
        except ForbiddenError:
            return True  # for who may not read prompts, name and number have to do
