"""The window of `batchd top`: lists, one task's conversation, questions, help; and what keys do.

Textual has the terminal: keys, resizes, windows over each other, and all as it was at the end. Of
each screen it gets the lines that are in sight, made by ``picture``; it sends what has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from rich.console import Console
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Region
from textual.screen import ModalScreen, Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from batchd import control
from batchd.cli.display import conversation_lines
from batchd.cli.display.conversation_lines import ScreenLine
from batchd.cli.display.formatting import colours_wanted
from batchd.cli.top import picture
from batchd.cli.top.watching import Sight, Watcher, Wish
from batchd.console import wrapped
from batchd.control import Cancel, Nice, Order, Pause, Resume, Retry
from batchd.errors import BatchdError, UsageError
from batchd.log import escape
from batchd.observe.status import Status
from batchd.records import Cause, Ref, Scope, TargetCounts
from batchd.spool.ulid import ulid
from batchd.store.rows import BatchRow, TaskRow
from batchd.views import passages, view
from batchd.words import compact, counted, duration, money

T = TypeVar("T")

#: How far a key moves in a list that shows so many lines; more than all: to its end.
_MOVES: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(("up", "k"), lambda _: -1),
    **dict.fromkeys(("down", "j"), lambda _: 1),
    "pageup": lambda lines: -lines,
    "pagedown": lambda lines: lines,
    **dict.fromkeys(("home", "g"), lambda _: -(1 << 30)),
    **dict.fromkeys(("end", "G"), lambda _: 1 << 30),
}
_OPENS, _CLOSES = {"enter", "right", "l"}, {"escape", "left", "h", "backspace"}
_ORDERS = {"c", "p", "r", "+", "-"}
_LIST_KEYS = "q quit  Tab lists  Enter open  c cancel  p pause  r retry  f failed  ? help"
_BATCH_KEYS = "Esc back  Enter follow  c cancel  p pause  r retry  f failed  s sort  ? help"
_TASK_KEYS = "Esc back  ↑↓ scroll  G end  f whole outputs  c cancel  p pause  ? help"
_HELP = """\
Move
  ↑ ↓ k j  PgUp PgDn  g G   in a list, or a conversation
  Tab                       from batches to tasks, and back
  Enter l →                 open: a batch's tasks, a task's conversation
  Esc h ←                   back
Look
  /                         only what holds a text: a name, a step, a prompt
  f                         only what failed of a batch; outputs whole
  s                         sort tasks by time, tokens, cost, step or name
Act on what is chosen
  c                         cancel it; asks first
  p   P                     pause it, or let it go on; P: everything
  r                         run again what failed of an ended batch; asks too
  +   -                     a higher priority, or a lower one
Leave
  q  Ctrl-C                 the daemon goes on

Money is in US dollars. Set aside: what calls under way may cost at most.
UNSETTLED: what calls without a recorded answer may have cost on top.
`>`: some calls have no price. Speed is that of the last ten minutes."""


class Output(io.TextIOBase):
    """Where Textual's thread writes. The terminal may go away at any moment: then what is written
    is lost, and the thread goes on, or the program could never end.
    """

    def write(self, text: str) -> int:
        """Write all of it, also where another program has set the terminal not to wait."""
        data = memoryview(text.encode("utf-8", "replace"))
        with contextlib.suppress(OSError):
            while data:
                try:
                    data = data[os.write(1, data) :]
                except BlockingIOError:
                    select.select([], [1], [])
        return len(text)


class Terminal(LinuxDriver):
    """Textual's, on the standard output; its own writes to standard error."""

    def __init__(self, app: App[Any], **how: Any) -> None:
        super().__init__(app, **how)
        self._file = cast(Any, Output())

    def run_input_thread(self) -> None:
        """Read keys for as long as there is a terminal; the signal of its end ends the program."""
        with contextlib.suppress(OSError):
            super().run_input_thread()


