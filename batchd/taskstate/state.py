"""The state of a task: its rounds, its commands, its conversation, and what is left out of that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from batchd.events import (
    CallStarted,
    Compacted,
    RoundEvaluated,
    Suspended,
    TaskFinished,
    Terms,
    ToolRan,
)
from batchd.records import (
    Answer,
    ErrorInfo,
    Evaluation,
    Failure,
    Message,
    ModelSetup,
    Purpose,
    Reason,
    Role,
    Tally,
    TaskLimits,
    TaskStatus,
    ToolCall,
)

#: A call with its output, as one number, and whether it may have changed a file.
Step: TypeAlias = tuple[int, bool]
#: A circle has at most so many calls, and is one when it has come so often (the design's number).
_MAX_CIRCLE_CALLS, _TIMES = 4, 3
#: The share of a limit from which on it is nearly used up (the design's number).
_NEARLY = 0.8
#: So many steps are looked back on.
LOOKED_BACK = _MAX_CIRCLE_CALLS * _TIMES
#: Commands that do nothing, by which models that have only commands say that they are done.
_NOTHING = re.compile(
    r"""(?i)(exit(\s+0)?|true|:|done[.!]?|echo\s+(["']?)(?:(all|the|my|this)\s+)?(?:(task|work|job|everything)\s+)?"""
    r"""(?:(is|has\s+been)\s+)?(?:now\s+)?(?:successfully\s+)?(done|completed?|finished|(任务)?(已)?完成)"""
    r"""(?:\s+successfully)?[.!。]?\3)?"""
)
#: What batchd says of files, with what has changed in them: it is not the command's own output.
_ADDED = re.compile(r"\n?\[changed: [^\n]*\](?:\n[-+ @][^\n]*)*")
_BETWEEN = re.compile(r"[\n;]|&&")


def circling(steps: Sequence[Step], longest: int = _MAX_CIRCLE_CALLS) -> bool:
    """Return whether the last steps are the same few, three times;
    of several none may have changed a file.
    """
    return any(_circle(steps, length) for length in range(1, longest + 1))


def _circle(steps: Sequence[Step], length: int) -> bool:
    last = steps[-length * _TIMES :]
    if len(last) < length * _TIMES or (length > 1 and any(moved for _, moved in last)):
        return False
    return all(step[0] == last[i % length][0] for i, step in enumerate(last))


def step(event: ToolRan) -> Step:
    """Return a call with its output as a step.

    What runs in the background, and what was not looked at, may have moved.
    """
    output = _ADDED.sub("", event.output)
    moved = event.changed is not False or bool(event.left)
    return hash((event.call.name, event.call.arguments, output)), moved


def idle(call: ToolCall) -> bool:
    """Return whether a call does nothing: it is how a model stops that knows no other way."""
    command = call.fields.get("command")
    return isinstance(command, str) and all(
        _NOTHING.fullmatch(part.strip()) for part in _BETWEEN.split(command)
    )


#: What stands in the conversation for a tool output that was elided.
ELIDED = "[output removed to save space; run the command again if you need it]"
#: How a summary begins.
NOTES = "Summary of the work so far:\n"
#: What stands behind it, in the user's place.
GO_ON = "Go on from there."


def shortened(messages: tuple[Message, ...], event: Compacted) -> tuple[Message, ...]:
    """Return the conversation after a compaction."""
    elided, kept = set(event.elided), dict(event.clipped)
    if event.plain:
        # What is sealed holds for what stood before it alone.
        messages = without_items(messages)
    messages = tuple(
        replace(m, content=ELIDED)
        if i in elided
        else replace(m, content=clipped(m.content, kept[i]))
        if i in kept
        else m
        for i, m in enumerate(messages)
    )
    if event.summary is None:
        return messages
    role: Role = "assistant" if event.own else "user"
    # Where a provider wants the thinking back, it may want it with every message of the model.
    thinks = event.own and any(m.reasoning is not None for m in messages)
    said = Message(role, f"{NOTES}{event.summary}", reasoning="" if thinks else None)
    notes: tuple[Message, ...] = (said,)
    if event.own:
        notes += (Message("user", GO_ON),)
    return (*messages[: event.start], *notes, *messages[event.end :])


def without_items(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return a conversation of texts and calls alone."""
    return tuple(replace(m, replay=None) if m.replay else m for m in messages)


def clipped(text: str, keep: int) -> str:
    """Return ``text`` with its middle cut out,
    so that ``keep`` characters and a note of the cut are left.
    """
    head = keep // 2
    tail = keep - head
    cut = len(text) - keep
    if cut <= 0:
        return text
    note = f"\n[... {cut:,} characters cut out here, which do not fit into your window ...]\n"
    return f"{text[:head]}{note}{text[len(text) - tail :]}"


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

    @classmethod
    def of(cls, status: TaskStatus, reason: Reason, message: str) -> Verdict:
        """Return the end of a task that does not complete."""
        return cls(status=status, reason=reason, error=ErrorInfo(type=reason, message=message))


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
    #: The verdict before the first call, where the task asks for one.
    first: Evaluation | None = None
    #: The last verdict of all.
    evaluation: Evaluation | None = None
    #: The last score that its check gave, and whether that ever
    #: gave two verdicts on the same files.
    score: float | None = None
    flaky: bool = False
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
    recent: tuple[Step, ...] = ()
    #: Whether the loop guard ended this round, and how many it ended.
    looped: bool = False
    loops: int = 0
    #: Who refused the last round that it ended, and why.
    loop: tuple[str, str] | None = None

    #: Answers, by purpose, in tokens and money.
    spend: Mapping[Purpose, Tally] = msgspec.field(default_factory=dict)
    #: … and by the service tier that served them.
    by_tier: Mapping[str, Tally] = msgspec.field(default_factory=dict)
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
    def tally(self) -> Tally:
        """Calls, tokens and money over all purposes."""
        lost = Tally(unsettled_calls=self.unsettled_calls, unsettled_usd=self.unsettled_usd)
        return sum(self.spend.values(), lost)

    def run_time(self, now: float) -> float:
        """Return the time at work, in seconds, that has passed by ``now``."""
        return self.run_s + (max(0.0, now - self.last_at) if self.last_at else 0.0)

    def nearly_used(self, limits: TaskLimits, now: float) -> Iterator[tuple[str, float, float]]:
        """Yield the limits that are nearly used up, or over: the key, what is used, the limit."""
        used = self.tally
        every = (
            ("max_iterations", self.iterations, limits.max_iterations),
            ("max_calls", used.calls + used.unsettled_calls, limits.max_calls),
            ("max_tokens", used.total_tokens, limits.max_tokens),
            ("timeout_s", self.run_time(now), limits.timeout_s),
            ("max_cost_usd", (used.cost_usd or 0.0) + used.unsettled_usd, limits.max_cost_usd),
        )
        return (each for each in every if 0 < each[2] * _NEARLY <= each[1])

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
        setup = self.terms.setup(purpose)
        window = self.windows.get(setup.name)
        return setup if window is None else replace(setup, context_window=window)


def tool_ran(state: TaskState, event: ToolRan) -> TaskState:
    """Return the state after a tool call:
    its output joins the conversation, and may end the round.
    """
    recent = (*state.recent, step(event))[-LOOKED_BACK:]
    looped = circling(recent) if state.circles else circling(recent, 1)
    pending = state.pending[1:]
    stopped = state.circles and not pending and _stops(state, event)
    call_id = None if state.text_protocol else event.call.id
    reply: tuple[Message, ...] = (Message("tool", event.output, tool_call_id=call_id),)
    if looped:
        # Every call of an answer needs a reply, also those that will not run.
        reply += tuple(
            Message("tool", "Not run: you repeat yourself.", tool_call_id=c.id)
            for c in pending
            if not state.text_protocol
        )
        pending = ()
    return _informed(
        state,
        messages=state.messages + reply,
        pending=pending,
        in_doubt=False,
        tool_s=state.tool_s + event.seconds,
        commands=(*state.commands, _command(event)),
        left=event.left,
        noticed=state.noticed or event.noticed,
        recent=() if looped else recent,
        looped=looped,
        loops=state.loops + looped,
        stopped=looped or stopped,
    )


def lost(state: TaskState, words: str) -> TaskState:
    """Return the state once files may be lost: the model learns that before it goes on,
    also where it had stopped, or its work was found to be done.
    """
    done = state.verdict is not None and state.verdict.status is TaskStatus.COMPLETED
    if done:
        state = replace(state, verdict=None, rounds=state.rounds - 1)
    state = replace(state, evaluations=(), judged=(), stopped=False, looped=False, first=None)
    return _informed(state, files_lost=True, unsaid=words)


def _informed(state: TaskState, **changes: Any) -> TaskState:
    """Return the state with changes, and what the model is to learn behind its calls' outputs."""
    state = replace(state, **changes)
    if not state.unsaid or state.pending:
        return state
    messages = (*state.messages, Message("user", state.unsaid))
    return replace(state, messages=messages, unsaid="")


def _command(event: ToolRan) -> FinishedCommand:
    silent = event.output.startswith("[no output")
    asked = event.asked_input, event.asked_screen
    late = event.outcome == "timed_out"
    return FinishedCommand(event.call, event.exit_code, *asked, silent, late)


def _stops(state: TaskState, event: ToolRan) -> bool:
    """Return whether a call is a model's stop:
    the only one of an answer with words, after others, that does nothing.
    """
    alone = state.messages[-1].role == "assistant" and bool(state.answer.strip())
    return alone and bool(state.commands) and event.exit_code == 0 and idle(event.call)


def round_evaluated(state: TaskState, event: RoundEvaluated) -> TaskState:
    """Return the state after a verdict: the task is done,
    goes on with feedback, or has gone in circles.
    """
    verdict = event.evaluation
    state = replace(state, tool_s=state.tool_s + event.seconds, flaky=state.flaky or event.flaky)
    if verdict.by == "check":
        state = replace(state, score=event.score)
    if event.first:
        return replace(state, first=verdict, evaluation=verdict if verdict.done else None)
    state = replace(state, evaluation=verdict, judged=())
    if not event.final:
        return replace(state, evaluations=(*state.evaluations, verdict))
    looped, before = state.looped, state.loop
    state = replace(
        state,
        evaluations=(),
        stopped=False,
        rounds=state.rounds + 1,
        round_open=False,
        links={**state.links, **event.links},
        recent=() if state.circles else state.recent,
        looped=False,
    )
    if verdict.done:
        return replace(state, verdict=Verdict(status=TaskStatus.COMPLETED))
    if looped:
        # A judge finds other words for the same,
        # and a program's output has times and addresses in it.
        first = "" if verdict.by == "judge" else verdict.feedback.partition("\n")[0]
        reason = (verdict.by, first)
        state = replace(state, loop=reason, verdict=_circled(verdict) if reason == before else None)
    feedback = Message("user", f"Not done yet, says the {verdict.by}:\n{verdict.feedback}")
    return replace(state, messages=(*state.messages, feedback))


def _circled(verdict: Evaluation) -> Verdict:
    """Return the end of a task that goes in circles,
    and is refused for the same reason each time.
    """
    message = f"it went in circles twice, and the {verdict.by} refused both: {verdict.feedback}"
    return Verdict.of(TaskStatus.ERROR, Reason.LOOP, message.strip().removesuffix(":"))
