"""``TaskState``: what a task's events add up to.

Whoever folds the same events gets the same state, so resume, replay and tests come
free. Nothing here does any I/O or reads a clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from batchd.events import (
    CallAnswered,
    CallDenied,
    CallFailed,
    CallStarted,
    CancelRequested,
    Compacted,
    Event,
    Resumed,
    RoundEvaluated,
    Suspended,
    TaskFinished,
    TaskStarted,
    Terms,
    ToolRan,
)
from batchd.records import (
    Answer,
    Cost,
    ErrorInfo,
    Evaluation,
    Message,
    ModelSetup,
    Purpose,
    Reason,
    Spend,
    Status,
    ToolCall,
    Usage,
)

#: What stands in the conversation for a tool output that was elided.
ELIDED = "[output removed to save space; run the command again if you need it]"
#: What asks the model to go on where the output limit cut its text.
CONTINUE = "Your answer was cut off at the output limit. Go on exactly where it stopped."


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the task must end."""

    status: Status
    reason: Reason | None = None
    error: ErrorInfo | None = None


# No dataclass: to replace a few of forty fields, which every event does, costs one a tenth of all that an agent does.
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
    #: A summary of the conversation's middle that is paid but not applied yet.
    summary: str | None = None
    #: The model's last word, continued answers joined.
    answer: str = ""
    #: Whether the last answer was cut at the output limit, so that the next one continues it.
    cut: bool = False
    #: Cut answers without any content, running.
    empty_cuts: int = 0

    #: Every tool call that has its output, with the exit code of commands.
    commands: tuple[tuple[ToolCall, int | None], ...] = ()
    #: The last tool call with its output, and how often it came running.
    last_tool: tuple[str, str, str] | None = None
    repeats: int = 0
    #: Rounds that the loop guard ended.
    loops: int = 0

    #: Answers, by purpose, in tokens and money.
    spend: Mapping[Purpose, Spend] = msgspec.field(default_factory=dict)
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
    parked_s: float = 0.0
    model_s: float = 0.0
    tool_s: float = 0.0
    suspended: Suspended | None = None

    verdict: Verdict | None = None
    finished: TaskFinished | None = None

    @classmethod
    def of(cls, first_prompt: str, events: Iterable[Event]) -> TaskState:
        """Return the state that ``events`` add up to."""
        state = cls(first_prompt=first_prompt)
        for event in events:
            state = state.apply(event)
        return state

    def apply(self, event: Event) -> TaskState:
        """Return the state after ``event``."""
        idle = isinstance(event, Resumed) or not self.last_at
        worked = 0.0 if idle else max(0.0, event.at - self.last_at)
        return replace(
            _FOLDS[type(event)](self, event), last_at=event.at, run_s=self.run_s + worked
        )

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
        """Return how the model for ``purpose`` is called. Raises ``ValueError`` before the start."""
        if self.terms is None:
            raise ValueError("the task has not started")
        return self.terms.judge if purpose is Purpose.JUDGE else self.terms.model


def _started(state: TaskState, event: TaskStarted) -> TaskState:
    opening = (
        Message("system", event.terms.system_prompt),
        Message("user", state.first_prompt),
    )
    return replace(state, terms=event.terms, messages=opening, started_at=event.at)


def _resumed(state: TaskState, event: Resumed) -> TaskState:
    parked = state.suspended is not None and state.suspended.cause == "park"
    return replace(
        state.settled(),
        parked_s=state.parked_s + (max(0.0, event.at - state.last_at) if parked else 0.0),
        # After a clean suspension every effect has its event; after a crash the first pending call may have run.
        in_doubt=bool(state.pending) and state.suspended is None,
        suspended=None,
    )


def _call_started(state: TaskState, event: CallStarted) -> TaskState:
    return replace(state.settled(), open_call=event, round_open=True)


def _call_failed(state: TaskState, event: CallFailed) -> TaskState:
    settled = state.settled() if event.failure.unsettled else replace(state, open_call=None)
    return replace(settled, retries=state.retries + 1)


def _call_answered(state: TaskState, event: CallAnswered) -> TaskState:
    answer = event.answer
    price = state.setup(event.purpose).price
    before = state.spend.get(event.purpose)
    cost = price.cost(answer.usage) if price else None
    if before is not None:
        cost = cost + before.cost if cost and before.cost else None
    spend = Spend(usage=(before.usage if before else Usage()) + answer.usage, cost=cost)
    state = replace(
        state,
        spend={**state.spend, event.purpose: spend},
        model_s=state.model_s + answer.seconds,
        open_call=None,
        retries=0,
    )
    if event.purpose is Purpose.AGENT:
        return _agent_answered(state, event)
    if event.purpose is Purpose.JUDGE:
        return replace(state, judged=(*state.judged, answer))
    return replace(state, summary=answer.content)


