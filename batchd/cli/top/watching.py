"""Looking at the spool beside the keys:
a thread that looks again and again, so that no key waits for the daemon or the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchd.errors import BatchdError
from batchd.events import Event
from batchd.observe.status import Observer, Seldom, Status
from batchd.records import Ref
from batchd.store import lookups, queries
from batchd.store.rows import TaskRow

#: While a task is followed, its journal is looked at so often (seconds).
_FOLLOW_S = 0.3
#: So many tasks that ended lately are listed at most.
LATELY = 20
#: Of larger batches the first tasks' prompts are shown: to read them takes time.
_MOST_PROMPTS = 2_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be looked at beside how things stand: the tasks of a batch, or a task."""

    batch: str = ""
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of a task that is followed."""

    row: TaskRow
    first_prompt: str
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sight:
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


class Watcher:
    """Looks every ``interval_s``, and hands what it sees to ``seen``, also what ends it."""

    def __init__(
        self, state: Path, interval_s: float, seen: Callable[[Sight | Exception], object]
    ) -> None:
        self._state = state
        self._interval_s = interval_s
        self._seen = seen
        self._last = Sight()
        self.wanted = Wish()
        self._poke = threading.Event()
        self._tasks = Seldom[tuple[TaskRow, ...]]()
        #: Of the batch whose tasks were read last.
        self._batch_prompts: tuple[str, Mapping[Ref, str]] = ("", {})

    def start(self) -> None:
        """Begin to look. The thread does not keep the process from ending: it only reads."""
        threading.Thread(target=self._run, name="watcher", daemon=True).start()

    def wish(self, wish: Wish, *, at_once: bool = False) -> None:
        """Look at something else, or, as something has been done, at the same, at once."""
        if at_once or wish != self.wanted:
            self.wanted = wish
            self._tasks = Seldom()
            self._poke.set()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:  # noqa: BLE001 (the thread's outer edge: who draws raises it)
            self._seen(error)

    def _watch(self) -> None:
        due = 0.0
        with Observer(self._state, lately=LATELY) as observer:
            while True:
                now = time.monotonic()
                whole = self._poke.is_set() or now >= due
                self._poke.clear()
                due = now + self._interval_s if whole else due
                self._last = self._look(observer, whole=whole)
                self._seen(self._last)
                pause = max(0.0, due - time.monotonic())
                self._poke.wait(min(pause, _FOLLOW_S) if self.wanted.ref else pause)

    def _look(self, observer: Observer, *, whole: bool) -> Sight:
        wish, last = self.wanted, self._last
        try:
            snapshot = observer.look() if whole or last.snapshot is None else last.snapshot
            if not (self._state / "batchd.db").exists():
                return Sight(snapshot, store=False)
            tasks = self._tasks_of(observer, wish.batch) if wish.batch else ()
            story = self._story(observer, wish.ref) if wish.ref else None
        except (BatchdError, OSError) as error:
            return replace(last, trouble=str(error), store=True)
        prompts = self._batch_prompts[1] if tasks else {}
        return Sight(snapshot, batch=wish.batch, tasks=tasks, prompts=prompts, story=story)

    def _tasks_of(self, observer: Observer, batch: str) -> tuple[TaskRow, ...]:
        found = self._tasks.ask(lambda: tuple(observer.reader.tasks(batch)), batch)
        if self._batch_prompts[0] != batch:
            prompts = observer.reader.read(queries.prompts_of_batch, batch, _MOST_PROMPTS)
            lines = {Ref(batch, task): " ".join(text.split()) for task, text in prompts.items()}
            self._batch_prompts = batch, lines
        return found

    def _story(self, observer: Observer, ref: Ref) -> Story:
        # The row first: what is final in it has no more to come.
        row, known = observer.reader.task(ref), self._last.story
        if known and known.row.ref == ref:
            story = replace(known, row=row)
        else:
            story = Story(row, observer.reader.prompt(ref))
        story.events.extend(observer.reader.read(lookups.events, ref, len(story.events)))
        return story
