"""The patches of tasks, as they lie in the outbox: for ``diff`` and ``apply``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchd.errors import NotPossibleError
from batchd.records import Ref
from batchd.spool import outbox, patches
from batchd.store.reader import Reader


@dataclass(frozen=True, slots=True)
class Made:
    """What a task has made, by its result."""

    ref: Ref
    folder: Path
    result: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What the result says of the patch; empty: there is none."""
        return self.result.get("patch") or {}

    @property
    def file(self) -> Path:
        """Where the patch lies."""
        return self.folder / patches.name(self.ref.task)

    def patch(self) -> bytes:
        """Return the patch. Raises ``NotPossibleError`` where it is not what the result says."""
        data = patches.whole(self.folder, self.ref.task, self.about.get("sha256") or "")
        if data is None:
            raise NotPossibleError(
                f"{self.file} is gone, or is not what the result of {self.ref} says it is"
            )
        return data


def of(reader: Reader, batch: str, task: str = "") -> Iterator[Made]:
    """Yield the tasks of a batch, or the one that is named, that have a result. Raises ``UnknownNameError``."""
    row = reader.batch(batch)
    names = [reader.task(Ref(batch, task)).ref.task] if task else None
    for name in names or [each.ref.task for each in reader.tasks(batch)]:
        folder = Path(row.batch.folder)
        result = outbox.result(folder, name)
        if result is not None:
            yield Made(Ref(batch, name), folder, result)
