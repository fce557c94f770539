"""``TaskState`` itself: a frozen value, and what can be read off it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchd.events import (
    CallStarted,
    Suspended,
    TaskFinished,
    Terms,
)
from batchd.records import (
    Answer,
    Cost,
    ErrorInfo,
    Evaluation,
    Failure,
    Message,
    ModelSetup,
    Purpose,
    Reason,
    Spend,
    TaskStatus,
    ToolCall,
    Usage,
)
from batchd.taskstate import circles

#: What asks the model to go on where the output limit cut its text.
CONTINUE = "Your answer was cut off at the output limit. Go on exactly where it stopped."


class FinishedCommand(Struct, frozen=True):
    """A tool call that has its output."""

    call: ToolCall
    #: Of a command.
    exit_code: int | None
    #: Whether it failed since it asked for input, of which there is none.
    asked_input: bool = False
    #: Whether it failed since it wanted a screen, or a browser, of which there is none.
    asked_screen: bool = False
    #: Whether it printed nothing.
    silent: bool = False
    #: Whether it was killed at its time limit.
    timed_out: bool = False


class Verdict(Struct, frozen=True, kw_only=True):
    """The verdict: how the task must end."""

    status: TaskStatus
    reason: Reason | None = None
    error: ErrorInfo | None = None


# A struct, as all is that is made for each step:
# to replace a few of forty fields costs a dataclass a tenth of all that an agent does.
class TaskState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of a task, from its events alone."""

    first_prompt: str
    terms: Terms | None = None
    #: The conversation as the model sees it next.
    messages: tuple[Message, ...] = ()
    #: How many of ``messages`` the model has seen, or written itself.
    seen: int = 0
    #: Tokens of those, by the provider's count.
    seen_tokens: int = 0
    #: Tokens by the provider's count to one of ours, as it was at the last compaction.
    scale: float = 1.0
    #: Windows that a provider has shown to be other than the terms say,
    #: by the model's name; the latest last.
    windows: Mapping[str, int] = msgspec.field(default_factory=dict)
    #: Whether answers go back as neutral text and calls from here on,
    #: not as the items they came in.
    plain: bool = False
    #: How often the provider refused items that went back.
    refused_items: int = 0
    #: Items that the provider left out of what went back, by its own word.
    removed_items: int = 0
    #: Requests that overflowed their window since the last answer,
    #: and what the provider said of the latest.
    overflows: int = 0
    overflow: Failure | None = None

    #: Tool calls without an output yet, in order.
    pending: tuple[ToolCall, ...] = ()
    #: Whether they were cut off at the output limit.
    calls_cut: bool = False
    #: Whether they came, and are answered, as text.
    text_protocol: bool = False
    #: Whether the first of them may have run before a crash.
    in_doubt: bool = False
    #: Whether the model ever made a native tool call.
    native_seen: bool = False

    #: Rounds whose evaluation is settled.
    rounds: int = 0
    #: Whether the model has worked since.
    round_open: bool = False
    #: Whether the model has stopped calling tools: the round waits for its evaluation.
    stopped: bool = False
    #: The verdicts of this round so far.
    evaluations: tuple[Evaluation, ...] = ()
    #: The judge's answers in this round that brought no verdict yet.
    judged: tuple[Answer, ...] = ()
    #: The last verdict of all.
    evaluation: Evaluation | None = None
    #: Links that rounds were refused for: by path, with what they hold.
    links: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: A summary of the conversation's middle that is paid but not applied yet.
    summary: str | None = None
    #: The model's last word, continued answers joined.
    answer: str = ""
    #: Whether the last answer was cut at the output limit, so that the next one continues it.
    cut: bool = False
    #: Cut answers without any content, running.
    empty_cuts: int = 0

    #: Every tool call that has its output.
    commands: tuple[FinishedCommand, ...] = ()
    #: What its commands had left running after the last tool call, by name.
    left: tuple[str, ...] = ()
    #: Whether the model has learned what little is left of the task's limits.
    noticed: bool = False
    #: The last tool calls of this round, as steps that may be a circle.
    recent: tuple[circles.Step, ...] = ()
    #: Whether the loop guard ended this round, and how many it ended.
    looped: bool = False
    loops: int = 0
    #: Who refused the last round that it ended, and why.
    loop: tuple[str, str] | None = None

    #: Answers, by purpose, in tokens and money.
    spend: Mapping[Purpose, Spend] = msgspec.field(default_factory=dict)
    #: … and by the service tier that served them.
    by_tier: Mapping[str, Spend] = msgspec.field(default_factory=dict)
    #: What the provider's cache saved, in dollars; None: no provider says, or no price is known.
    cache_saved_usd: float | None = None
    #: What models to compare with that have hours would have taken so far, by name.
    compared: Mapping[str, float] = msgspec.field(default_factory=dict)
    #: A request whose outcome is not recorded.
    open_call: CallStarted | None = None
    #: Requests that may have been paid without an answer, and what they may have cost.
    unsettled_calls: int = 0
    unsettled_usd: float = 0.0
    #: Requests that failed since the last answer.
    retries: int = 0

    started_at: float = 0.0
    last_at: float = 0.0
    #: Time at work up to the last event.
    run_s: float = 0.0
    #: Time in a slot, waiting for permits.
    waited_s: float = 0.0
    parked_s: float = 0.0
    model_s: float = 0.0
    tool_s: float = 0.0
    suspended: Suspended | None = None
    #: By machine: what it called the time since its start when it last worked on the task.
    boots: Mapping[str, str] = msgspec.field(default_factory=dict)
    #: Whether files of the task may be lost, since its machine was started meanwhile;
    #: and what the model is to learn of that once no call is pending.
    files_lost: bool = False
    unsaid: str = ""

    verdict: Verdict | None = None
    finished: TaskFinished | None = None

    @property
    def circles(self) -> bool:
        """Whether circles of several calls are loops, and calls that do nothing are stops."""
        return self.terms is not None and self.terms.circles

    @property
    def stays(self) -> bool:
        """Whether the model has read that what its commands leave running goes on."""
        return self.terms is not None and self.terms.keep_processes

    @property
    def iterations(self) -> int:
        """Rounds begun."""
        return self.rounds + self.round_open

    @property
    def usage(self) -> Usage:
        """Tokens over all purposes."""
        return sum((s.usage for s in self.spend.values()), Usage())

    @property
    def cost(self) -> Cost | None:
        """Money over all answers; None where a price is missing."""
        costs = [s.cost for s in self.spend.values()]
        return None if None in costs else sum((c for c in costs if c), Cost())

    def run_time(self, now: float) -> float:
        """Return the time at work, in seconds, that has passed by ``now``."""
        return self.run_s + (max(0.0, now - self.last_at) if self.last_at else 0.0)

    def parked_time(self, now: float) -> float:
        """Return the time parked, in seconds, by ``now``."""
        parked = self.suspended is not None and self.suspended.cause == "park"
        return self.parked_s + (max(0.0, now - self.last_at) if parked else 0.0)

    def settled(self) -> TaskState:
        """Return the state with the open call, if there is one, booked as perhaps paid."""
        if self.open_call is None:
            return self
        return replace(
            self,
            open_call=None,
            unsettled_calls=self.unsettled_calls + 1,
            unsettled_usd=self.unsettled_usd + (self.open_call.reserved_usd or 0.0),
        )

    def setup(self, purpose: Purpose) -> ModelSetup:
        """Return how the model for ``purpose`` is called.

        Raises ``ValueError`` before the start.
        """
        if self.terms is None:
            raise ValueError("the task has not started")
        setup = self.terms.judge if purpose is Purpose.JUDGE else self.terms.model
        window = self.windows.get(setup.name)
        return setup if window is None else replace(setup, context_window=window)