def _agent_answered(state: TaskState, event: CallAnswered) -> TaskState:
    answer = event.answer
    native = () if event.text_protocol else event.calls
    cut = answer.finish_reason == "length" and not event.calls
    empty_cuts = state.empty_cuts + 1 if cut and not answer.content.strip() else 0
    stopped = not event.calls and (not cut or empty_cuts >= 2)  # noqa: PLR2004 (the design: two empty cuts running end the round)
    messages = (*state.messages, Message("assistant", answer.content, native))
    seen = len(messages)
    if cut and not stopped:
        messages = (*messages, Message("user", CONTINUE))
    return replace(
        state,
        messages=messages,
        seen=seen,
        seen_tokens=answer.usage.total_tokens,
        pending=event.calls,
        calls_cut=bool(event.calls) and answer.finish_reason == "length",
        text_protocol=event.text_protocol,
        native_seen=state.native_seen or bool(native),
        answer=state.answer + answer.content if state.cut else answer.content,
        cut=cut and not stopped,
        empty_cuts=0 if stopped else empty_cuts,
        stopped=stopped,
        verdict=_filtered(answer) if stopped else None,
    )


def _filtered(answer: Answer) -> Verdict | None:
    """Return the end of a task whose answer the provider withheld; it is paid all the same."""
    if answer.finish_reason != "content_filter" or answer.content.strip():
        return None
    message = f"{answer.model or 'the model'} gave no answer: the provider filtered its content"
    error = ErrorInfo(type=Reason.CONTENT_FILTER, message=message)
    return Verdict(status=Status.ERROR, reason=Reason.CONTENT_FILTER, error=error)


def _tool_ran(state: TaskState, event: ToolRan) -> TaskState:
    key = (event.call.name, event.call.arguments, event.output)
    repeats = state.repeats + 1 if key == state.last_tool else 1
    looped = repeats >= 3  # noqa: PLR2004 (the design: the same call with the same output three times running)
    pending = state.pending[1:]
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
    return replace(
        state,
        messages=state.messages + reply,
        pending=pending,
        in_doubt=False,
        tool_s=state.tool_s + event.seconds,
        commands=(*state.commands, (event.call, event.exit_code)),
        last_tool=None if looped else key,
        repeats=0 if looped else repeats,
        loops=state.loops + looped,
        stopped=looped,
    )


def _round_evaluated(state: TaskState, event: RoundEvaluated) -> TaskState:
    verdict = event.evaluation
    state = replace(state, evaluation=verdict, judged=(), tool_s=state.tool_s + event.seconds)
    if not event.final:
        return replace(state, evaluations=(*state.evaluations, verdict))
    state = replace(state, evaluations=(), stopped=False, rounds=state.rounds + 1, round_open=False)
    if verdict.done:
        return replace(state, verdict=Verdict(status=Status.COMPLETED))
    feedback = Message("user", f"Not done yet, says the {verdict.by}:\n{verdict.feedback}")
    return replace(state, messages=(*state.messages, feedback))


def _compacted(state: TaskState, event: Compacted) -> TaskState:
    elided = set(event.elided)
    messages = tuple(
        dataclasses.replace(m, content=ELIDED) if i in elided else m
        for i, m in enumerate(state.messages)
    )
    if event.summary is not None:
        summary = Message("user", f"Summary of the work so far:\n{event.summary}")
        messages = (*messages[: event.start], summary, *messages[event.end :])
    # The provider has never seen this conversation: all of it is to be counted again.
    return replace(state, messages=messages, seen=0, seen_tokens=0, summary=None)


def _denied(state: TaskState, event: CallDenied) -> TaskState:
    return replace(
        state, verdict=Verdict(status=event.status, reason=event.reason, error=event.error)
    )


def _cancelled(state: TaskState, event: CancelRequested) -> TaskState:
    error = ErrorInfo(type=event.reason, message=event.message)
    return replace(
        state.settled(), verdict=Verdict(status=Status.CANCELLED, reason=event.reason, error=error)
    )


_FOLDS: Mapping[type, Callable[[TaskState, Any], TaskState]] = {
    TaskStarted: _started,
    Resumed: _resumed,
    CallStarted: _call_started,
    CallAnswered: _call_answered,
    CallFailed: _call_failed,
    CallDenied: _denied,
    ToolRan: _tool_ran,
    RoundEvaluated: _round_evaluated,
    Compacted: _compacted,
    Suspended: lambda state, event: replace(state, suspended=event),
    CancelRequested: _cancelled,
    TaskFinished: lambda state, event: replace(state.settled(), finished=event),
}
