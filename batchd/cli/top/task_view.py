"""One task's conversation, live: as `batchd logs -f` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.text import Text

from batchd.cli.display import conversation_lines
from batchd.cli.display.conversation_lines import ScreenLine, Tone
from batchd.cli.top.key_orders import KeyOrder
from batchd.cli.top.lists import on_task
from batchd.cli.top.selection import moves
from batchd.cli.top.watching import Story, TopQuery, TopSnapshot
from batchd.cli.top.work import Activities, TaskActivity
from batchd.log import escape
from batchd.records import Ref
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

    def key(self, key: str, sight: TopSnapshot) -> KeyOrder | str | None:
        """Act on a key: return an order to give, a message to show, or nothing."""
        if by := moves(key, self._shown):
            last = max(0, len(self._lines) - self._shown)
            top = (last if self.top is None else self.top) + by
            self.top = None if top >= last else max(0, top)
        elif key == "f":
            self.full = not self.full
            self.top = None
        elif key in {"c", "p", "r"} and self._story:
            return on_task(key, self.ref, self._story.row.status, sight.snapshot)
        return None

    def draw(self, sight: TopSnapshot, width: int, height: int) -> list[Text]:
        """Return the lines of the screen, at most ``height``."""
        self._make(width)
        above = [self._head(width)]
        now = [_now(work)] if (work := self._work(sight)) and not work.row.status.final else []
        self._shown = max(1, height - len(above) - len(now))
        last = max(0, len(self._lines) - self._shown)
        top = last if self.top is None else min(self.top, last)
        if sight.trouble:
            above.append(Text(escape(sight.trouble), "bold red"))
        if not self._lines:
            above.append(Text("nothing of it has started" if self._story else "looking …", "dim"))
        shown = [_text(line) for line in self._lines[top : top + self._shown]]
        return [*above, *shown, *now][:height]

    def _make(self, width: int) -> None:
        if self._made_for != (width, self.full):
            self._lines, self._made, self._made_for = [], 0, (width, self.full)
        for passage in self._passages[self._made :]:
            self._lines += conversation_lines.lines(passage, width, full=self.full)
        self._made = len(self._passages)

    def _head(self, width: int) -> Text:
        line = Text(str(self.ref))
        if story := self._story:
            row = story.row
            tokens = compact(row.input_tokens + row.output_tokens)
            figures = (
                str(row.status),
                f"round {row.round}",
                counted(row.calls, "call"),
                f"{tokens} tokens",
                money(row.cost_usd),
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

    def _work(self, sight: TopSnapshot) -> TaskActivity | None:
        if self._story is None or sight.snapshot is None:
            return None
        return Activities(sight.snapshot).work(self._story.row)


def _now(work: TaskActivity) -> Text:
    span = f", for {duration(max(0.0, work.at - work.since))}" if work.since else ""
    return Text(f"▸ {escape(f'{work.step}: {work.detail}'.rstrip(': '))}{span}", "yellow")


def _text(line: ScreenLine) -> Text:
    return Text.assemble((line.text, _STYLES[line.tone]), (line.tail, "dim"))
