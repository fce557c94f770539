"""The whole screen: a list or a task, the line below, questions, help;
and what each key does there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.text import Text

from batchd.cli.top.key_orders import KeyOrder
from batchd.cli.top.lists import MainScreen
from batchd.cli.top.task_view import TaskView
from batchd.cli.top.watching import TopQuery, TopSnapshot
from batchd.log import escape
from batchd.observe.snapshot import Snapshot
from batchd.records import Ref

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
    give: Callable[[KeyOrder], None]
    #: What came of the last order, and whether it was refused.
    answer: Callable[[], tuple[str, bool] | None]
    lists: MainScreen = field(default_factory=MainScreen)
    following: TaskView | None = None
    helping: bool = False
    #: Waits for a yes.
    asked: KeyOrder | None = None
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
            order, self.asked = self.asked, None
            if key in {"y", "Y"}:
                self._give(order)
            else:
                self.message = ("nothing was done", False)
        elif self.lists.typed is None and key in {"q", "Q"}:
            return False
        elif self.lists.typed is None and key == "?":
            self.helping = True
        elif self.following:
            self._in_task(self.following, key, sight)
        else:
            self._outcome(self.lists.key(key, sight))
        return True

    def _in_task(self, following: TaskView, key: str, sight: TopSnapshot) -> None:
        if key in {"escape", "left", "h", "backspace"}:
            self.following = None
        else:
            self._outcome(following.key(key, sight))

    def _outcome(self, outcome: KeyOrder | Ref | str | None) -> None:
        if isinstance(outcome, Ref):
            self.following = TaskView(outcome)
        elif isinstance(outcome, str):
            self.message = (outcome, False)
        elif outcome is not None and outcome.question:
            self.asked = outcome
        elif outcome is not None:
            self._give(outcome)

    def _give(self, order: KeyOrder) -> None:
        self.give(order)
        self.message = None

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
            return Text(escape(f"{self.asked.question} y/n"), "bold yellow reverse")
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


def once(snapshot: Snapshot, store: bool, width: int) -> list[Text]:
    """Return all lines of one picture, however many: for files and pipes."""
    sight = TopSnapshot(snapshot, store=store)
    lists = MainScreen()
    height = 1 << 16
    return lists.draw(sight, width, height)
