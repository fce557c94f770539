"""The main screen: how things stand above, batches and tasks below,
and the keys that act on them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from rich.text import Text

from batchd.cli.top import head, work
from batchd.cli.top.columns import table
from batchd.cli.top.watching import TopQuery, TopSnapshot
from batchd.cli.top.work import Activities
from batchd.console import wrapped
from batchd.control import Cancel, Order, Pause, Resume, Retry
from batchd.errors import UsageError
from batchd.log import escape
from batchd.observe.status import Status
from batchd.records import Ref, Scope, TargetCounts
from batchd.spool.ulid import ulid
from batchd.store.rows import BatchRow, TaskRow

T = TypeVar("T")
#: An order, and what is asked before it is given; empty: nothing.
Asked: TypeAlias = tuple[Order[Any], str]

#: How far a key moves in a list that shows so many lines; more than all: to its end.
_MOVES: dict[str, Callable[[int], int]] = {
    "up": lambda _: -1,
    "k": lambda _: -1,
    "down": lambda _: 1,
    "j": lambda _: 1,
    "page up": lambda lines: -lines,
    "page down": lambda lines: lines,
    "home": lambda _: -(1 << 30),
    "g": lambda _: -(1 << 30),
    "end": lambda _: 1 << 30,
    "G": lambda _: 1 << 30,
}


def moves(key: str, lines: int) -> int:
    """Return how far a key moves, in lines; 0: the key does not move."""
    return _MOVES[key](max(1, lines)) if key in _MOVES else 0


@dataclass(slots=True)
class Selection(Generic[T]):
    """What is chosen stays chosen while the list changes around it;
    where it is gone, its neighbour is.
    """

    #: What an item is known by.
    key: Callable[[T], Hashable]
    chosen: Hashable = None
    #: Where it was seen last, and the first line that is shown.
    place: int = 0
    first: int = 0
    #: How many lines there were room for.
    lines: int = 1

    def settle(self, items: Sequence[T]) -> T | None:
        """Return what is chosen of the items that there are now; None: there are none."""
        if not items:
            return None
        # Nothing is chosen yet: the first, whichever that is.
        if self.chosen is not None:
            places = (place for place, item in enumerate(items) if self.key(item) == self.chosen)
            self.place = next(places, min(self.place, len(items) - 1))
        else:
            self.place = 0
        return items[self.place]

    def move(self, items: Sequence[T], by: int) -> None:
        """Choose another."""
        self.settle(items)
        if items:
            self.place = min(len(items) - 1, max(0, self.place + by))
            self.chosen = self.key(items[self.place])

    def window(self, items: Sequence[T], lines: int) -> Sequence[T]:
        """Return those that are shown in so many lines: what is chosen is among them."""
        self.settle(items)
        self.lines = max(1, lines)
        self.first = min(self.first, max(0, len(items) - self.lines), self.place)
        self.first = max(self.first, self.place - self.lines + 1)
        return items[self.first : self.first + lines]


#: A screen that is lower than this shows one list alone.
_MIN_LINES_FOR_TWO_LISTS = 14
#: One of so many lines has room for an empty one.
_MIN_LINES_FOR_SPACING = 29
_NO_STORE = "No batch has been taken up here yet: this waits for the first one."


class Pane(enum.Enum):
    """Where keys act."""

    BATCHES = enum.auto()
    TASKS = enum.auto()


@dataclass(slots=True)
class MainScreen:
    """What is shown, and what is chosen."""

    pane: Pane = Pane.TASKS
    #: The batch whose tasks are listed, ended ones too; empty: what is at work.
    opened: str = ""
    #: The columns that they are sorted by.
    at_work_by: str = "TIME"
    opened_by: str = work.IN_ORDER
    #: Only what holds this text is listed.
    filter: str = ""
    #: What is typed after `/`; None: nothing is.
    typed: str | None = None
    batch: Selection[BatchRow] = field(default_factory=lambda: Selection(lambda b: b.batch.name))
    task: Selection[TaskRow] = field(default_factory=lambda: Selection(lambda t: t.ref))
    #: The list of tasks, made of what, and how.
    _source: object = None
    _listed: tuple[object, list[TaskRow]] = (None, [])

    # Keys

    def key(self, key: str, sight: TopSnapshot) -> Asked | Ref | str | None:
        """Act on a key.

        Return an order with its question, a task to follow, a message to show, or nothing.
        """
        if self.typed is not None:
            self._type(key)
            return None
        snapshot = sight.snapshot
        if snapshot is None:
            return None
        batch = task = None
        if self.pane is Pane.BATCHES:
            rows = self._batches(snapshot)
            if by := moves(key, self.batch.lines):
                self.batch.move(rows, by)
                return None
            batch = self.batch.settle(rows)
        else:
            tasks = self._tasks(sight, snapshot)
            if by := moves(key, self.task.lines):
                self.task.move(tasks, by)
                return None
            task = self.task.settle(tasks)
        opens = key in {"enter", "right", "l"}
        if batch and opens:
            self._open(batch.batch.name)
        elif batch and key in {"c", "p", "r"}:
            return ordered(key, Scope.BATCH, batch.batch.name, batch.counts, snapshot)
        elif task and opens:
            return task.ref
        elif task and key in {"c", "p", "r"}:
            return ordered(key, Scope.TASK, str(task.ref), task.counts, snapshot)
        else:
            return self._on_any(key, snapshot)
        return None

    def _type(self, key: str) -> None:
        typed = self.typed or ""
        if key in {"enter", "escape"}:
            self.typed = None
            self.filter = typed if key == "enter" else self.filter
        elif key in {"backspace", "clear"}:
            self.typed = typed[:-1] if key == "backspace" else ""
        elif len(key) == 1:
            self.typed = typed + key

    def _on_any(self, key: str, snapshot: Status) -> Asked | None:
        match key:
            case "tab" | "back tab":
                self.pane = Pane.TASKS if self.pane is Pane.BATCHES else Pane.BATCHES
            case "/":
                self.typed = self.filter
            case "s":
                known = [*([work.IN_ORDER] if self.opened else []), *work.SORTS]
                by = known[(known.index(self._by) + 1) % len(known)]
                if self.opened:
                    self.opened_by = by
                else:
                    self.at_work_by = by
            case "escape" if self.filter:
                self.filter = ""
            case "escape" | "left" | "h" if self.opened:
                self._open("")
            case "P":
                return _toggled(snapshot, Scope.ALL, "")
        return None

    def _open(self, batch: str) -> None:
        self.opened = batch
        self.pane = Pane.TASKS if batch else Pane.BATCHES
        self.task = Selection(self.task.key)

    # What there is

    @property
    def _by(self) -> str:
        return self.opened_by if self.opened else self.at_work_by

    @property
    def wish(self) -> TopQuery:
        """What the watcher is to look at beside."""
        return TopQuery(batch=self.opened)

    @property
    def _wanted(self) -> str:
        return self.filter if self.typed is None else self.typed

    def _batches(self, snapshot: Status) -> list[BatchRow]:
        wanted = self._wanted.casefold() if self.pane is Pane.BATCHES else ""
        return [b for b in snapshot.batches if wanted in b.batch.name.casefold()]

    def _tasks(self, sight: TopSnapshot, snapshot: Status) -> list[TaskRow]:
        """Return the tasks that are listed;
        rebuilt only when there is news, for there may be many.
        """
        wanted = self._wanted if self.pane is Pane.TASKS else ""
        tasks = sight.tasks if self.opened and sight.batch == self.opened else ()
        source = tasks if self.opened else snapshot
        made_of = (self.opened, self._by, wanted)
        if self._source is not source or self._listed[0] != made_of:
            self._source = source
            doing = Activities(snapshot, tasks, sight.prompts)
            works = map(doing.work, tasks if self.opened else work.at_work(snapshot))
            self._listed = (made_of, work.listed(works, self._by, wanted))
        return self._listed[1]

    # Drawing

    def draw(self, sight: TopSnapshot, width: int, height: int) -> list[Text]:
        """Return the lines of the screen, at most ``height``."""
        snapshot = sight.snapshot
        if snapshot is None:
            return _trouble(sight.trouble, width) or [Text("looking …", "dim")]
        above = head.lines(snapshot, width)[: max(2, height // 2)]
        above += _trouble(sight.trouble, width)
        if not sight.store:
            return [*above, Text(), Text(_NO_STORE, "bold")][:height]
        if height >= _MIN_LINES_FOR_SPACING:
            above.append(Text())
        rows, tasks = self._batches(snapshot), self._tasks(sight, snapshot)
        room = height - len(above) - 2
        if height < _MIN_LINES_FOR_TWO_LISTS:
            alone = self.pane is Pane.BATCHES
            for_batches, for_tasks = (room + 1, 0) if alone else (0, room + 1)
        else:
            # For batches a third, or half, or what neither side needs more of.
            usual = max(2, room // (2 if self.pane is Pane.BATCHES else 3))
            for_batches = max(1, min(len(rows), max(usual, room - max(1, len(tasks)))))
            for_tasks = room - for_batches
        below = [
            *(self._draw_batches(rows, width, for_batches) if for_batches else ()),
            *(self._draw_tasks(tasks, sight, width, for_tasks) if for_tasks else ()),
        ]
        drawn = [*above, *below]
        # What is left is for what ended, behind an empty line.
        spare = height - len(drawn) - 1
        ended = [] if self.opened else work.lately(snapshot, width, spare)
        return [*drawn, *((Text(), *ended) if ended else ())][:height]

    def _draw_batches(self, rows: Sequence[BatchRow], width: int, lines: int) -> list[Text]:
        shown = self.batch.window(rows, lines)
        title = _title("BATCHES", len(rows), self.batch, len(shown))
        active = self.pane is Pane.BATCHES
        place = self.batch.place - self.batch.first if active else -1
        drawn = table(work.batch_columns(rows), shown, width, title=title)
        return _dressed(drawn, place, width, active=active)

    def _draw_tasks(
        self, tasks: Sequence[TaskRow], sight: TopSnapshot, width: int, lines: int
    ) -> list[Text]:
        assert sight.snapshot is not None
        shown = self.task.window(tasks, lines)
        title = _title("AT WORK", len(tasks), self.task, len(shown))
        if self.opened:
            title = f"{_title('', len(tasks), self.task, len(shown))} OF {self.opened}"
        active = self.pane is Pane.TASKS
        place = self.task.place - self.task.first if active else -1
        doing = Activities(sight.snapshot, sight.tasks if self.opened else (), sight.prompts)
        unsettled = any(row.tally.unsettled_calls for row in shown)
        columns = work.columns(self._by, of_one=bool(self.opened), unsettled=unsettled)
        drawn = table(columns, [doing.work(row) for row in shown], width, title=title)
        dressed = _dressed(drawn, place, width, active=active)
        if tasks:
            return dressed
        why = "nothing"
        if self._wanted and self.pane is Pane.TASKS:
            why = f"nothing here holds {escape(self._wanted)!r}: Esc shows all"
        elif self.opened:
            why = "it has no tasks" if sight.batch == self.opened else "looking …"
        return [*dressed, Text(why, "dim")]


def ordered(
    key: str, scope: Scope, name: str, counts: TargetCounts, snapshot: Status
) -> Asked | str:
    """Return what a key orders for a batch or a task, or why it orders nothing."""
    if key == "p":
        return _toggled(snapshot, scope, name) if counts.left else f"{name} has ended"
    if key == "r" and counts.left:
        return f"{name}: nothing to run again, it has not ended"
    order: Order[Any] = Cancel(target=(name,))
    if key == "r":
        order = Retry(target=(name,), failed=scope is Scope.BATCH, claim=ulid())
    try:
        return order, order.question(counts)[0]
    except UsageError as error:
        return str(error)


def _toggled(snapshot: Status, scope: Scope, name: str) -> Asked:
    """Return the order to let go on what is paused, and to pause what is not;
    either can be taken back, so nothing is asked.
    """
    if any((p.scope, p.name) == (scope, name) for p in snapshot.parked):
        return Resume(scope=scope, name=name), ""
    return Pause(scope=scope, name=name), ""


def _trouble(trouble: str, width: int) -> list[Text]:
    """Return a trouble in as many lines as it takes: what to do stands at its end."""
    lines = wrapped(escape(trouble), width) if trouble else ()
    return [Text(line, "bold red") for line in lines]


def _title(
    what: str, count: int, choice: Selection[TaskRow] | Selection[BatchRow], shown: int
) -> str:
    if shown >= count:
        return f"{what} {count:,}".strip()
    return f"{what} {choice.first + 1}-{choice.first + shown}/{count}".strip()


def _dressed(lines: list[Text], chosen: int, width: int, *, active: bool) -> list[Text]:
    """Give a table's head and its chosen line their looks."""
    top, *rows = lines
    top.pad_right(max(0, width - top.cell_len))
    top.stylize("bold underline" if active else "dim underline")
    if 0 <= chosen < len(rows):
        gap = " " * max(0, width - rows[chosen].cell_len)
        # One colour: others would stand in blocks of their own.
        rows[chosen] = Text(f"{rows[chosen].plain}{gap}", "reverse")
    return [top, *rows]
