"""Batches as ``status`` lists them, for who may not read the store:
looked up by one thread, once for all who ask meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

from batchd.control.status import ListedBatch
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow

#: A question about more batches is cut: an answer is one line.
_MAX_BATCHES = 1000
#: An answer that is younger is given again (seconds).
_FRESH_S = 0.2
#: Answers that are kept.
_KEPT = 64


@dataclass(slots=True, eq=False, repr=False)
class BatchListing:
    """Lists batches for ``status``."""

    _store: Path
    _answers: dict[tuple[int, str], tuple[float, tuple[ListedBatch, ...]]] = field(
        default_factory=dict
    )
    _one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def found(self, last: int, batch: str) -> tuple[ListedBatch, ...]:
        """Return a batch, or without a name so many of the newest. Raises ``StoreError``."""
        key = (max(0, min(last, _MAX_BATCHES)), batch)
        if key == (0, ""):
            return ()
        async with self._one_by_one:
            known = self._answers.get(key)
            if known and time.monotonic() - known[0] < _FRESH_S:
                return known[1]
            rows = await asyncio.to_thread(self._read, *key)
            if len(self._answers) >= _KEPT:
                self._answers.clear()
            self._answers[key] = (time.monotonic(), rows)
            return rows

    def _read(self, last: int, batch: str) -> tuple[ListedBatch, ...]:
        with StoreReader(self._store) as reader:
            found = [reader.batch(batch)] if batch else reader.batches(limit=last)
            return tuple(map(_row, found))


def _row(row: BatchRow) -> ListedBatch:
    batch = row.batch
    return ListedBatch(
        name=batch.name,
        folder=batch.folder,
        request=batch.request,
        received_at=batch.received_at,
        rejected=bool(row.problems),
        **{f: getattr(row, f) for f in ListedBatch.__struct_fields__ if hasattr(row, f)},
    )