def shown(line: Text, console: Console, width: int) -> Strip:
    """Return a line as it is shown in so many columns."""
    # Put together: a text alone is rendered without its own style.
    return Strip(Text.assemble(line).render(console)).adjust_cell_length(width)


class Sheet(Widget):
    """Lines of text. What is drawn again is what has changed."""

    _strips: Sequence[Strip] = ()

    def show(self, lines: Sequence[Text], width: int) -> None:
        """Show these lines."""
        console, before = self.app.console, self._strips
        strips = [shown(line, console, width) for line in lines]
        self._strips = strips
        if len(strips) != len(before):
            self.refresh()
        elif changed := [y for y, line in enumerate(strips) if before[y] != line]:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        """Return a line as it is shown."""
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)


class Dialog(ModalScreen[str]):
    """A text over the rest; any key closes it, and is its result."""

    def __init__(self, text: Text, answers: str = "") -> None:
        """``answers``: they are named at the end of the text's first line."""
        super().__init__()
        self._first, *self._rest = text.split("\n")
        self._answers = answers
        self._shown = Static(self._text(" " * len(answers)))

    def _text(self, answers: str) -> Text:
        return Text("\n").join([self._first + Text(answers), *self._rest])

    def compose(self) -> ComposeResult:
        """Yield the text."""
        yield self._shown

    def on_mount(self) -> None:
        """Name the answers once the question is seen: what was typed before answers nothing."""
        if self._answers:
            self.call_after_refresh(self._ask)

    def _ask(self) -> None:
        self._shown.update(self._text(self._answers))
        self._answers = ""

    def on_key(self, event: events.Key) -> None:
        """Close it."""
        event.stop()
        if not self._answers:
            self.dismiss(event.character or event.key)


