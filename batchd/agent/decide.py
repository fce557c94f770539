"""The decision: what an agent does next, as a pure function of its task, its state and the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from batchd.agent import context, evaluate, tools
from batchd.agent.context import Compact, Overfull, Summarise
from batchd.records import (
    Answer,
    ErrorInfo,
    Evaluation,
    Purpose,
    Reason,
    Task,
    TaskStatus,
    ToolCall,
)
from batchd.taskstate import TaskState, Verdict

_PROVES_NOTHING = (
    "its check passes before any work, and so proves nothing: make it fail on what is not done yet, "
    "or leave check_first out"
)


class CallModel(Struct, frozen=True):
    """Ask the model for its next answer, the judge for a verdict, or for a summary."""

    purpose: Purpose
    #: Estimated; 0 where the request is yet to be written.
    input_tokens: int
    max_output_tokens: int
    #: For a summary: the messages before this one are summarised.
    end: int = 0


class RunTool(Struct, frozen=True):
    """Run the first pending tool call, or report to the model that it was interrupted."""

    call: ToolCall
    in_doubt: bool


class Evaluate(Struct, frozen=True):
    """Run an evaluator that needs no model call."""

    by: Literal["check", "output_schema"]
    #: Whether a pass settles the round: nothing is left to ask.
    last: bool
    #: Whether it comes before the first call.
    first: bool = False


class Conclude(Struct, frozen=True):
    """Record a verdict that needs no I/O."""

    evaluation: Evaluation
    last: bool


class Finish(Struct, frozen=True):
    """Write the result."""

    verdict: Verdict


Step: TypeAlias = CallModel | RunTool | Evaluate | Conclude | Compact | Finish


def decide(task: Task, state: TaskState, now: float) -> Step:
    """Return the next step. Limits are checked before the step that would break them."""
    if state.verdict is not None:
        return Finish(state.verdict)
    if 0 < task.limits.timeout_s <= state.run_time(now):
        return _timeout(
            Reason.WALL_CLOCK,
            f"stopped after {task.limits.timeout_s:g} s of work (limits.timeout_s)",
        )
    if task.check_first and not state.iterations:
        if state.first is None:
            return Evaluate("check", last=True, first=True)
        if state.first.done and task.check_first == "must_fail":
            return _error(Reason.EVALUATOR, _PROVES_NOTHING)
        if state.first.done:
            return Finish(Verdict(status=TaskStatus.COMPLETED))
    if state.pending:
        return RunTool(state.pending[0], state.in_doubt)
    if state.loops > 1 and not state.circles:
        return _error(
            Reason.LOOP, "it repeated the same tool call with the same output, for the second time"
        )
    if state.overflow and state.overflows > (1 if state.overflow.window else 2):
        window = list(state.windows.values())[-1]
        return _overflowed(state, f"again, after it was made to fit {window:,} tokens")
    if state.stopped:
        return _evaluate(task, state)
    if 0 < task.limits.max_iterations <= state.rounds:
        said = state.evaluation.feedback if state.evaluation else ""
        last = f": {said}" if said else ""
        rounds = "round" if state.rounds == 1 else "rounds"
        not_run = _not_run(state)
        said = f"not done after {state.rounds} {rounds}{not_run}{last}"
        return _timeout(Reason.MAX_ITERATIONS, said)
    return _work(task, state)


def _not_run(state: TaskState) -> str:
    """Return that commands which the model wrote as text were not run,
    where its last word has one; else nothing.
    """
    setup = state.setup(Purpose.AGENT)
    as_text = tools.bash_block(Answer(content=state.answer))
    if setup.tools == "text" or state.native_seen or not as_text:
        return ""
    place = f"[providers.{setup.provider}]"
    return (
        f', and commands that the model writes as text are not run: set tools = "text" in {place}'
    )


def _evaluate(task: Task, state: TaskState) -> Step:
    """Ask the next evaluator: each only where asked for, in the order of the design."""
    asked: Mapping[Literal["check", "output_schema", "judge"], bool] = {
        "check": bool(task.check),
        "output_schema": task.output_schema is not None,
        "judge": task.evaluator == "judge",
    }
    wanted = [by for by in asked if asked[by]]
    if not wanted:
        return Conclude(Evaluation(by="none", done=True), last=True)
    by = wanted[len(state.evaluations)]
    last = by == wanted[-1]
    if by != "judge":
        return Evaluate(by, last)
    if not state.judged:
        return _call(task, state, Purpose.JUDGE, 0)
    verdict = evaluate.verdict(state.judged[-1].content)
    if verdict is not None:
        return Conclude(verdict, last)
    if len(state.judged) > 1:
        return _error(Reason.EVALUATOR, _unjudged(state.judged[-1]))
    return _call(task, state, Purpose.JUDGE, 0)


def _unjudged(answer: Answer) -> str:
    """Return why there is no verdict, after the judge's second answer."""
    if answer.finish_reason != "content_filter":
        return "the judge twice gave an answer that is not valid JSON"
    said = answer.refusal_line or "the provider filtered its content"
    return f"the judge gave no verdict: {said}"


