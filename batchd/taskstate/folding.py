"""The fold: how each event changes the state, one function an event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from batchd.events import (
    CallAnswered,
    CallDenied,
    CallFailed,
    CallStarted,
    CancelRequested,
    ClockMoved,
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
    FailureKind,
    Message,
    Purpose,
    Reason,
    Tally,
    TaskStatus,
)
from batchd.taskstate.state import (
    CONTINUE,
    TaskState,
    Verdict,
    lost,
    round_evaluated,
    shortened,
    tool_ran,
    without_items,
)

#: Bytes of the items of a conversation: they go back with every call. Beyond that none of them do,
#: as after a refusal: each holds only behind those before it.
_MAX_ITEM_BYTES = 8 << 20
_NOTHING = Tally()
_AFTER_A_WAIT = CallStarted | CallDenied | Suspended | CancelRequested | ToolRan | RoundEvaluated


def fold(first_prompt: str, events: Iterable[Event]) -> TaskState:
    """Return the state that ``events`` add up to."""
    state = TaskState(first_prompt=first_prompt)
    for event in events:
        state = apply(state, event)
    return state


def apply(state: TaskState, event: Event) -> TaskState:
    """Return the state after ``event``."""
    idle = isinstance(event, Resumed) or not state.last_at
    worked = 0.0 if idle else event.at - state.last_at
    waited = 0.0
    if isinstance(event, ClockMoved):
        worked -= event.by_s  # which the event before may have counted, or this one would
    elif isinstance(event, _AFTER_A_WAIT):
        waited = event.waited_s
    return replace(
        _FOLDS.get(type(event), _unchanged)(state, event),
        last_at=event.at,
        run_s=state.run_s + worked - waited,
        waited_s=state.waited_s + waited,
    )


def _started(state: TaskState, event: TaskStarted) -> TaskState:
    return replace(_under(state, event.terms), started_at=event.at, boots=_boots(state, event))


def _boots(state: TaskState, event: TaskStarted | Resumed) -> Mapping[str, str]:
    return {**state.boots, event.node or "": event.boot} if event.boot else state.boots


def _under(state: TaskState, terms: Terms) -> TaskState:
    """Return the state of a task that begins under these terms."""
    asked = Message("user", terms.opening + state.first_prompt)
    opening = (Message("system", terms.system_prompt), asked)
    return replace(state, terms=terms, messages=opening)


def _resumed(state: TaskState, event: Resumed) -> TaskState:
    settled = state.settled()
    resumed = replace(
        _under(settled, event.terms) if event.terms else settled,
        parked_s=state.parked_time(event.at),
        # After a clean suspension every effect has its event;
        # after a crash the first pending call may have run.
        in_doubt=bool(state.pending) and state.suspended is None,
        suspended=None,
        boots=_boots(state, event),
    )
    return lost(resumed, event.lost) if event.lost else resumed


def _call_started(state: TaskState, event: CallStarted) -> TaskState:
    return replace(state.settled(), open_call=event, round_open=True)


def _call_failed(state: TaskState, event: CallFailed) -> TaskState:
    settled = state.settled() if event.failure.unsettled else replace(state, open_call=None)
    settled = replace(settled, retries=state.retries + 1)
    if event.failure.kind is FailureKind.REPLAY:
        refused, messages = settled.refused_items + 1, without_items(settled.messages)
        return replace(
            settled, messages=messages, refused_items=refused, plain=settled.plain or refused > 1
        )
    call, overflow = state.open_call, event.failure.kind is FailureKind.CONTEXT_OVERFLOW
    return _overflowed(settled, call, event) if call and overflow else settled


def _guessed(state: TaskState, call: CallStarted) -> int:
    """Return how long a window of unknown length may be, after a request that did not fit.

    Many providers count the output that is asked for:
    at first that alone is halved, then the input is shortened too.
    """
    output = 0 if state.overflows else call.max_output_tokens
    return max(call.input_tokens, (call.input_tokens + output) // 2)


def _overflowed(state: TaskState, call: CallStarted, event: CallFailed) -> TaskState:
    """Take the window to be what the provider says it is, or as long as what did not fit."""
    setup, named = state.setup(call.purpose), event.failure.window
    if not named or call.input_tokens + call.max_output_tokens <= named:
        # By our count it would have fitted, so that our count is too low:
        # the window is shorter by the same measure.
        known = [n for n in (_guessed(state, call), setup.context_window, named) if n]
        named = min(known)
    others = {name: n for name, n in state.windows.items() if name != setup.name}
    state = replace(state, windows={**others, setup.name: named}, overflow=event.failure)
    if call.purpose is Purpose.COMPACTION:
        return replace(state, summary="")  # no summary comes of this
    return replace(state, overflows=state.overflows + 1)


def _call_answered(state: TaskState, event: CallAnswered) -> TaskState:
    answer = event.answer
    price = state.setup(event.purpose).price
    saved = event.saved(price)
    used = Tally.of_call(answer.usage, event.paid(price), saved)
    state = replace(
        state,
        spend={**state.spend, event.purpose: state.spend.get(event.purpose, _NOTHING) + used},
        by_tier={**state.by_tier, event.tier: state.by_tier.get(event.tier, _NOTHING) + used},
        cache_saved_usd=state.cache_saved_usd
        if saved is None
        else (state.cache_saved_usd or 0.0) + saved,
        compared={
            other.name: state.compared.get(other.name, 0.0)
            + other.price.sent(event.sent_at, answer.usage).cost(answer.usage).total
            for other in (state.terms.compare if state.terms else ())
            if other.price and other.price.hours
        },
        model_s=state.model_s + answer.seconds,
        open_call=None,
        retries=0,
    )
    if event.purpose is Purpose.COMPACTION:
        cut = " […]" if answer.finish_reason == "length" and answer.content else ""
        return replace(state, summary=answer.content + cut)
    if state.overflows or state.overflow:
        state = replace(state, overflows=0, overflow=None)
    if event.purpose is Purpose.AGENT:
        return _agent_answered(state, event)
    return replace(state, judged=(*state.judged, answer))


def _agent_answered(state: TaskState, event: CallAnswered) -> TaskState:
    answer = event.answer
    native = () if event.text_protocol else event.calls
    cut = answer.finish_reason == "length" and not event.calls
    empty_cuts = state.empty_cuts + 1 if cut and not answer.content.strip() else 0
    stopped = not event.calls and (
        not cut or empty_cuts >= 2
    )  # the design: two empty cuts running end the round
    thinking = answer.reasoning if answer.reasoning_back else None
    plain = state.plain or answer.masked
    # Calls that get no reply, as there are too many or none was meant, cannot go back as they came.
    replay = None if plain or native != answer.tool_calls else answer.replay
    before = state.messages
    if replay and replay.size + sum(m.replay.size for m in before if m.replay) > _MAX_ITEM_BYTES:
        replay, before = None, without_items(before)
    # Thinking that does not go back is not part of the conversation.
    forgotten = thinking is None and replay is None
    kept = answer.usage.total_tokens - (answer.usage.reasoning_tokens if forgotten else 0)
    said = Message("assistant", answer.content, native, reasoning=thinking, replay=replay)
    messages = (*before, said)
    seen = len(messages)
    if cut and not stopped:
        messages = (*messages, Message("user", CONTINUE))
    return replace(
        state,
        messages=messages,
        seen=seen,
        # Without a count of the provider's, ours stands.
        seen_tokens=0 if event.disbelieved else kept,
        pending=event.calls,
        calls_cut=bool(event.calls) and answer.finish_reason == "length",
        text_protocol=event.text_protocol,
        native_seen=state.native_seen or bool(native),
        plain=plain,
        removed_items=state.removed_items + len(answer.removed),
        windows=_windows(state, answer),
        answer=state.answer + answer.content if state.cut else answer.content,
        cut=cut and not stopped,
        empty_cuts=0 if stopped else empty_cuts,
        stopped=stopped,
        verdict=_filtered(answer) if stopped else None,
    )


def _windows(state: TaskState, answer: Answer) -> Mapping[str, int]:
    """Return the windows that are known, with that of a model whose answer has just filled it."""
    if not answer.window_full:
        return state.windows
    name = state.setup(Purpose.AGENT).name
    others = {other: n for other, n in state.windows.items() if other != name}
    return {**others, name: answer.usage.total_tokens}


def _filtered(answer: Answer) -> Verdict | None:
    """Return the end of a task whose answer the provider withheld; it is paid all the same."""
    if answer.finish_reason != "content_filter" or answer.content.strip():
        return None
    who = answer.model or "the model"
    message = f"{who} gave no answer: the provider filtered its content"
    if answer.refusal:
        message = f"{who} refuses to answer: {answer.refusal_line}"
    return Verdict.of(TaskStatus.ERROR, Reason.CONTENT_FILTER, message)


def _compacted(state: TaskState, event: Compacted) -> TaskState:
    # The provider has never seen this conversation: all of it is to be counted again.
    return replace(
        state,
        messages=shortened(state.messages, event),
        seen=0,
        seen_tokens=0,
        scale=event.scale,
        summary=None,
    )


def _denied(state: TaskState, event: CallDenied) -> TaskState:
    return replace(
        state, verdict=Verdict(status=event.status, reason=event.reason, error=event.error)
    )


def _cancelled(state: TaskState, event: CancelRequested) -> TaskState:
    verdict = Verdict.of(TaskStatus.CANCELLED, event.reason, event.message)
    return replace(state.settled(), verdict=verdict)


def _unchanged(state: TaskState, _event: Event) -> TaskState:
    return state


#: Of events that change more than the clocks.
_FOLDS: Mapping[type, Callable[[TaskState, Any], TaskState]] = {
    TaskStarted: _started,
    Resumed: _resumed,
    CallStarted: _call_started,
    CallAnswered: _call_answered,
    CallFailed: _call_failed,
    CallDenied: _denied,
    ToolRan: tool_ran,
    RoundEvaluated: round_evaluated,
    Compacted: _compacted,
    Suspended: lambda state, event: replace(state, suspended=event),
    CancelRequested: _cancelled,
    TaskFinished: lambda state, event: replace(state.settled(), finished=event),
}