class View(Screen[None]):
    """A whole screen of lines, the last of which says what keys do, or what an order did."""

    #: What is to be looked at for it, beside how things stand.
    wish = Wish()

    @property
    def top(self) -> Top:
        """The program."""
        return cast(Top, self.app)

    def lines(self, sight: Sight, width: int, height: int) -> list[Text]:
        """Return its lines; of more than there is room for, the first are shown."""
        raise NotImplementedError

    def foot(self) -> Text:
        """Return the last line, where nothing is said of an order."""
        raise NotImplementedError

    def act(self, key: str) -> None:
        """Act on a key."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        """Yield the sheet."""
        yield Sheet()

    def on_resize(self) -> None:
        """Draw it for another size."""
        self.draw()

    def on_screen_resume(self) -> None:
        """Draw it: another was over it."""
        self.top.draw()

    def on_key(self, event: events.Key) -> None:
        """Act on a key; what was said before has been read."""
        event.stop()
        self.top.forget()
        self.act(event.character if event.is_printable and event.character else event.key)
        self.top.draw()

    def draw(self) -> None:
        """Show what there is to be seen now."""
        width, height = self.app.size
        body = self.lines(self.top.sight, width, height - 1)[: height - 1]
        body += [Text()] * (height - 1 - len(body))
        text, refused = self.top.said
        said = Text(escape(text), "bold yellow" if refused else "bold")
        self.query_one(Sheet).show([*body, said if text else self.foot()], width)

    def common(self, key: str) -> None:
        """Act on a key that means the same everywhere."""
        if key in {"q", "Q"}:
            self.app.exit()
        elif key == "?":
            self.app.push_screen(Dialog(Text(_HELP)))
        elif key == "P":
            self.toggle(Scope.ALL, "")

    def order(self, key: str, scope: Scope, name: str, counts: TargetCounts) -> None:
        """Give the order that a key means for a batch or a task, or say why not; ask first, where
        it cannot be taken back.
        """
        order: Order[Any] = Cancel(target=(name,))
        match key:
            case "p" if counts.left:
                return self.toggle(scope, name)
            case "+" | "-" if counts.left:
                return self.top.give(Nice(target=(name,), by=1 if key == "+" else -1))
            case "p" | "+" | "-":
                return self.top.say(f"{name} has ended")
            case "r" if counts.left:
                return self.top.say(f"{name}: nothing to run again, it has not ended")
            case "r":
                order = Retry(target=(name,), failed=scope is Scope.BATCH, claim=ulid())
        try:
            question, then = order.question(counts)
        except UsageError as error:
            return self.top.say(str(error))

        def answered(key: str | None) -> None:
            if key in {"y", "Y"}:
                self.top.give(order)
            else:
                self.top.say("nothing was done")

        text = Text.assemble((escape(question), "bold"), f"\n{escape(then)}" if then else "")
        self.app.push_screen(Dialog(text, " y/n"), answered)

    def toggle(self, scope: Scope, name: str) -> None:
        """Let go on what is paused, and pause what is not; either can be taken back."""
        snapshot = self.top.sight.snapshot
        parked = snapshot.parked if snapshot else ()
        causes = {p.cause for p in parked if (p.scope, p.name) == (scope, name)}
        if Cause.UNCERTAIN in causes:  # it may have run since, and would be paid twice
            resume = f"batchd resume {name}" if name else "batchd resume"
            return self.top.say(f"{name} may have run elsewhere since: if not, {resume}")
        self.top.give((Resume if causes else Pause)(scope=scope, name=name))


@dataclass(slots=True)
class Choice(Generic[T]):
    """What is chosen of a list stays chosen while that changes around it;
    where it is gone, its neighbour is.
    """

    #: What an item is known by.
    by: Callable[[T], Hashable]
    chosen: Hashable = None
    #: Where it was seen last, and the first line that is shown.
    place: int = 0
    first: int = 0
    #: How many lines there were room for.
    room: int = 1

    def settle(self, items: Sequence[T]) -> T | None:
        """Return what is chosen of the items that there are now; None: there are none."""
        places = (place for place, item in enumerate(items) if self.by(item) == self.chosen)
        # Nothing is chosen yet: the first, whichever that is.
        gone = 0 if self.chosen is None else max(0, min(self.place, len(items) - 1))
        self.place = next(places, gone)
        return items[self.place] if items else None

    def moves(self, key: str, items: Sequence[T]) -> bool:
        """Choose another, where a key means that."""
        if key in _MOVES and self.settle(items) is not None:
            self.place = min(len(items) - 1, max(0, self.place + _MOVES[key](self.room)))
            self.chosen = self.by(items[self.place])
        return key in _MOVES

    def window(self, items: Sequence[T], room: int) -> tuple[Sequence[T], str]:
        """Return those that are shown in so many lines, what is chosen among them; and how many
        there are, or which of them these are.
        """
        self.settle(items)
        self.room = max(1, room)
        self.first = min(self.first, max(0, len(items) - self.room), self.place)
        self.first = max(self.first, self.place - self.room + 1)
        shown = items[self.first : self.first + self.room]
        part = f"{self.first + 1}-{self.first + len(shown)}/{len(items)}"
        return shown, f"{len(items):,}" if len(shown) == len(items) else part

    def dressed(self, drawn: Sequence[Text], width: int, *, active: bool) -> list[Text]:
        """Return a table whose chosen line shows, where keys act on it."""
        lines = picture.underlined(drawn, width, active=active)
        place = 1 + self.place - self.first
        if active and place < len(lines):
            # One colour: others would stand in blocks of their own.
            gap = " " * (width - lines[place].cell_len)
            lines[place] = Text(f"{lines[place].plain}{gap}", "reverse")
        return lines


#: A screen that is lower than this shows one list alone.
_MIN_LINES_FOR_TWO_LISTS = 14
#: One of so many lines has room for an empty one.
_MIN_LINES_FOR_SPACING = 29
_NO_STORE = "No batch has been taken up here yet: this waits for the first one."


class Lists(View):
    """Batches, and the tasks that are at work or those of one batch."""

    #: Where keys act: in the batches, or in the tasks.
    in_batches = False
    #: The batch whose tasks are listed, ended ones too; empty: what is at work.
    opened = ""
    #: Of these, only what failed.
    failed = False
    #: Only what holds this text is listed.
    filter = ""
    #: What is typed after `/`; None: nothing is.
    typed: str | None = None

    def __init__(self) -> None:
        super().__init__()
        #: What tasks at work are sorted by, and those of a batch.
        self._sorts = ["TIME", ""]
        self._of_batches = Choice[BatchRow](lambda row: row.batch.name)
        self._of_tasks = Choice[TaskRow](lambda row: row.ref)
        #: The tasks that are listed, and what they were made of.
        self._listed: tuple[object, list[TaskRow]] = (None, [])

    # Keys

    def act(self, key: str) -> None:
        """Act on a key: on what is typed, on the list where keys act, on what is chosen, or on
        anything.
        """
        sight = self.top.sight
        if self.typed is not None:
            self._type(key, self.typed)
        elif sight.snapshot is None:
            self.common(key)
        elif self.in_batches:
            self._on_list(key, self._of_batches, self._batches(sight.snapshot))
        else:
            self._on_list(key, self._of_tasks, self._tasks(sight, sight.snapshot))

    def _on_list(self, key: str, choice: Choice[T], rows: Sequence[T]) -> None:
        if choice.moves(key, rows):
            return
        match choice.settle(rows):
            case BatchRow() as row if key in _ORDERS:
                self.order(key, Scope.BATCH, row.batch.name, row.counts)
            case BatchRow() as row if key in _OPENS | {"f"}:
                self._open(row.batch.name, failed=key == "f")
            case TaskRow() as row if key in _ORDERS:
                self.order(key, Scope.TASK, str(row.ref), row.counts)
            case TaskRow() as row if key in _OPENS:
                self.app.push_screen(Conversation(row.ref))
            case TaskRow() as row if key == "f" and not self.opened:
                self._open(row.ref.batch, failed=True)
            case _:
                self._act(key)

    def _type(self, key: str, typed: str) -> None:
        if key in {"enter", "escape"}:
            self.typed = None
            self.filter = typed if key == "enter" else self.filter
        elif key in {"backspace", "ctrl+u"}:
            self.typed = typed[:-1] if key == "backspace" else ""
        elif len(key) == 1:
            self.typed = typed + key

    def on_paste(self, event: events.Paste) -> None:
        """Take a pasted text as if it were typed."""
        if self.typed is not None:
            self.typed += " ".join(event.text.split())
            self.draw()

    def _act(self, key: str) -> None:
        match key:
            case "tab" | "shift+tab":
                self.in_batches = not self.in_batches
            case "/":
                self.typed = self.filter
            case "s":
                sorts = [by for by in picture.SORTS if by or self.opened]
                place = sorts.index(self._sorts[bool(self.opened)])
                self._sorts[bool(self.opened)] = sorts[(place + 1) % len(sorts)]
            case "f" if self.opened:
                self.failed = not self.failed
            case "escape" if self.filter:
                self.filter = ""
            case "escape" if self.failed:
                self.failed = False
            case "escape" | "left" | "h" if self.opened:
                self._open("")
            case _:
                self.common(key)

    def _open(self, batch: str, *, failed: bool = False) -> None:
        self.opened, self.failed, self.in_batches = batch, failed, not batch
        self.wish = Wish(batch=batch)
        self._of_tasks = Choice(self._of_tasks.by)

    # What there is

    @property
    def _wanted(self) -> str:
        return self.filter if self.typed is None else self.typed

    def _batches(self, snapshot: Status) -> Sequence[BatchRow]:
        wanted = self._wanted.casefold() if self.in_batches else ""
        return [row for row in snapshot.batches if wanted in row.batch.name.casefold()]

    def _tasks(self, sight: Sight, snapshot: Status) -> Sequence[TaskRow]:
        """Return the tasks that are listed; made again where there is news of them, for there may
        be many.
        """
        of_batch = sight.tasks if sight.batch == self.opened else ()
        by, wanted = self._sorts[bool(self.opened)], "" if self.in_batches else self._wanted
        made_of = (self.opened, self.failed, by, wanted, of_batch if self.opened else snapshot)
        if self._listed[0] != made_of:
            doing = picture.Doing(snapshot, of_batch, sight.prompts)
            rows = [
                row
                for row in (of_batch if self.opened else picture.working(snapshot))
                if not (self.failed and not picture.failed(row))
                and not (wanted and not doing.holds(row, wanted))
            ]
            self._listed = made_of, sorted(rows, key=lambda row: picture.SORTS[by](row, doing))
        return self._listed[1]

    # Drawing

    def lines(self, sight: Sight, width: int, height: int) -> list[Text]:
        """Return the head, the lists, and what ended lately where there is room for it."""
        snapshot = sight.snapshot
        if snapshot is None:
            return _trouble(sight, width) or [Text("looking …", "dim")]
        found = [*picture.head(snapshot, width)[: max(2, height // 2)], *_trouble(sight, width)]
        if not sight.store:
            return [*found, Text(), Text(_NO_STORE, "bold")]
        if height >= _MIN_LINES_FOR_SPACING:
            found.append(Text())
        rows, tasks = self._batches(snapshot), self._tasks(sight, snapshot)
        room = height - len(found) - 2
        # For batches a third, or half, or what neither side needs more of.
        usual = max(2, room // (2 if self.in_batches else 3))
        for_batches = max(1, min(len(rows), max(usual, room - max(1, len(tasks)))))
        alone = height < _MIN_LINES_FOR_TWO_LISTS
        if not alone or self.in_batches:
            shown, count = self._of_batches.window(rows, room + 1 if alone else for_batches)
            drawn = picture.batches(shown, width, f"BATCHES {count}")
            found += self._of_batches.dressed(drawn, width, active=self.in_batches)
        if not alone or not self.in_batches:
            for_tasks = room + 1 if alone else room - for_batches
            found += self._draw_tasks(tasks, sight, width, for_tasks)
        return found if self.opened else found + picture.ended(snapshot, width, height - len(found))

    def _draw_tasks(
        self, tasks: Sequence[TaskRow], sight: Sight, width: int, room: int
    ) -> list[Text]:
        assert sight.snapshot is not None
        shown, count = self._of_tasks.window(tasks, room)
        of_one = f"{count}{' FAILED' * self.failed} OF {self.opened}"
        title = of_one if self.opened else f"AT WORK {count}"
        doing = picture.Doing(sight.snapshot, sight.tasks if self.opened else (), sight.prompts)
        by = self._sorts[bool(self.opened)]
        drawn = picture.tasks(shown, doing, width, title, by=by, one=bool(self.opened))
        found = self._of_tasks.dressed(drawn, width, active=not self.in_batches)
        why = "nothing"
        if self._wanted and not self.in_batches:
            what = "nothing that failed" if self.failed else "nothing here"
            why = f"{what} holds {escape(self._wanted)!r}: Esc shows all"
        elif self.opened and sight.batch != self.opened:
            why = "looking …"
        elif self.opened:
            why = "nothing of it failed: Esc shows all" if self.failed else "it has no tasks"
        return found if tasks else [*found, Text(why, "dim")]

    def foot(self) -> Text:
        """Return the last line: what is typed, or what keys do."""
        if self.typed is not None:
            return Text.assemble(("/", "bold"), escape(self.typed), "▌")
        kept = (escape(f"/{self.filter}  "), "bold"), ("Esc shows all  ", "dim")
        keys = _BATCH_KEYS if self.opened else _LIST_KEYS
        if not self.filter:
            return Text(keys, "dim")
        return Text.assemble(*kept, (keys.removeprefix("Esc back  "), "dim"))


def _trouble(sight: Sight, width: int) -> list[Text]:
    """Return a trouble in as many lines as it takes: what to do stands at its end."""
    lines = wrapped(escape(sight.trouble), width) if sight.trouble else ()
    return [Text(line, "bold red") for line in lines]


class Conversation(View):
    """One task, as its journal grows."""

    #: Whether outputs are shown whole.
    full = False
    #: The number of the first line shown; None: the end is, and stays so as lines come.
    first: int | None = None

    def __init__(self, ref: Ref) -> None:
        super().__init__()
        self.ref, self.wish = ref, Wish(ref=ref)
        #: Lines of so many events, for which width, and whether whole.
        self._lines: list[ScreenLine] = []
        self._made = (0, 0, False)
        self._room = 1

    def act(self, key: str) -> None:
        """Act on a key: scroll, fold, order, or go back."""
        story = self.top.sight.story
        if key in _CLOSES:
            self.dismiss()
        elif key in _MOVES:
            last = max(0, len(self._lines) - self._room)
            first = (last if self.first is None else self.first) + _MOVES[key](self._room)
            self.first = None if first >= last else max(0, first)
        elif key == "f":
            self.full, self.first = not self.full, None
        elif key in _ORDERS and story:
            self.order(key, Scope.TASK, str(self.ref), story.row.counts)
        else:
            self.common(key)

    def lines(self, sight: Sight, width: int, height: int) -> list[Text]:
        """Return where the task stands, a part of its conversation, and what is done right now."""
        story = sight.story if sight.story and sight.story.row.ref == self.ref else None
        if not story:
            return [Text(str(self.ref), "bold"), *_trouble(sight, width), Text("looking …", "dim")]
        known, *made_for = self._made
        if made_for != [width, self.full]:
            self._lines, known = [], 0
        new = story.events[known:]
        for event in new:
            for passage in passages(event, story.first_prompt):
                self._lines += conversation_lines.lines(passage, width, full=self.full)
        self._made = (known + len(new), width, self.full)
        now = [] if self._lines else [Text("nothing of it has started", "dim")]
        if sight.snapshot and not story.row.status.final:
            step, detail, since = picture.Doing(sight.snapshot).step(story.row)
            ago = f", for {duration(max(0.0, sight.snapshot.at - since))}" if since else ""
            now.append(Text(escape(f"▸ {': '.join(filter(None, (step, detail)))}{ago}"), "yellow"))
        trouble = _trouble(sight, width)
        self._room = max(1, height - 1 - len(trouble) - len(now))
        last = max(0, len(self._lines) - self._room)
        first = last if self.first is None else min(self.first, last)
        shown = [
            Text.assemble((line.text, line.tone), (line.tail, "dim"))
            for line in self._lines[first : first + self._room]
        ]
        row = story.row
        figures = (
            str(self.ref),
            view.word(row.status, row.reason),
            f"round {row.round}",
            counted(row.tally.calls, "call"),
            f"{compact(row.tally.total_tokens)} tokens",
            money(row.tally.cost_usd),
            row.model,
        )
        more = f" {last - first:,} lines below" if first < last else ""
        head = Text(escape("  ".join(figures)))
        head.truncate(width - len(more), overflow="ellipsis", pad=True)
        return [
            *picture.underlined([head.append(more)], width, active=True),
            *trouble,
            *shown,
            *now,
        ]

    def foot(self) -> Text:
        """Return the last line: what keys do."""
        return Text(_TASK_KEYS, "dim")


class Top(App[None]):
    """The program: what is seen, what is said of orders, and its end."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", f"leave({signal.SIGINT:d})", priority=True),
        Binding("ctrl+backslash", f"leave({signal.SIGQUIT:d})", priority=True),
        Binding("ctrl+z", "suspend_process", priority=True),
        Binding("ctrl+l", "redraw", priority=True),
    ]
    # The terminal's own colours, whatever they are: readable on dark and on light ones.
    CSS = """
    Screen { background: ansi_default; color: ansi_default; overflow: hidden; }
    Sheet { width: 100%; height: 100%; }
    Dialog { align: center middle; background: transparent; }
    Dialog Static { width: auto; max-width: 80; padding: 0 1; border: round ansi_yellow; }
    """

    def __init__(self, state: Path, interval_s: float) -> None:
        super().__init__(driver_class=Terminal, ansi_color=True)
        self.animation_level = "none"
        self.sight = Sight()
        #: What came of the last order, or of a key, and whether it was refused.
        self.said = ("", False)
        #: What ended the program, though nothing should.
        self.failure: Exception | None = None
        self._state = state
        self._under_way = 0
        self._watcher = Watcher(state, interval_s, lambda sight: self.call_later(self.see, sight))

    def on_mount(self) -> None:
        """Begin to look, and to obey signals."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            asyncio.get_running_loop().add_signal_handler(number, self.action_leave, number)
        # No signal comes where the shell outlives its terminal; Textual would read on for ever.
        self.set_interval(1.0, self._leave_without_terminal)
        self.push_screen(Lists())
        self._watcher.start()

    def _leave_without_terminal(self) -> None:
        hung_up = select.poll()
        hung_up.register(0, 0)
        if hung_up.poll(0):
            self.action_leave(signal.SIGHUP)

    def action_leave(self, number: int) -> None:
        """End the program as a signal does."""
        self.exit(return_code=128 + number)

    def action_redraw(self) -> None:
        """Draw all of it again: somebody else wrote on the screen."""
        self.refresh(layout=True)

    def see(self, sight: Sight | Exception) -> None:
        """Show what the watcher has seen."""
        if isinstance(sight, Exception):
            raise sight
        self.sight = sight
        self.draw()

    def draw(self) -> None:
        """Draw the view that is in sight, and have looked at what it needs."""
        views = [screen for screen in self.screen_stack if isinstance(screen, View)]
        if views and views[-1].is_mounted:
            views[-1].draw()
            self._watcher.wish(views[-1].wish)

    def say(self, text: str, *, refused: bool = False) -> None:
        """Say something until the next key."""
        self.said = (text, refused)
        self.draw()

    def forget(self) -> None:
        """Forget what has been read; the answer to an order is still to come."""
        self.said = self.said if self._under_way else ("", False)

    def give(self, order: Order[Any]) -> None:
        """Give an order, in a thread of its own: the picture goes on meanwhile."""

        def carry() -> None:
            try:
                lines = order.say(control.give(self._state, order))
                said, refused = " · ".join(line.strip() for line in lines), False
            except BatchdError as error:
                said, refused = str(error), True
            self.call_later(self._answered, said, refused)

        self.say(f"{order.command()} …")
        self._under_way += 1
        threading.Thread(target=carry, name="order", daemon=True).start()

    def _answered(self, said: str, refused: bool) -> None:
        self._under_way -= 1
        self._watcher.wish(self._watcher.wanted, at_once=True)
        self.say(said, refused=refused)

    def _handle_exception(self, error: Exception) -> None:
        """End the program. Textual would print the values of all variables, secrets among them."""
        self.failure = self.failure or error
        self.exit()


def run(state: Path, interval_s: float) -> int:
    """Show how things stand until a key or a signal ends it; return the exit code."""
    for name in ("COLUMNS", "LINES", *(["NO_COLOR"] if colours_wanted() else [])):
        os.environ.pop(name, None)  # Textual asks whether they are set: they may be wrong, or empty
    top = Top(state, interval_s)
    top.run(mouse=False)
    if top.failure:
        raise top.failure
    return top.return_code or 0
