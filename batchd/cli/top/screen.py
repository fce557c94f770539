"""The whole screen: a list or a task, the line below, questions, help;
and what each key does there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from batchd import control
from batchd.cli.display import conversation_lines, formatting
from batchd.cli.display.conversation_lines import ScreenLine, Tone
from batchd.cli.top.columns import Canvas
from batchd.cli.top.lists import Asked, MainScreen, moves, ordered
from batchd.cli.top.terminal import StopRequested, Terminal
from batchd.cli.top.watching import LATELY, SpoolPoller, Story, TopQuery, TopSnapshot
from batchd.cli.top.work import Activities
from batchd.control import Order
from batchd.errors import BatchdError
from batchd.log import escape
from batchd.observe.status import Observer
from batchd.records import Ref, Scope
from batchd.views import Passage, passages
from batchd.words import compact, counted, duration, money

_STYLES: Mapping[Tone, str] = {
    Tone.PLAIN: "",
    Tone.STRONG: "bold",
    Tone.QUIET: "dim",
    Tone.GOOD: "green",
    Tone.BAD: "red",
    Tone.NOTE: "yellow",
}


@dataclass(slots=True)
class TaskView:
    """What is known of the task, and which part of it is shown."""

    ref: Ref
    #: Whether outputs are shown whole.
    full: bool = False
    #: The number of the first line shown; None: the end is, and stays so as lines come.
    top: int | None = None
    known: int = 0
    _passages: list[Passage] = field(default_factory=list)
    _lines: list[ScreenLine] = field(default_factory=list)
    #: For which width, and whether folded, ``_lines`` were made, and of how many passages.
    _made_for: tuple[int, bool] = (0, False)
    _made: int = 0
    _shown: int = 1
    _story: Story | None = None

    @property
    def wish(self) -> TopQuery:
        """What the watcher is to look at."""
        return TopQuery(ref=self.ref, known=self.known)

    def learn(self, sight: TopSnapshot) -> None:
        """Take in what has come since the last look."""
        story = sight.story
        if story is None or story.row.ref != self.ref:
            return
        self._story = story
        if story.start == self.known:
            for event in story.events:
                self._passages += passages(event, story.first_prompt)
            self.known += len(story.events)

    def key(self, key: str, sight: TopSnapshot) -> Asked | str | None:
        """Act on a key: return an order with its question, a message to show, or nothing."""
        if by := moves(key, self._shown):
            last = max(0, len(self._lines) - self._shown)
            top = (last if self.top is None else self.top) + by
            self.top = None if top >= last else max(0, top)
        elif key == "f":
            self.full = not self.full
            self.top = None
        elif key in {"c", "p", "r"} and self._story and sight.snapshot:
            counts = self._story.row.counts
            return ordered(key, Scope.TASK, str(self.ref), counts, sight.snapshot)
        return None

    def draw(self, sight: TopSnapshot, width: int, height: int) -> list[Text]:
        """Return the lines of the screen, at most ``height``."""
        if self._made_for != (width, self.full):
            self._lines, self._made, self._made_for = [], 0, (width, self.full)
        for passage in self._passages[self._made :]:
            self._lines += conversation_lines.lines(passage, width, full=self.full)
        self._made = len(self._passages)
        above = [self._head(width)]
        now: list[Text] = []
        if self._story and sight.snapshot and not self._story.row.status.final:
            work = Activities(sight.snapshot).work(self._story.row)
            since = f", for {duration(max(0.0, work.at - work.since))}" if work.since else ""
            now.append(
                Text(f"▸ {escape(f'{work.step}: {work.detail}'.rstrip(': '))}{since}", "yellow")
            )
        self._shown = max(1, height - len(above) - len(now))
        last = max(0, len(self._lines) - self._shown)
        top = last if self.top is None else min(self.top, last)
        if sight.trouble:
            above.append(Text(escape(sight.trouble), "bold red"))
        if not self._lines:
            above.append(Text("nothing of it has started" if self._story else "looking …", "dim"))
        shown = [
            Text.assemble((line.text, _STYLES[line.tone]), (line.tail, "dim"))
            for line in self._lines[top : top + self._shown]
        ]
        return [*above, *shown, *now][:height]

    def _head(self, width: int) -> Text:
        line = Text(str(self.ref))
        if story := self._story:
            row = story.row
            tokens = compact(row.tally.total_tokens)
            figures = (
                str(row.status),
                f"round {row.round}",
                counted(row.tally.calls, "call"),
                f"{tokens} tokens",
                money(row.tally.cost_usd),
                row.model,
            )
            line.append(escape(f"  {'  '.join(figures)}"))
        below = 0 if self.top is None else len(self._lines) - self.top - self._shown
        more = f"{below:,} lines below" if below > 0 else ""
        line.truncate(width - len(more) - 1, overflow="ellipsis")
        line.pad_right(max(0, width - line.cell_len - len(more)))
        line.append(more)
        line.stylize("bold underline")
        return line


_LIST_KEYS = "q quit  Tab lists  Enter open  c cancel  p pause  r retry  / find  ? help"
_OPEN_KEYS = "Esc back  Enter follow  c cancel  p pause  r retry  / find  s sort  ? help"
_TASK_KEYS = "Esc back  ↑↓ scroll  G end  f whole outputs  c cancel  p pause  ? help"
_HELP = """\
Move
  ↑ ↓ k j  PgUp PgDn  g G    within a list, or a conversation
  Tab                        between batches and tasks
  Enter l →                  a batch: its tasks, ended ones too; a task: follow it
  Esc h ←                    back
