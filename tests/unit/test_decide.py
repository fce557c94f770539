"""The agent's decisions, driven through whole tasks:
a scripted world answers each step with its event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from replacing import replace

from batchd import events
from batchd.agent import context
from batchd.agent.context import Compact
from batchd.agent.decide import (
    CallModel,
    Conclude,
    Evaluate,
    Finish,
    RunTool,
    Step,
    decide,
)
from batchd.records import (
    Answer,
    Evaluation,
    ModelSetup,
    Purpose,
    Reason,
    Task,
    TaskLimits,
    TaskStatus,
    ToolCall,
    ToolProtocol,
    Usage,
)
from batchd.taskstate import CONTINUE, TaskState, apply, fold, state


def task(**changes: object) -> Task:
    """Return a task that accepts the first stop, but for ``changes``."""
    defaults = {"id": "001", "first_prompt": "Write a game", "model": "demo/m", "evaluator": "none"}
    return Task(**{**defaults, **changes})  # type: ignore[arg-type]


def shell(command: str, *, finish: str = "tool_calls") -> Answer:
    """Return an answer that calls the shell."""
    call = ToolCall(f"id-{command}", "shell", json.dumps({"command": command}))
    return Answer(content="", tool_calls=(call,), finish_reason=finish, usage=usage())


def says(content: str, *, finish: str = "stop") -> Answer:
    """Return an answer without a call."""
    return Answer(content=content, finish_reason=finish, usage=usage())


def usage() -> Usage:
    """Return the tokens of one call."""
    return Usage(calls=1, input_tokens=100, output_tokens=10)


@dataclass
class World:
    """Answers steps from its scripts; a second passes with each event."""

    task: Task
    model: Iterable[Answer] = ()
    judge: Iterable[str | Answer] = ()
    check: Iterable[bool] = ()
    output: str = "ok"
    window: int = 0
    circles: bool = True
    state: TaskState = field(init=False)
    steps: list[Step] = field(default_factory=list)
    journal: list[events.Event] = field(default_factory=list)
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.state = TaskState(first_prompt=self.task.first_prompt)
        self._model, self._judge, self._check = iter(self.model), iter(self.judge), iter(self.check)
        setup = ModelSetup(name="demo/m", context_window=self.window)
        terms = events.Terms(model=setup, judge=setup, circles=self.circles)
        self.add(events.TaskStarted(at=self.now, terms=terms))

    def add(self, event: events.Event) -> None:
        """Record an event."""
        before = self.state.messages
        self.state = apply(self.state, event)
        self.journal.append(event)
        if not isinstance(event, events.Compacted):
            # The provider's prompt cache lives on this: a conversation only ever grows at its end.
            assert self.state.messages[: len(before)] == before
        self.now += 1

    def step(self) -> Step:
        """Take one step."""
        step = decide(self.task, self.state, self.now)
        self.steps.append(step)
        for event in self.effect(step):
            self.add(event)
        return step

    def run(self, limit: int = 300) -> Finish:
        """Go on to the end."""
        for _ in range(limit):
            step = self.step()
            if isinstance(step, Finish):
                return step
        raise AssertionError("the task does not end")

    def counted(self, answer: Answer) -> Answer:
        """Return the answer with the tokens that a provider would count,
        where a window is at stake.
        """
        if not self.window:
            return answer
        size = context.size(self.state)
        return replace(answer, usage=Usage(calls=1, input_tokens=size, output_tokens=200))

    def effect(self, step: Step) -> Iterator[events.Event]:
        """Return the events that performing a step would make."""
        match step:
            case CallModel(purpose):
                yield events.CallStarted(
                    at=self.now, purpose=purpose, input_tokens=1, max_output_tokens=1
                )
                if purpose is Purpose.AGENT:
                    answer = self.counted(next(self._model))
                elif purpose is Purpose.JUDGE:
                    said = next(self._judge)
                    answer = said if isinstance(said, Answer) else says(said)
                else:
                    answer = says("what was done so far")
                yield events.CallAnswered(
                    at=self.now, purpose=purpose, answer=answer, calls=answer.tool_calls
                )
            case RunTool(call):
                yield events.ToolRan(at=self.now, call=call, output=self.output, exit_code=0)
            case Evaluate(by, last):
                done = next(self._check)
                verdict = Evaluation(by=by, done=done, feedback="" if done else "exit code 1")
                yield events.RoundEvaluated(at=self.now, evaluation=verdict, final=last or not done)
            case Conclude(evaluation, last):
                yield events.RoundEvaluated(
                    at=self.now, evaluation=evaluation, final=last or not evaluation.done
                )
            case Compact():
                yield events.Compacted(
                    at=self.now,
                    elided=step.elided,
                    clipped=step.clipped,
                    start=step.start,
                    end=step.end,
                    summary=step.summary,
                    own=step.summary is not None,
                    scale=step.scale,
                )


def test_a_task_is_worked_on_until_the_model_stops_and_then_accepted() -> None:
    """Without an evaluator the first answer that calls no tool completes the task, in one round."""
    world = World(task(), model=[shell("ls"), shell("make"), says("all done")])
    verdict = world.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.COMPLETED, None)
    assert (world.state.answer, world.state.iterations) == ("all done", 1)
    assert world.state.tally.calls == 3


def test_feedback_of_a_failed_check_opens_the_next_round() -> None:
    """A check that fails sends its output to the model; when it passes, the task is complete."""
    world = World(
        task(check="pytest"),
        model=[says("done"), shell("fix"), says("now done")],
        check=[False, True],
    )
    assert world.run().verdict.status is TaskStatus.COMPLETED
    assert world.state.iterations == 2
    assert any("exit code 1" in m.content for m in world.state.messages if m.role == "user")


def test_all_evaluators_asked_for_must_pass_in_order() -> None:
    """Check, then output_schema, then judge;
    a refusal by a later one starts again with the first.
    """
    world = World(
        task(check="true", output_schema={"type": "object"}, evaluator="judge"),
        model=[says("{}"), says("{}")],
        check=[True, True, True, True],
        judge=['{"done": false, "feedback": "no tests"}', '```json\n{"done": true}\n```'],
    )
    assert world.run().verdict.status is TaskStatus.COMPLETED
    asked = [s.by for s in world.steps if isinstance(s, Evaluate)]
    assert asked == ["check", "output_schema"] * 2
    assert world.state.iterations == 2
    assert world.state.evaluation == Evaluation(by="judge", done=True)


@pytest.mark.parametrize("words", ["I will\nnot judge that.", ""])
def test_a_judge_that_refuses_is_reported_in_its_own_words(words: str) -> None:
    """A refusal is no verdict, and no broken JSON."""
    refused = replace(says("", finish="content_filter"), refusal=words)
    world = World(task(evaluator="judge"), model=[says("ok")], judge=[refused, refused])
    verdict = world.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.ERROR, Reason.EVALUATOR)
    assert verdict.error is not None
    said = " ".join(words.split()) or "the provider filtered its content"
    assert verdict.error.message == f"the judge gave no verdict: {said}"


@pytest.mark.parametrize("prose", ["The task is done.", '{"done": "yes"}', "[]", "{", "done: true"])
def test_a_judge_must_answer_json_and_is_asked_once_more(prose: str) -> None:
    """Prose is no verdict, whatever phrase it holds:
    asked twice, the task then ends as an error.
    """
    world = World(task(evaluator="judge"), model=[says("ok")], judge=[prose, prose])
    verdict = world.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.ERROR, Reason.EVALUATOR)
    again = World(
        task(evaluator="judge"), model=[says("ok")], judge=[prose, '{"done": true, "feedback": ""}']
    )
    assert again.run().verdict.status is TaskStatus.COMPLETED


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (TaskLimits(max_iterations=3), Reason.MAX_ITERATIONS),
        (TaskLimits(max_calls=7, max_iterations=100), Reason.MAX_CALLS),
        (TaskLimits(max_tokens=1000, max_iterations=100), Reason.TOKENS),
        (TaskLimits(timeout_s=30, max_iterations=100), Reason.WALL_CLOCK),
    ],
)
def test_limits_end_a_task_before_they_are_broken(limits: TaskLimits, reason: Reason) -> None:
    """A task that is never done ends as timeout with the limit that ran out,
    none of them exceeded.
    """
    world = World(
        task(check="false", limits=limits),
        model=(says(f"try {i}") for i in range(500)),
        check=(False for _ in range(500)),
    )
    verdict = world.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.TIMEOUT, reason)
    assert verdict.error is not None
    assert world.state.rounds <= limits.max_iterations
    assert world.state.tally.calls <= limits.max_calls
    assert not limits.max_tokens or world.state.tally.total_tokens <= limits.max_tokens


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("So:\n\n```bash\npython3 a.py\n```\n", 'set tools = "text" in [providers.demo]'),
        ("I am done.", "not done after 2 rounds: "),
    ],
)
def test_commands_as_text_that_were_not_run_are_named(answer: str, said: str) -> None:
    """A model that calls no tools but writes commands down differs from one that fails:
    the fix stands in the result.
    """
    world = World(
        task(check="false", limits=TaskLimits(max_iterations=2)),
        model=[says(answer), says(answer)],
        check=[False, False],
    )
    error = world.run().verdict.error
    assert error is not None
    assert said in error.message


def test_a_limit_of_zero_is_none() -> None:
    """Rounds, calls, tokens and time go on where a limit is 0,
    as the files say, until the task is done.
    """
    world = World(
        task(
            check="false",
            limits=TaskLimits(max_iterations=0, max_calls=0, max_tokens=0, timeout_s=0),
        ),
        model=(says(f"try {i}") for i in range(200)),
        check=(i == 40 for i in range(200)),
    )
    assert world.run().verdict.status is TaskStatus.COMPLETED
    assert world.state.rounds == 41


def test_a_loop_is_evaluated_and_ends_the_task_where_it_is_refused_for_the_same_reason_twice() -> (
    None
):
    """Three equal calls with equal outputs end the round;
    what they leave is evaluated each time.
    """
    world = World(
        task(check="false"),
        model=(shell("python3 guess.py") for _ in range(100)),
        check=[False, False],
    )
    verdict = world.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.ERROR, Reason.LOOP)
    assert sum(isinstance(s, RunTool) for s in world.steps) == 6
    assert sum(isinstance(s, Evaluate) for s in world.steps) == 2
    finished = World(task(check="true"), model=(shell("ls") for _ in range(9)), check=[True])
    assert finished.run().verdict.status is TaskStatus.COMPLETED
    later = World(task(check="true"), model=(shell("ls") for _ in range(9)), check=[False, True])
    assert later.run().verdict.status is TaskStatus.COMPLETED


def ran(
    command: str, output: str = "x", *, changed: bool | None = False, left: tuple[str, ...] = ()
) -> events.ToolRan:
    """Return a command that ran."""
    call = ToolCall("c", "shell", json.dumps({"command": command}))
    return events.ToolRan(at=1.0, call=call, output=output, exit_code=0, changed=changed, left=left)


def test_a_circle_of_a_few_calls_is_a_loop() -> None:
    """Up to four calls that take turns three times,
    while no file changes and nothing runs in the background.
    """
    steps = [state.step(ran(f"cat {n % 3}")) for n in range(9)]
    assert state.circling(steps)
    assert not state.circling(steps[1:])
    for moving in (
        ran("cat 1", changed=True),
        ran("cat 1", changed=None),
        ran("cat 1", left=("make",)),
    ):
        assert not state.circling([*steps[:4], state.step(moving), *steps[5:]])
    said = "no\n[changed: log {0} → {1} bytes]\n+++ log\n@@ -{0} +{0},2 @@\n x\n+x\n[No more.]"
    same = [state.step(ran("make", said.format(n, n + 5), changed=True)) for n in range(3)]
    assert state.circling(same), "the same call with the same output of its own is one in any case"
    assert not state.circling([state.step(ran(f"cat {n % 5}")) for n in range(15)])


def test_a_loop_of_an_older_version_ends_as_it_did() -> None:
    """What a task has learned of itself does not change under it:
    only one call is a loop, the second one ends it at once.
    """
    both = [shell("cat a"), shell("cat b")]
    older = World(
        task(check="false", limits=TaskLimits(max_calls=20)), model=both * 20, circles=False
    )
    assert older.run().verdict.reason is Reason.MAX_CALLS
    again = World(
        task(check="false"), model=(shell("ls") for _ in range(9)), check=[False], circles=False
    )
    assert again.run().verdict.reason is Reason.LOOP
    assert sum(isinstance(s, Evaluate) for s in again.steps) == 1
    idle = World(
        task(check="true"),
        model=[shell("ls"), shell("exit 0"), says("ok")],
        check=[True],
        circles=False,
    )
    idle.run()
    assert idle.state.tally.calls == 3


@pytest.mark.parametrize(
    "command",
    [
        "exit 0",
        "true",
        "Done",
        "done.",
        "echo 'All done.'",
        'echo "Task completed"\nexit 0',
        "echo 任务已完成; exit",
        "echo The task is now complete.",
    ],
)
def test_a_call_that_does_nothing_is_the_models_stop(command: str) -> None:
    """After others, beside words: its round is evaluated.

    As its first one it is a call as any other.
    """
    last = replace(shell(command), content="All is made.")
    world = World(task(check="true"), model=[shell("ls"), last], check=[True])
    assert world.run().verdict.status is TaskStatus.COMPLETED
    assert world.state.tally.calls == 2
    first = World(task(check="true"), model=[last, says("Done")], check=[True])
    first.run()
    assert first.state.tally.calls == 2
    mute = World(
        task(check="true"), model=[shell("ls"), shell(command), says("Done")], check=[True]
    )
    mute.run()
    assert mute.state.tally.calls == 3, "its last word is the answer"


@pytest.mark.parametrize(
    "command",
    [
        *(
            "exit 1",
            "echo $?",
            "echo hello",
            "echo done > a",
            "echo `ls`",
            "echo *",
            "truest",
            "echo a | wc",
        ),
        *(
            "echo 'a' & sleep 1",
            "ls; true",
            "echo Step 1 done, now the tests",
            "echo not done yet",
            "echo 未完成",
        ),
    ],
)
def test_a_call_that_does_something_is_no_stop(command: str) -> None:
    """What expands, redirects, runs something else,
    or says anything but that all is done, is work.
    """
    call = ToolCall("c", "shell", json.dumps({"command": command}))
    assert not state.idle(call)


def test_every_call_of_an_answer_is_answered_also_when_the_loop_guard_ends_it() -> None:
    """Providers refuse a conversation in which a tool call has no reply."""
    calls = tuple(ToolCall(f"c{i}", "shell", '{"command": "ls"}') for i in range(5))
    answer = Answer(content="", tool_calls=calls, finish_reason="tool_calls", usage=usage())
    world = World(task(), model=[answer])
    world.run()
    replies = [m.tool_call_id for m in world.state.messages if m.role == "tool"]
    assert replies == [c.id for c in calls]


def test_text_cut_at_the_output_limit_is_continued() -> None:
    """The pieces are joined to one answer; two empty cuts running end the round instead."""
    world = World(task(), model=[says("one ", finish="length"), says("two")])
    assert world.run().verdict.status is TaskStatus.COMPLETED
    assert world.state.answer == "one two"
    assert CONTINUE in [m.content for m in world.state.messages]
    empty = World(task(), model=[says("", finish="length"), says("", finish="length")])
    assert empty.run().verdict.status is TaskStatus.COMPLETED
    assert empty.state.tally.calls == 2


def test_after_a_crash_only_the_first_pending_call_is_in_doubt() -> None:
    """A crash leaves one tool call in doubt; a clean suspension leaves none."""
    calls = tuple(ToolCall(f"c{i}", "shell", f'{{"command": "echo {i}"}}') for i in range(2))
    answer = Answer(content="", tool_calls=calls, finish_reason="tool_calls", usage=usage())
    for suspended in (False, True):
        world = World(task(), model=[answer, says("done")])
        world.step()
        if suspended:
            world.add(events.Suspended(at=world.now, cause="drain"))
        world.add(events.Resumed(at=world.now, attempt=2))
        world.run()
        doubts = [s.in_doubt for s in world.steps if isinstance(s, RunTool)]
        assert doubts == [not suspended, False]


def test_a_recorded_judgement_is_used_and_never_asked_for_again() -> None:
    """A crash between the judge's answer and its verdict costs no second call."""
    world = World(
        task(evaluator="judge"), model=[says("done")], judge=['{"done": true, "feedback": "good"}']
    )
    world.step()
    world.step()
    world.add(events.Resumed(at=world.now, attempt=2))
    assert world.run().verdict.status is TaskStatus.COMPLETED
    assert world.state.tally.calls == 2


