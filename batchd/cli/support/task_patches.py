"""The patches of tasks, as they lie in the outbox: for ``diff`` and ``apply``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.errors import NotPossibleError
from batchd.formats import ResultV1
from batchd.records import Ref
from batchd.spool import outbox, patch_files
from batchd.store.reader import StoreReader


@dataclass(frozen=True, slots=True)
class TaskPatch:
    """What a task has made, by its result."""

    ref: Ref
    folder: Path
    result: ResultV1

    @property
    def file(self) -> Path:
        """Where the patch lies."""
        return self.folder / patch_files.name(self.ref.task)

    @property
    def whole(self) -> bool:
        """Whether there is a patch, with all of its files, that may be shown."""
        patch = self.result.patch
        return bool(patch and patch.file and not patch.withheld and not patch.left_out)

    def patch(self) -> bytes:
        """Return the patch. Raises ``NotPossibleError`` where it is not what the result says."""
        patch = self.result.patch
        data = patch_files.whole(self.folder, self.ref.task, patch.sha256) if patch else None
        if data is None:
            raise NotPossibleError(
                f"{self.file} is gone, or differs from what the result of {self.ref} says"
            )
        return data


def of(reader: StoreReader, batch: str, task: str = "") -> Iterator[TaskPatch]:
    """Yield the tasks of a batch, or the one that is named, that have a result.

    Raises ``UnknownNameError``.
    """
    row = reader.batch(batch)
    names = [reader.task(Ref(batch, task)).ref.task] if task else None
    folder = Path(row.batch.folder)
    for name in names or [each.ref.task for each in reader.tasks(batch)]:
        value = outbox.result(folder, name)
        if value is not None:
            yield TaskPatch(Ref(batch, name), folder, _result(value, folder / f"{name}.json"))


def _result(value: object, path: Path) -> ResultV1:
    try:
        return decoders.convert(value, ResultV1)
    except msgspec.ValidationError as error:
        raise NotPossibleError(f"{path} is not a result of batchd: {error}") from None
