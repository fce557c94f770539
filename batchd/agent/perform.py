"""The agent's only I/O: each step becomes what it does to the world, and the events that say so."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import asdict

from msgspec.structs import replace

from batchd import free_room, wire
from batchd.agent import context, evaluate, prompts, tools
from batchd.agent.answers import masked, repaired
from batchd.agent.charges import believed, charge
from batchd.agent.context import Compact
from batchd.agent.decide import CallModel, Conclude, Evaluate, Finish, RunTool, Step
from batchd.agent.seen import FileObserver, knows
from batchd.agent.services import AgentServices, EventBuffer
from batchd.errors import FolderError, SandboxError
from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    Compacted,
    Event,
    RoundEvaluated,
    ToolOutcome,
    ToolRan,
)
from batchd.llm import ModelRequest
from batchd.records import (
    Answer,
    Evaluation,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Patch,
    Purpose,
    ToolCall,
    VerdictBy,
)
from batchd.sandbox import Workplace
from batchd.taskstate import TaskState
from batchd.workspace import patches

#: To read what stands in small ones takes a moment (seconds).
_READING_S = 10.0


#: A call that was granted to an agent which was cancelled meanwhile.
_UNSENT = Failure(kind=FailureKind.CONNECTION, message="it was cancelled first", sent=False)


class Performer:
    """The performer of one task's steps."""

    def __init__(
        self, run: wire.Run, host: AgentServices, journal: EventBuffer, place: Workplace
    ) -> None:
        self._task = run.task
        self._host = host
        self._journal = journal
        self._place = place
        self._look = FileObserver(place)
        #: When the task's time at work is over,
        #: by a clock that is never set and that sleeps with the machine.
        self._ends = 0.0

    async def perform(self, step: Step, state: TaskState) -> AsyncIterator[Event]:
        """Do what ``step`` says and yield the events it makes.

        Raises ``SandboxError``, ``StaleAttemptError``.
        """
        limit_s = self._task.limits.timeout_s or math.inf
        left_s = limit_s - state.run_time(self._host.clock())
        self._ends = time.monotonic() + left_s
        match step:
            case CallModel(Purpose.JUDGE) if refused := await self._leading_out(state, "judge"):
                yield refused
            case CallModel():
                async for event in self._call_model(step, state):
                    yield event
            case RunTool():
                yield await self._run_tool(step, state)
            case Evaluate():
                yield await self._evaluate(step, state)
            case Conclude(evaluation, last):
                yield self._verdict(evaluation, state, last=last)
            case Compact():
                own = step.summary is not None
                yield Compacted(at=self._host.clock(), own=own, plain=True, **asdict(step))
            case Finish(verdict):
                await self._place.clear(prompts.EVALUATED)
                verdict = await evaluate.at_the_end(self._place, verdict)
                patch = await self._patch(state)
                await self.kept()
                files, triggers = await self._place.left()
                before = state.terms.files if state.terms else None
                unsynced = await self._place.sync(before, files)
                yield self._host.finish(
                    state,
                    verdict,
                    self._host.clock(),
                    files=files,
                    triggers=triggers,
                    patch=patch,
                    unsynced=unsynced,
                )

    async def _patch(self, state: TaskState) -> Patch | None:
        """Return what the task has changed in its clone or copy,
        durable in the outbox; None: it has neither.
        """
        base = state.terms.base if state.terms else None
        if base is None:
            return None
        # It may take a while: the answer before it is paid, and must not be asked for again.
        await self._journal.flush()
        run = self._journal.run
        secret = bool(self._task.secrets)
        try:
            patch = await patches.changed(
                self._place, base, run.max_patch_bytes, run.base_s, secret=secret
            )
        except SandboxError as error:
            if free_room.refused(error):
                raise
            patch = Patch(problem=self._host.masker.text(str(error)))
        return await self._host.keep(patch)

    async def _call_model(self, step: CallModel, state: TaskState) -> AsyncIterator[Event]:
        setup = state.setup(step.purpose)
        step, request = await self._request(step, state, setup)
        self._host.progress("waiting", setup.name)
        # No name for what is sent: it holds the events before the call,
        # which would stay in memory as long as that takes.
        reply = await self._host.ask(self._ask(step, request, setup))
        while isinstance(reply, CallStarted):
            self._ends += reply.waited_s  # waiting is no time at work
            yield reply
            if self._host.stop.cancelled:
                yield CallFailed(at=self._host.clock(), failure=_UNSENT)
                return
            self._host.progress("model", setup.name)
            with self._host.stop.interruptible():
                timeout_s = self._left(self._task.limits.call_timeout_s)
                outcome = await self._host.client.call(
                    setup, request.of_tier(reply.tier), timeout_s
                )
            outcome = masked(outcome, self._host.masker)
            if isinstance(outcome, Answer):
                yield self._answered(reply, outcome, setup, state)
                return
            yield CallFailed(at=self._host.clock(), failure=outcome)
            request = repaired(request, outcome)
            if outcome.kind is FailureKind.CONTEXT_OVERFLOW or self._left(1.0) <= 0:
                return  # decide will see to it: it shortens the conversation, or ends the task
            self._host.progress("waiting", outcome.message)
            reply = await self._host.failed(
                wire.Failed(ask=self._ask(step, request, setup), failure=outcome)
            )
        yield reply

    async def _flushed(self) -> float:
        """Return, when every event so far is durable, how long that took:
        for a disk that is full it may be hours.
        """
        begun = time.monotonic()
        await self._journal.flush()
        waited_s = time.monotonic() - begun
        self._ends += waited_s  # which is no time at work either
        return waited_s

    async def kept(self) -> float:
        """Return, when what was changed in the directory is on the disks that another machine
        shares with the daemon, how long that took, which does not count as time at work.

        Raises ``FolderError``.
        """
        if not self._host.away:
            return 0.0
        begun = time.monotonic()
        try:
            await asyncio.to_thread(self._place.flush)
        except OSError as error:
            raise FolderError(f"what it changed cannot be made durable: {error}") from error
        waited_s = time.monotonic() - begun
        self._ends += waited_s
        return waited_s

    def _left(self, limit_s: float) -> float:
        """Return the seconds that an effect may take:
        its own limit, or what is left of the task's.
        """
        return min(limit_s, self._ends - time.monotonic())

    def _ask(self, step: CallModel, request: ModelRequest, setup: ModelSetup) -> wire.Ask:
        run = self._journal.run
        return wire.Ask(
            ref=run.ref,
            attempt=run.attempt,
            seq=self._journal.seq,
            events=self._journal.take(),
            purpose=step.purpose,
            model=setup.name,
            input_tokens=step.input_tokens,
            max_output_tokens=request.max_output_tokens,
        )

    async def _request(
        self, step: CallModel, state: TaskState, setup: ModelSetup
    ) -> tuple[CallModel, ModelRequest]:
        """Return what is asked, and the step with its length, which a judge's has only now."""
        if step.purpose is Purpose.JUDGE:
            files = await asyncio.to_thread(evaluate.changed, state, self._place)
            with self._host.stop.interruptible():
                files = await evaluate.read(files, self._place, self._left(_READING_S))
            most = step.max_output_tokens
            asked, request = await asyncio.to_thread(
                evaluate.request, self._task, state, files, most
            )
            return replace(step, input_tokens=asked), request
        text = setup.tools == "text"
        messages = state.messages
        if step.purpose is Purpose.COMPACTION:
            messages = (*messages[: step.end], Message("user", prompts.COMPACTION))
        return step, ModelRequest(
            messages=messages,
            tools=() if text else prompts.tools(stays=state.stays),
            max_output_tokens=step.max_output_tokens,
            stop=prompts.TEXT_STOP if text and step.purpose is Purpose.AGENT else (),
            cache_key=str(self._journal.run.ref),
        )

    def _answered(
        self, call: CallStarted, answer: Answer, setup: ModelSetup, state: TaskState
    ) -> CallAnswered:
        answer, disbelieved = believed(answer, call, setup)
        booked = charge(answer, call, setup, believed=disbelieved is None)
        calls, text = answer.tool_calls, False
        if call.purpose is Purpose.AGENT:
            calls, text = tools.calls(answer, setup.tools, native_seen=state.native_seen)
        return CallAnswered(
            at=self._host.clock(),
            purpose=call.purpose,
            answer=answer,
            calls=calls,
            text_protocol=text,
            disbelieved=disbelieved,
            tier=booked.tier,
            cost=booked.cost,
            sent_at=call.at,
            doubt=booked.doubt,
        )

    async def _run_tool(self, step: RunTool, state: TaskState) -> ToolRan:
        call = step.call
        if step.in_doubt and call.name not in tools.REPEATABLE:
            return self._not_run(state, call, prompts.INTERRUPTED, "interrupted")
        request = tools.parse(call)
        if isinstance(request, str):
            if state.calls_cut:
                limit = self._task.limits.max_output_tokens
                request = f"The call was cut off at the limit of {limit} output tokens: do it in smaller pieces."
            return self._not_run(state, call, request, "refused")
        waited_s = await self._flushed()
        self._look.shown.update(state.terms.quoted if state.terms else ())
        self._host.progress("tool", tools.named(call))
        with self._host.stop.interruptible():
            timeout_s = self._left(self._task.limits.tool_timeout_s)
            most = context.output_bytes(state.setup(Purpose.AGENT))
            known = tools.KnownFiles(
                state.left,
                stays=state.stays,
                file=step.in_doubt or _knows(request, state),
                commands=state.commands,
            )
            output = await tools.run(
                request, self._place, timeout_s, most, known=known, look=self._look
            )
        if request.name != "read_file" or self._place.running:
            waited_s += await self.kept()
        now = self._host.clock()
        notice = "" if state.noticed else prompts.left(self._task.limits, state, now)
        # It succeeded, or wanted what only the user has: nothing is left to be put right.
        may_be_all = output.exit_code == 0 or output.asked_screen
        stop = prompts.HOW_TO_STOP if state.text_protocol and may_be_all else ""
        found = asdict(output)
        text = tools.lines(found.pop("text"), notice, stop)
        return ToolRan(
            at=now, call=call, output=text, waited_s=waited_s, noticed=bool(notice), **found
        )

    def _not_run(
        self, state: TaskState, call: ToolCall, output: str, outcome: ToolOutcome
    ) -> ToolRan:
        """Return a call that was not run, with what the model reads of it."""
        now = self._host.clock()
        return ToolRan(at=now, call=call, output=output, outcome=outcome, left=state.left)

    async def _leading_out(self, state: TaskState, by: VerdictBy) -> RoundEvaluated | None:
        """End what runs there, and return the verdict on a directory with new links out of it:
        what an evaluator reads there would not be the model's work. None: there are none.
        """
        await self._place.clear(prompts.EVALUATED)
        before = state.terms.links if state.terms else None
        if before is None:
            return None
        with self._host.stop.interruptible():
            links = await self._place.leading_out()
        new = links and {path: to for path, to in links.items() if before.get(path) != to}
        if links is not None and not new:
            return None
        verdict = Evaluation(by=by, done=False, feedback=prompts.leading_out(new))
        return replace(self._verdict(verdict, state, last=True), links=new or {})

    async def _evaluate(self, step: Evaluate, state: TaskState) -> RoundEvaluated:
        waited_s = await self._flushed()
        self._look.forget()
        self._host.progress("evaluating", step.by)
        with self._host.stop.interruptible():
            judged = None if step.first else await self._leading_out(state, step.by)
            if judged is None and step.by == "check":
                judged = await self._check(step, state)
            elif judged is None:
                verdict = await evaluate.output_schema(self._task.output_schema or {}, state.answer)
                judged = self._verdict(verdict, state, last=step.last)
        waited_s += await self.kept()
        return replace(judged, waited_s=waited_s)

    async def _check(self, step: Evaluate, state: TaskState) -> RoundEvaluated:
        """Return the verdict of the task's own check:
        it accepts where each of its runs does, on the same files.
        """
        most = context.output_bytes(state.setup(Purpose.AGENT))
        apart = state.terms is not None and state.terms.check_in == "apart"
        times, seconds = 0, 0.0
        while True:
            timeout_s = self._left(self._task.limits.tool_timeout_s)
            verdict, ran = await evaluate.check(
                self._place, self._task.check, timeout_s, most, apart=apart
            )
            times, seconds = times + 1, seconds + ran.seconds
            if not verdict.done or step.first or times == self._task.check_runs:
                break
        # One that was ended has compared nothing.
        flaky = times > 1 and not verdict.done and not ran.timed_out and not ran.excess
        if flaky:
            verdict = replace(verdict, feedback=prompts.flaky(times) + verdict.feedback)
        if step.first and verdict.done:
            verdict = replace(verdict, already_true=True)
        # What it has run of the model's may have made some.
        links = await self._leading_out(state, step.by) if verdict.done and not step.first else None
        judged = links or self._verdict(verdict, state, last=step.last)
        return replace(
            judged,
            final=judged.final and not step.first,
            refused=ran.refused,
            excess=ran.excess,
            seconds=seconds,
            first=step.first,
            score=evaluate.score(ran.output),
            flaky=flaky,
        )

    def _verdict(self, verdict: Evaluation, state: TaskState, *, last: bool) -> RoundEvaluated:
        return RoundEvaluated(
            at=self._host.clock(),
            evaluation=verdict,
            final=last or not verdict.done,
            looped=state.looped,
        )


def _knows(request: tools.ToolRequest, state: TaskState) -> bool:
    """Return whether the model knows the file that a request would change."""
    changes = request.name in {"edit_file", "write_file"}
    quoted = state.terms.quoted if state.terms else ()
    return not changes or knows(state.commands, request.arguments["path"], quoted)