def _work(task: Task, state: TaskState) -> Step:
    """Call the model, after making room for it in its window where that is needed."""
    size = context.size(state)
    shorter = context.plan if state.summary is None else context.applied
    match shorter(state, size):
        case Compact() as step:
            return step
        case Summarise(end, input_tokens, most):
            call = _call(task, state, Purpose.COMPACTION, input_tokens)
            if isinstance(call, Finish):
                return call
            output = min(call.max_output_tokens, most)
            return replace(call, max_output_tokens=output, end=end)
        case Overfull() if state.overflow and not state.overflow.window:
            # The size of the window is no more than a guess: the provider's own words say more.
            return _overflowed(state, "and the request cannot be made shorter")
        case Overfull() as overfull:
            return _error(Reason.CONTEXT_OVERFLOW, _too_long(task, state, overfull))
    return _call(task, state, Purpose.AGENT, size)


def _too_long(task: Task, state: TaskState, overfull: Overfull) -> str:
    setup = state.setup(Purpose.AGENT)
    what = (
        "system prompt and first_prompt" if overfull.opening else "the part that cannot be left out"
    )
    shorter = "put long material into files of the task's directory instead of first_prompt, or "
    return (
        f"{what} {'take' if overfull.opening else 'takes'} about {overfull.needed:,} tokens, and "
        f"{setup.name} has a window of {overfull.window:,}: {shorter if overfull.opening else ''}"
        f'use a model with a larger window (if this one has: context_window in [models."{task.model}"])'
    )


def _overflowed(state: TaskState, tried: str) -> Finish:
    """End a task whose request overflows its window all the same."""
    failure, name = state.overflow, list(state.windows)[-1]
    assert failure is not None, "there was one"
    fix = f'set context_window in [models."{name}"] to what the model really takes'
    message = f"{failure.message} ({tried}: {fix})"
    error = ErrorInfo(
        type=Reason.CONTEXT_OVERFLOW,
        message=message,
        http_status=failure.http_status,
        retries=state.retries - 1,
    )
    return Finish(Verdict(status=TaskStatus.ERROR, reason=Reason.CONTEXT_OVERFLOW, error=error))


def _call(task: Task, state: TaskState, purpose: Purpose, input_tokens: int) -> Finish | CallModel:
    limits, used = task.limits, state.tally
    if 0 < limits.max_calls <= used.calls + used.unsettled_calls:
        return _timeout(Reason.MAX_CALLS, f"{limits.max_calls} model calls are used up")
    if limits.max_tokens and used.total_tokens + input_tokens >= limits.max_tokens:
        return _timeout(
            Reason.TOKENS, f"{used.total_tokens} of {limits.max_tokens} tokens are used"
        )
    room = context.room(input_tokens, state.setup(purpose))
    if state.overflows:
        # Our count may be too low, and many providers count what may come as well.
        room = max(context.MIN_OUTPUT, room // 2)
    return CallModel(purpose, input_tokens, min(limits.max_output_tokens, room))


def _timeout(reason: Reason, message: str) -> Finish:
    return Finish(Verdict.of(TaskStatus.TIMEOUT, reason, message))


def _error(reason: Reason, message: str) -> Finish:
    return Finish(Verdict.of(TaskStatus.ERROR, reason, message))