def test_a_call_open_at_a_crash_is_booked_as_perhaps_paid() -> None:
    """Its whole reservation counts as unsettled, also when the task is cancelled with it open."""
    for end in (events.Resumed(at=1e3, attempt=2), events.CancelRequested(at=1e3)):
        world = World(task())
        world.add(
            events.CallStarted(
                at=world.now,
                purpose=Purpose.AGENT,
                input_tokens=1,
                max_output_tokens=1,
                reserved_usd=0.25,
            )
        )
        world.add(end)
        assert (world.state.unsettled_calls, world.state.unsettled_usd) == (1, 0.25)


def test_parked_time_is_no_time_at_work() -> None:
    """The wall clock of a task stands still while it is parked or its worker is dead."""
    world = World(task(limits=TaskLimits(timeout_s=50)), model=[says("done")])
    world.add(events.Suspended(at=world.now, cause="park"))
    world.now += 7 * 24 * 3600
    world.add(events.Resumed(at=world.now, attempt=2))
    assert world.state.parked_s == pytest.approx(7 * 24 * 3600, abs=5)
    assert world.state.run_s < 10
    assert world.run().verdict.status is TaskStatus.COMPLETED


def test_waiting_for_a_permit_is_no_time_at_work() -> None:
    """A provider's pace, its limit on calls at a time
    and our backoffs keep a task waiting, and end none.
    """
    world = World(task(limits=TaskLimits(timeout_s=50)), model=[says("done")])
    world.now += 3600
    world.add(
        events.CallStarted(
            at=world.now,
            purpose=Purpose.AGENT,
            input_tokens=1,
            max_output_tokens=1,
            waited_s=3590.0,
        )
    )
    assert (world.state.waited_s, world.state.run_s) == (3590.0, pytest.approx(10, abs=5))
    world.now += 100
    world.add(events.Suspended(at=world.now, cause="drain", waited_s=100.0))
    assert world.state.run_s == pytest.approx(10, abs=5)
    assert world.run().verdict.status is TaskStatus.COMPLETED


