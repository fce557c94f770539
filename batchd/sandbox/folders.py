"""The folders that a task's commands are given, open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Folders:
    """Descriptors: the task's directory, and its /tmp where that lasts."""

    #: -1 once it is closed.
    task: int
    tmp: int | None = None
    #: Whether the directory was made just now: nothing is in it.
    new: bool = False

    def __iter__(self) -> Iterator[int]:
        """Yield what is open."""
        if self.task >= 0:
            yield self.task
        if self.tmp is not None:
            yield self.tmp

    def copy(self) -> Folders:
        """Return descriptors of the same folders that outlive these. Raises ``OSError``."""
        task = os.dup(self.task)
        try:
            return Folders(task, None if self.tmp is None else os.dup(self.tmp))
        except OSError:
            os.close(task)
            raise

    def close(self) -> None:
        """Close them, once."""
        for descriptor in self:
            os.close(descriptor)
        self.task, self.tmp = -1, None
