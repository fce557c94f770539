"""Looking at the spool beside the keys:
a thread that looks again and again, so that no key waits for the daemon.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchd.errors import BatchdError
from batchd.events import Event
from batchd.observe.status import Observer, Status
from batchd.records import Ref
from batchd.store import lookups, queries
from batchd.store.rows import TaskRow

#: While a task is followed, its journal is looked at so often (seconds).
_FOLLOW_S = 0.3
#: So many tasks that ended lately are listed at most.
LATELY = 20
#: Of larger batches the first tasks' prompts are shown: to read them takes time.
_MOST_PROMPTS = 2_000
#: Of the time, what reading the tasks of a batch may take at most: it may have a hundred thousand.
_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class TopQuery:
    """What is to be looked at beside how things stand."""

    #: The batch whose tasks are wanted; empty: none.
    batch: str = ""
    #: The task that is followed, and how many of its events are known.
    ref: Ref | None = None
    known: int = 0


@dataclass(frozen=True, slots=True)
class Story:
    """News of a task that is followed."""

    row: TaskRow
    first_prompt: str
    #: The number of the first of ``events``.
    start: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class TopSnapshot:
    """What was seen last."""

    #: None before the first look.
    snapshot: Status | None = None
    #: Whether there is a store.
    store: bool = True
    #: Why it cannot be read.
    trouble: str = ""
    #: The tasks of the batch that was wished for, and its name.
    batch: str = ""
    tasks: tuple[TaskRow, ...] = ()
    #: Their prompts, each on one line.
    prompts: Mapping[Ref, str] = field(default_factory=dict)
    story: Story | None = None


class SpoolPoller:
    """Looks every ``interval_s``, and calls ``wake`` when it has seen something."""

    def __init__(self, state: Path, interval_s: float, wake: Callable[[], None]) -> None:
        self.sight = TopSnapshot()
        #: What ended the thread, though nothing should.
        self.failure: Exception | None = None
        self._state = state
        self._interval_s = interval_s
        self._wake = wake
        self._wish = TopQuery()
        self._poke = threading.Event()
        self._tasks_due = 0.0
        self._prompts: dict[Ref, str] = {}
        #: Of the batch whose tasks were read last.
        self._batch_prompts: tuple[str, Mapping[Ref, str]] = ("", {})

    def start(self) -> None:
        """Begin to look. The thread does not keep the process from ending: it only reads."""
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def wish(self, wish: TopQuery) -> None:
        """Look at something else, at once."""
        if wish != self._wish:
            other = (wish.batch, wish.ref) != (self._wish.batch, self._wish.ref)
            self._wish = wish
            if other:
                self._tasks_due = 0.0
                self.again()

    def again(self) -> None:
        """Look at once: something has been done."""
        self._poke.set()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001 (the thread's outer edge: the one that draws raises it)
            self.failure = error
            self._wake()

    def _watch(self) -> None:
        due = 0.0
        with Observer(self._state, lately=LATELY) as observer:
            while True:
                poked = self._poke.is_set()
                self._poke.clear()
                now = time.monotonic()
                whole = poked or now >= due
                if whole:
                    due = now + self._interval_s
                self.sight = self._look(observer, whole=whole)
                self._wake()
                pause = due - time.monotonic()
                self._poke.wait(min(pause, _FOLLOW_S) if self._wish.ref else pause)

    def _look(self, observer: Observer, *, whole: bool) -> TopSnapshot:
        wish, last = self._wish, self.sight
        try:
            snapshot = observer.look() if whole or last.snapshot is None else last.snapshot
            if not (self._state / "batchd.db").exists():
                return TopSnapshot(snapshot, store=False)
            tasks = self._tasks(observer, wish.batch)
            story = self._story(observer, wish) if wish.ref else None
        except (BatchdError, OSError) as error:
            return replace(last, trouble=str(error), story=None, store=True)
        prompts = self._batch_prompts[1] if tasks else {}
        return TopSnapshot(snapshot, batch=wish.batch, tasks=tasks, prompts=prompts, story=story)

    def _tasks(self, observer: Observer, batch: str) -> tuple[TaskRow, ...]:
        if not batch:
            return ()
        begun = time.monotonic()
        if begun < self._tasks_due and self.sight.batch == batch:
            return self.sight.tasks
        found = tuple(observer.reader.tasks(batch))
        if self._batch_prompts[0] != batch:
            prompts = observer.reader.read(queries.prompts_of_batch, batch, _MOST_PROMPTS)
            lines = {Ref(batch, task): " ".join(text.split()) for task, text in prompts.items()}
            self._batch_prompts = batch, lines
        took = time.monotonic() - begun
        self._tasks_due = begun + max(self._interval_s, took / _SHARE)
        return found

    def _story(self, observer: Observer, wish: TopQuery) -> Story | None:
        assert wish.ref is not None
        # The row first: what is final in it has no more to come.
        row = observer.reader.task(wish.ref)
        if wish.ref not in self._prompts:
            self._prompts = {wish.ref: observer.reader.prompt(wish.ref)}
        events = observer.reader.read(lookups.events, wish.ref, wish.known)
        return Story(row, self._prompts[wish.ref], wish.known, tuple(events))