def test_a_full_window_is_first_relieved_of_old_outputs_then_summarised() -> None:
    """The conversation stays below its window, and no call is parted from its output."""
    answers = (
        Answer(
            content=f"thought {i} " + "word " * 150,
            tool_calls=(ToolCall(f"c{i}", "shell", json.dumps({"command": f"cat {i}"})),),
            finish_reason="tool_calls",
            usage=Usage(calls=1, input_tokens=1, output_tokens=1),
        )
        for i in range(40)
    )
    world = World(
        task(), model=[*answers, says("done")], output="line of output\n" * 100, window=8000
    )
    while not isinstance(world.steps[-1:] and world.steps[-1], Finish):
        step = world.step()
        if isinstance(step, CallModel) and step.purpose is Purpose.AGENT:
            assert step.input_tokens <= 8000
        called = {c.id for m in world.state.messages for c in m.tool_calls}
        replied = {m.tool_call_id for m in world.state.messages if m.role == "tool"}
        assert replied <= called
    compactions = [s for s in world.steps if isinstance(s, Compact)]
    assert any(c.elided for c in compactions)
    assert any(c.summary for c in compactions)
    assert world.state.spend[Purpose.COMPACTION].calls == sum(bool(c.summary) for c in compactions)


def test_events_survive_their_encoding() -> None:
    """What the store gives back folds to the very same state."""
    world = World(
        task(check="x", evaluator="judge"),
        model=[shell("ls"), says("teil", finish="length"), says("done 猜数字")],
        check=[True],
        judge=['{"done": true}'],
    )
    world.run()
    again = [events.decode(events.encode(e)) for e in world.journal]
    assert again == world.journal
    assert fold(world.task.first_prompt, again) == world.state


def test_the_tokens_of_the_schemas_are_what_context_says() -> None:
    """The estimate of a first request rests on a counted number."""
    from batchd import tokens  # loads the ranks
    from batchd.agent import prompts

    def overhead(tools: ToolProtocol, *, stays: bool) -> int:
        setup = ModelSetup(name="demo/m", tools=tools)
        terms = events.Terms(model=setup, judge=setup, keep_processes=stays)
        return context.overhead(TaskState(first_prompt="x", terms=terms))

    for stays in (False, True):
        counted = tokens.count_tools(prompts.tools(stays=stays))
        assert overhead("auto", stays=stays) == counted
        assert overhead("text", stays=stays) == 0
        first = prompts.system(task(), "f" * 200, text=False, stays=stays)
        assert tokens.count(first) + counted <= 700
        assert tokens.count(prompts.system(task(), "f" * 200, text=True, stays=stays)) <= 700
