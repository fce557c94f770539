"""Rounds: moved by tool calls, up to the loop guard, and by what their evaluators say."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from batchd.events import RoundEvaluated, ToolRan
from batchd.records import ErrorInfo, Evaluation, Message, Reason, TaskStatus
from batchd.taskstate import circles
from batchd.taskstate.state import FinishedCommand, TaskState, Verdict


def tool_ran(state: TaskState, event: ToolRan) -> TaskState:
    """Return the state after a tool call:
    its output joins the conversation, and may end the round.
    """
    recent = (*state.recent, circles.step(event))[-circles.LOOKED_BACK :]
    looped = circles.circling(recent) if state.circles else circles.circling(recent, 1)
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
    state = replace(state, evaluations=(), judged=(), stopped=False, looped=False)
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
    return alone and bool(state.commands) and event.exit_code == 0 and circles.idle(event.call)


def round_evaluated(state: TaskState, event: RoundEvaluated) -> TaskState:
    """Return the state after a verdict: the task is done,
    goes on with feedback, or has gone in circles.
    """
    verdict = event.evaluation
    state = replace(state, evaluation=verdict, judged=(), tool_s=state.tool_s + event.seconds)
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
    error = ErrorInfo(type=Reason.LOOP, message=message.strip().removesuffix(":"))
    return Verdict(status=TaskStatus.ERROR, reason=Reason.LOOP, error=error)
