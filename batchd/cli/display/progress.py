"""Live progress: polls the store, prints what changed,
and on a terminal keeps a picture of what runs.

One implementation for ``run``, ``submit --wait``, ``wait`` and ``demo``: whichever daemon works on
the tasks, the store says how far they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeAlias

from batchd.cli.display.formatting import MARKS
from batchd.console import clipped, hanging
from batchd.errors import NoDaemonError
from batchd.log import escape
from batchd.observe import standstill
from batchd.records import Parking, Ref, TaskStatus
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import last, view
from batchd.words import counted, duration, money, parked_lines

if TYPE_CHECKING:
    from batchd.cli.member_reader import MemberReader
    from batchd.store.queries import StoreReader


@dataclass(frozen=True, slots=True)
class Picture:
    """What is watched, as of now."""

    batches: Sequence[BatchRow]
    #: Running and parked.
    running: Sequence[TaskRow]
    prompts: dict[Ref, str]
    #: Since when it is watched, by the monotonic clock.
    begun: float


class ProgressScreen:
    """Where progress is shown; this one is for files and pipes: lines alone, each with its time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing on the screen but the lines of news."""

    def show(self, news: Sequence[str], picture: Picture) -> None:
        """Print each line of ``news`` for good, and show the picture until the next."""
        for line in news:
            print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


#: Columns of a line, behind its time.
_ROOM = 80 - 11
#: Seconds between two looks; longer where a look takes long.
_POLL_S = 0.2
#: Of the time, what looking may take at most.
_SHARE = 0.1


#: What is looked at: the store, or what the outbox says to who may not read it.
ProgressSource: TypeAlias = "StoreReader | MemberReader"


@dataclass(slots=True)
class ProgressWatch:
    """Compares each look at the store with the one before."""

    reader: ProgressSource
    find: Callable[[ProgressSource], list[BatchRow]]
    #: Of what came before the first look, ends are counted alone, and starts are no news.
    late: bool = False
    _begun: float = field(default_factory=time.monotonic)
    _shown: dict[Ref, tuple[TaskStatus, int]] = field(default_factory=dict)
    _batches: dict[str, BatchRow] = field(default_factory=dict)
    _prompts: dict[Ref, str] = field(default_factory=dict)
    #: What was parked at the last look, which batches waited then, and what was said of that.
    _waiting: tuple[tuple[Parking, ...], frozenset[str]] = ((), frozenset())
    _held: tuple[Parking, ...] = ()
    #: Whether it was said that calls fail: once is enough for all tasks.
    _failing: bool = False

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
                name = batch.batch.name
                if batch.problems:
                    errors = counted(len(batch.problems), "error")
                    news.append(f"{name} was rejected: {errors} in the file")
                else:
                    over = self.late and batch.finished
                    done = f", {batch.finished:,} of them ended" if over else ""
                    news.append(f"{name}: {counted(batch.tasks, 'task')}{done}")
                if self.late:
                    ended = [t for t in self.reader.tasks(batch.batch.name) if t.status.final]
                    self._shown |= {t.ref: (t.status, t.round) for t in ended}
                    continue
            if before is None or batch.finished != before.finished:
                # Only now are the rows of tasks that ended worth their reading.
                ended = [t for t in self.reader.tasks(batch.batch.name) if t.status.final]
                news += [line for t in ended for line in self._changes(t)]
        news += [line for t in running for line in self._changes(t)]
        said = ((t, last(t.step).caution) for t in running if t.status is TaskStatus.RUNNING)
        if not self._failing and (failing := next((each for each in said if each[1]), None)):
            self._failing = True
            news += hanging(f"‖ {failing[0].ref.task}: {failing[1]}", _ROOM)
        self.late = False
        news += self._waits(batches, running)
        return news, Picture(batches, running, self._prompts, self._begun)

    def _waits(self, batches: Sequence[BatchRow], running: Sequence[TaskRow]) -> list[str]:
        """Return what keeps batches waiting of which no task is at work,
        and how to go on, unless that was said.
        """
        at_work = {t.ref.batch for t in running if t.status is TaskStatus.RUNNING}
        left = frozenset(b.batch.name for b in batches if b.finished < b.tasks) - at_work
        parked = self.reader.parked() if left else ()
        if (parked, left) == self._waiting:
            return []
        self._waiting = parked, left
        tasks = {name: self.reader.tasks(name) for name in sorted(left)} if parked else {}
        held = {p: None for name in tasks for p in standstill.of_batch(parked, name, tasks[name])}
        if tuple(held) == self._held:
            return []
        self._held = tuple(held)
        lines = (line if line.startswith(" ") else f"‖ {line}" for line in parked_lines(held))
        return [piece for line in lines for piece in hanging(line, _ROOM)]

    def _changes(self, task: TaskRow) -> list[str]:
        known = self._shown.get(task.ref)
        now = (task.status, task.round)
        if known == now:
            return []
        self._shown[task.ref] = now
        lines = []
        if known is None and (task.started_at is not None or not task.status.final):
            prompt = " ".join(self.reader.prompt(task.ref).split())
            self._prompts[task.ref] = escape(prompt)
            begins = "starts"
            if self.late and task.started_at is not None:
                begins = f"began {duration(max(0.0, time.time() - task.started_at))} ago"
            lines.append(f"▸ {task.ref.task} {begins}: {escape(prompt)}")
        if task.status.final:
            how = view.said(task.status, task.reason, task.round)
            lines.append(
                f"{MARKS[task.status]} {task.ref.task} {how}: {duration(task.took_s or 0.0)}, "
                f"{counted(task.round, 'round')}, {task.tally.total_tokens:,} tokens, "
                f"{'cost unknown' if (usd := task.tally.cost_usd) is None else money(usd)}"
            )
        elif task.status is TaskStatus.PARKED:
            return [
                *(clipped(line, _ROOM) for line in lines),
                *hanging(f"‖ {task.ref.task} waits: {escape(task.message)}", _ROOM),
            ]
        elif known is not None and task.round > known[1] > 0:
            lines.append(f"↻ {task.ref.task} is not done yet: round {task.round}")
        return [clipped(line, _ROOM) for line in lines]


#: How long a daemon may be away (a restart, say) before that is reported to the user who waits,
#: and how often it is asked for (seconds).
_GONE_S, _ASK_S = 30.0, 1.0


def follow(
    watch: ProgressWatch,
    alive: Callable[[], bool],
    *,
    quiet: bool,
    patience_s: float = _GONE_S,
) -> None:
    """Show what a watch finds until all of it has ended; ``quiet``: wait only.

    A watch that is followed again says nothing twice.
    Raises ``NoDaemonError`` when no daemon has been ``alive`` for long.
    """
    seen = asked = time.monotonic()

    def look() -> Sequence[BatchRow]:
        news, picture = watch.look()
        if not quiet:
            shown.show(news, picture)
        return picture.batches

    with ProgressScreen() if quiet else _screen() as shown:
        while True:
            begun = time.monotonic()
            rows = look()
            if rows and all(row.published_at is not None for row in rows):
                break
            if (now := time.monotonic()) - asked >= _ASK_S:
                asked = now
                if alive():
                    seen = now
                elif now - seen > patience_s:
                    raise NoDaemonError(
                        "the daemon has stopped; the batch goes on when it starts again"
                    )
            time.sleep(max(_POLL_S, (time.monotonic() - begun) / _SHARE))
        look()  # what came between the last look and the end


def _screen() -> ProgressScreen:
    """Return what suits standard output."""
    if not sys.stdout.isatty():
        return ProgressScreen()
    from batchd.cli.display.live_picture import LivePicture  # rich, only on a terminal

    return LivePicture()