Look
  /                          list only what holds a text: a name, a step, …
  s                          sort tasks by time, tokens, cost, step, name
  f                          in a conversation: outputs folded or whole
Act, on what is chosen
  c                          cancel a batch or a task; asks first
  p                          pause it; or let it go on, where it is paused
  P                          pause everything, or let it go on
  r                          run again: what failed of a batch that has ended, or a task
Leave
  q  Ctrl-C                  the daemon goes on

Money is in US dollars; what calls under way may cost at most is set aside.
UNSETTLED: what calls without an answer on record may have cost on top; it counts
for today. `>`: some calls have no price.
Speed and the time left are measured over the last ten minutes.

Any key goes back."""


@dataclass(slots=True)
class TopScreen:
    """What is shown, and what keys mean there."""

    #: Carries out an order; its answer is shown when it is there.
    give: Callable[[Order[Any]], None]
    #: What came of the last order, and whether it was refused.
    answer: Callable[[], tuple[str, bool] | None]
    lists: MainScreen = field(default_factory=MainScreen)
    following: TaskView | None = None
    helping: bool = False
    #: Waits for a yes.
    asked: Asked | None = None
    #: Shown below until the next key.
    message: tuple[str, bool] | None = None

    @property
    def wish(self) -> TopQuery:
        """What is to be looked at beside how things stand."""
        return self.following.wish if self.following else self.lists.wish

    @property
    def urgent(self) -> bool:
        """Whether a question waits: keys that were typed before it was read answer nothing."""
        return self.asked is not None

    def learn(self, sight: TopSnapshot) -> None:
        """Take in what was seen."""
        if self.following:
            self.following.learn(sight)

    def key(self, key: str, sight: TopSnapshot) -> bool:
        """Act on a key; return False where it ends the program."""
        self.message = None
        if self.helping:
            self.helping = False
        elif self.asked is not None:
            (order, _), self.asked = self.asked, None
            if key in {"y", "Y"}:
                self.give(order)
            else:
                self.message = ("nothing was done", False)
        elif self.lists.typed is None and key in {"q", "Q"}:
            return False
        elif self.lists.typed is None and key == "?":
            self.helping = True
        elif self.following and key in {"escape", "left", "h", "backspace"}:
            self.following = None
        elif self.following:
            self._outcome(self.following.key(key, sight))
        else:
            self._outcome(self.lists.key(key, sight))
        return True

    def _outcome(self, outcome: Asked | Ref | str | None) -> None:
        if isinstance(outcome, Ref):
            self.following = TaskView(outcome)
        elif isinstance(outcome, str):
            self.message = (outcome, False)
        elif outcome is not None and outcome[1]:
            self.asked = outcome
        elif outcome is not None:
            self.give(outcome[0])

    def draw(self, sight: TopSnapshot, width: int, height: int) -> list[Text]:
        """Return the lines of the screen: exactly ``height``."""
        if self.helping:
            body = [Text(line) for line in _HELP.split("\n")]
        elif self.following:
            body = self.following.draw(sight, width, height - 1)
        else:
            body = self.lists.draw(sight, width, height - 1)
        body = body[: height - 1]
        return [*body, *(Text() for _ in range(height - 1 - len(body))), self._below()]

    def _below(self) -> Text:
        if self.asked is not None:
            return Text(escape(f"{self.asked[1]} y/n"), "bold yellow reverse")
        if self.lists.typed is not None:
            return Text.assemble(("/", "bold"), escape(self.lists.typed), ("▌", "blink"))
        if said := self.message or self.answer():
            text, refused = said
            return Text(escape(text), "bold red" if refused else "bold green")
        keys = _TASK_KEYS if self.following else _OPEN_KEYS if self.lists.opened else _LIST_KEYS
        shown = Text(keys, "dim")
        if self.lists.filter and not self.following:
            return Text.assemble(
                (escape(f"/{self.lists.filter}  "), "bold"), ("Esc shows all  ", "dim"), shown
            )
        return shown


class OrderSender:
    """Gives orders, each in a thread of its own: the picture goes on meanwhile."""

    def __init__(self, state: Path, wake: Callable[[], None]) -> None:
        self._state = state
        self._wake = wake
        #: What came of the last order, and whether it was refused.
        self.answer: tuple[str, bool] | None = None
        self._under_way = 0

    def give(self, order: Order[Any]) -> None:
        """Give an order; ``answer`` has its answer some time later."""
        self.answer = (f"{order.command()} …", False)
        self._under_way += 1
        threading.Thread(target=self._carry, args=(order,), name="order", daemon=True).start()

    def seen(self) -> None:
        """Forget an answer that has been read; one that is still to come is not."""
        if not self._under_way:
            self.answer = None

    def _carry(self, order: Order[Any]) -> None:
        try:
            lines = order.say(control.give(self._state, order))
            self.answer = (" · ".join(line.strip() for line in lines), False)
        except BatchdError as error:
            self.answer = (str(error), True)
        self._under_way -= 1
        self._wake()


#: One picture for files and pipes has all lines, however many.
_ALL_LINES = 1 << 16
#: Without anything to do, it looks after itself so often (seconds).
_IDLE_S = 60.0


def run(state: Path, interval_s: float) -> int:
    """Show how things stand until a key or a signal ends it; return the exit code."""
    canvas = Canvas(ascii_only=conversation_lines.ascii_only(sys.stdout.encoding))
    terminal = Terminal(sys.stdin.fileno(), sys.stdout.fileno())
    watcher = SpoolPoller(state, interval_s, terminal.wake)
    desk = OrderSender(state, terminal.wake)
    screen = TopScreen(give=desk.give, answer=lambda: desk.answer)
    try:
        with terminal:
            watcher.start()
            _turn(terminal, watcher, screen, canvas, desk)
    except StopRequested as ended:
        return 128 + ended.number
    return 0


def _turn(
    terminal: Terminal, watcher: SpoolPoller, screen: TopScreen, canvas: Canvas, desk: OrderSender
) -> None:
    while True:
        if watcher.failure:
            raise watcher.failure
        sight = watcher.sight
        screen.learn(sight)
        watcher.wish(screen.wish)
        width, height = terminal.size
        terminal.show(canvas.render(screen.draw(sight, width, height), width))
        for key in terminal.wait(_IDLE_S):
            if key == "redraw":
                terminal.forget()
            desk.seen()
            if not screen.key(key, sight):
                return
            if screen.urgent:
                break  # what was typed on before the question was read answers nothing


def print_once(state: Path) -> int:
    """Print how things stand now."""
    with Observer(state, lately=LATELY) as observer:
        snapshot = observer.look()
    canvas = Canvas(
        ascii_only=conversation_lines.ascii_only(sys.stdout.encoding),
        styled=sys.stdout.isatty() and formatting.colours_wanted(),
    )
    store = formatting.store_path(state).exists()
    width = formatting.terminal_width()
    lines = MainScreen().draw(TopSnapshot(snapshot, store=store), width, _ALL_LINES)
    print(*canvas.render(lines, width), sep="\n")
    return 0
