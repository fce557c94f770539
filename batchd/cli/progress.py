"""Live progress: polls the store, tells what changed, and on a terminal keeps a picture of what runs.

One implementation for ``run``, ``submit --wait``, ``wait`` and ``demo``: whoever works on the tasks, the
store tells how far they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from batchd.cli.common import MARKS, clipped
from batchd.cli.screens import Lines, Picture, Screen, Silence
from batchd.errors import StoreError
from batchd.log import escape
from batchd.observe.words import counted, duration, money
from batchd.records import Ref, Status, Task
from batchd.store.reader import Reader
from batchd.store.rows import BatchRow, TaskRow

_WIDTH = 80
#: Seconds between two looks; longer where a look takes long.
_POLL_S = 0.2
#: Of the time, what looking may take at most.
_SHARE = 0.1


class Books(Protocol):
    """What is looked at: the store, or what the daemon says of it to who may not read it."""

    def batches(self, *, limit: int = -1) -> list[BatchRow]:
        """Return the batches, newest first; at most ``limit`` of them, if it is not negative."""

    def batch(self, name: str) -> BatchRow:
        """Return one batch."""

    def tasks(self, batch: str, /) -> list[TaskRow]:
        """Return its tasks."""

    def running(self) -> list[TaskRow]:
        """Return the tasks at work."""

    def spec(self, ref: Ref) -> Task:
        """Return what a task is."""


@dataclass(slots=True)
class Watch:
    """Compares each look at the store with the one before."""

    reader: Books
    find: Callable[[Books], list[BatchRow]]
    #: The tasks that end before the first look are counted alone.
    late: bool = False
    _told: dict[Ref, tuple[Status, int]] = field(default_factory=dict)
    _batches: dict[str, BatchRow] = field(default_factory=dict)
    _prompts: dict[Ref, str] = field(default_factory=dict)

    def look(self) -> tuple[list[str], Picture]:
        """Return a line for each change since the last look, and the picture."""
        batches = self.find(self.reader)
        names = {b.batch.name for b in batches}
        running = [t for t in self.reader.running() if t.ref.batch in names]
        news: list[str] = []
        for batch in batches:
            before = self._batches.get(batch.batch.name)
            self._batches[batch.batch.name] = batch
            if before is None:
                news.append(_received(batch, late=self.late))
                if self.late:
                    ended = [t for t in self.reader.tasks(batch.batch.name) if t.status.final]
                    self._told |= {t.ref: (t.status, t.round) for t in ended}
                    continue
            if before is None or batch.finished != before.finished:
                # Only now are the rows of tasks that ended worth their reading.
                ended = [t for t in self.reader.tasks(batch.batch.name) if t.status.final]
                news += [line for t in ended for line in self._changes(t)]
        news += [line for t in running for line in self._changes(t)]
        return news, Picture(batches, running, self._prompts)

    def _changes(self, task: TaskRow) -> list[str]:
        known = self._told.get(task.ref)
        now = (task.status, task.round)
        if known == now:
            return []
        self._told[task.ref] = now
        lines = []
        if known is None:
            prompt = " ".join(self.reader.spec(task.ref).first_prompt.split())
            self._prompts[task.ref] = escape(prompt)
            lines.append(f"▸ {task.ref.task} starts: {escape(prompt)}")
        if task.status.final:
            lines.append(_ended(task))
        elif task.status is Status.PARKED:
            lines.append(f"‖ {task.ref.task} waits: {escape(task.message)}")
        elif known is not None and task.round > known[1] > 0:
            lines.append(f"↻ {task.ref.task} is not done yet: round {task.round}")
        return [clipped(line, _WIDTH - 11) for line in lines]


def _received(row: BatchRow, *, late: bool) -> str:
    if row.problems:
        return f"{row.batch.name} was rejected: {counted(len(row.problems), 'error')} in the file"
    done = f", {row.finished:,} of them ended" if late and row.finished else ""
    return f"{row.batch.name}: {counted(row.tasks, 'task')}{done}"


def _ended(task: TaskRow) -> str:
    why = f" ({task.reason})" if task.reason else ""
    took = (task.finished_at or 0.0) - (task.started_at or task.finished_at or 0.0)
    return (
        f"{MARKS[task.status]} {task.ref.task} {task.status}{why}: {duration(took)}, "
        f"{counted(task.round, 'round')}, {task.input_tokens + task.output_tokens:,} tokens, "
        f"{money(task.cost_usd)}"
    )


def open_reader(path: Path, ended: Callable[[], bool]) -> Reader | None:
    """Return a reader as soon as somebody has made the store; none if all ended before."""
    while True:
        try:
            return Reader(path)
        except StoreError:
            if ended():
                return None
        time.sleep(0.05)


def follow(
    reader: Books,
    find: Callable[[Books], list[BatchRow]],
    ended: Callable[[Sequence[BatchRow]], bool],
    *,
    quiet: bool = False,
    notes: Callable[[], Iterable[str]] = tuple,
    late: bool = False,
) -> None:
    """Show what ``find`` finds until ``ended`` says of it that it is over; ``quiet``: wait only.

    ``notes``: what else there is to tell since it was called last. ``late``: tasks that have ended by now are counted,
    and not told one by one.
    """
    watch = Watch(reader, find, late)
    with Silence() if quiet else screen() as shown:
        while True:
            begun = time.monotonic()
            news, picture = watch.look()
            shown.show([*notes(), *news], picture)
            if ended(picture.batches):
                break
            time.sleep(max(_POLL_S, (time.monotonic() - begun) / _SHARE))
        # What came between the last look and the end.
        news, picture = watch.look()
        shown.show([*notes(), *news], picture)


def screen() -> Screen:
    """Return what suits standard output."""
    if not sys.stdout.isatty():
        return Lines()
    from batchd.cli.live import Live  # noqa: PLC0415 (rich, only on a terminal)

    return Live()
