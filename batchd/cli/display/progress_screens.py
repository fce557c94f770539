"""Where progress is shown: what a screen gets, and the screens without a picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from batchd.records import Ref
from batchd.store.rows import BatchRow, TaskRow


@dataclass(frozen=True, slots=True)
class Picture:
    """What is watched, as of now."""

    batches: Sequence[BatchRow]
    #: Running and parked.
    running: Sequence[TaskRow]
    prompts: dict[Ref, str]
    #: Since when it is watched, by the monotonic clock.
    begun: float


class ProgressScreen(Protocol):
    """Where progress is shown."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, *_: object) -> None:
        """Leave nothing on the screen but the lines of news."""

    def show(self, news: Sequence[str], picture: Picture) -> None:
        """Print each line of ``news`` for good, and show the picture until the next."""


class LineScreen:
    """The screen for files and pipes: lines alone, each with its time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, news: Sequence[str], picture: Picture) -> None:
        """Print the news."""
        for line in news:
            print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


class SilentScreen(LineScreen):
    """The screen for programs, which need the end alone."""

    def show(self, news: Sequence[str], picture: Picture) -> None:
        """Show nothing."""
