"""The conversation in the model's window,
against a provider that counts and refuses like a real one.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
import pytest
from msgspec import structs
from replacing import replace

from batchd import events, tokens
from batchd.agent import context, prompts
from batchd.agent.context import Compact, Summarise
from batchd.agent.decide import CallModel, Conclude, Finish, RunTool, Step, decide
from batchd.llm import chat
from batchd.llm.dialect import ModelRequest, ModelTarget
from batchd.llm.exchange import encoded, fields
from batchd.records import (
    Answer,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Purpose,
    Reason,
    Replay,
    Task,
    TaskLimits,
    TaskStatus,
    ToolCall,
    Usage,
)
from batchd.taskstate import ELIDED, TaskState, apply, clipped, fold

_SYSTEM = "You are an agent. " * 40


def call(turn: int, *, content: str = "", calls: int = 1, argument: str = "") -> Answer:
    """Return an answer that calls the shell, never twice in the same way."""
    made = tuple(
        ToolCall(f"c{turn}-{i}", "shell", json.dumps({"command": f"cat {turn}.{i} {argument}"}))
        for i in range(calls)
    )
    return Answer(content=content, tool_calls=made, finish_reason="tool_calls")


def words(count: int) -> str:
    """Return a text of about so many tokens."""
    return " ".join(f"w{i % 997}" for i in range(count // 2))


@dataclass
class Provider:
    """A task in a model's window: every request is held to it,
    and to the rules of conversations.
    """

    #: What fits, by the provider's own count, and what batchd knows of it; 0: nothing.
    window: int
    known: int
    #: The answer at each turn; then comes the last word.
    answer: Callable[[int], Answer]
    turns: int
    output: Callable[[int], str]
    prompt: str = "Write a game"
    #: The provider's tokens to one of o200k.
    factor: float = 1.0
    #: Whether its refusals name the window.
    names: bool = True
    #: What it answers to a request for a summary.
    summary: Callable[[CallModel], Answer] = lambda _: Answer(content="what was done so far")
    #: What it refuses although it would fit.
    refuses: Callable[[CallModel], bool] = lambda _: False
    protocol: str = "auto"
    max_output: int = 8192
    system: str = _SYSTEM
    state: TaskState = field(init=False)
    steps: list[Step] = field(default_factory=list)
    journal: list[events.Event] = field(default_factory=list)
    #: Our estimate and the provider's count of each request.
    counts: list[tuple[int, int]] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        limits = TaskLimits(max_calls=10_000, timeout_s=1e9, max_output_tokens=self.max_output)
        self.task = Task(
            id="001", first_prompt=self.prompt, model="p/m", evaluator="none", limits=limits
        )
        self.state = TaskState(first_prompt=self.prompt)
        setup = ModelSetup(name="p/m", context_window=self.known, tools=self.protocol)
        terms = events.Terms(model=setup, judge=setup, system_prompt=self.system)
        self._turn = 0
        self._ran = 0
        self.add(events.TaskStarted(at=1.0, terms=terms))

    def add(self, event: events.Event) -> None:
        """Record an event."""
        self.journal.append(events.decode(events.encode(event)))
        self.state = apply(self.state, event)

    def run(self) -> Finish:
        """Go on to the end."""
        for _ in range(5000):
            step = decide(self.task, self.state, 2.0)
            self.steps.append(step)
            if isinstance(step, Finish):
                assert fold(self.prompt, self.journal) == self.state
                return step
            before = self.state
            for event in self.effect(step):
                self.add(event)
            if isinstance(step, Compact):
                hold_shorter(before, self.state)
        raise AssertionError("the task does not end")

    def effect(self, step: Step) -> Iterator[events.Event]:
        """Return the events that performing a step would make."""
        match step:
            case CallModel(purpose, asked, most):
                yield events.CallStarted(
                    at=2.0, purpose=purpose, input_tokens=asked, max_output_tokens=most
                )
                yield self.ask(step)
            case RunTool(made):
                self._ran += 1
                yield events.ToolRan(at=2.0, call=made, output=self.output(self._ran), exit_code=0)
            case Conclude(evaluation, last):
                yield events.RoundEvaluated(at=2.0, evaluation=evaluation, final=last)
            case Compact():
                yield events.Compacted(
                    at=2.0,
                    elided=step.elided,
                    clipped=step.clipped,
                    start=step.start,
                    end=step.end,
                    summary=step.summary,
                    own=step.summary is not None,
                    scale=step.scale,
                    plain=True,
                )

    def ask(self, step: CallModel) -> events.Event:
        """Answer a request, or refuse it as too long."""
        messages = self.state.messages
        if step.purpose is Purpose.COMPACTION:
            messages = (*messages[: step.end], Message("user", prompts.COMPACTION))
        self.hold(messages)
        overhead = context.overhead(self.state)
        counted = round(self.factor * (overhead + tokens.count_messages(messages)))
        self.counts.append((step.input_tokens, counted))
        if counted + step.max_output_tokens > self.window or self.refuses(step):
            self.refused += 1
            failure = Failure(
                kind=FailureKind.CONTEXT_OVERFLOW,
                message="too long",
                http_status=400,
                window=self.window if self.names else 0,
            )
            return events.CallFailed(at=2.0, failure=failure)
        text, calls = self.protocol == "text", ()
        if step.purpose is Purpose.COMPACTION:
            answer = self.summary(step)
        elif self._turn < self.turns:
            answer = self.answer(self._turn)
            if text:
                block = answer.tool_calls[0]
                content = f"{answer.content}\n```bash\n{block.arguments}\n```"
                answer = replace(answer, content=content, tool_calls=())
                calls = (replace(block, id="text"),)
            else:
                calls = answer.tool_calls
            self._turn += 1
        else:
            answer = Answer(content="done")
        said = round(self.factor * tokens.count_messages((_said(answer),)))
        usage = Usage(calls=1, input_tokens=counted, output_tokens=said)
        return events.CallAnswered(
            at=2.0,
            purpose=step.purpose,
            answer=replace(answer, usage=usage),
            calls=calls,
            text_protocol=text,
        )

    def hold(self, messages: tuple[Message, ...]) -> None:
        """Hold a request, as it goes out, to what providers and strict chat templates ask of it."""
        setup = self.state.setup(Purpose.AGENT)
        request = ModelRequest(messages=messages, tools=(), max_output_tokens=1)
        sent = json.loads(
            encoded(fields(chat.DIALECT, setup, ModelTarget.of(setup, "", ""), request))
        )["messages"]
        assert [m["content"] for m in sent[:2]] == [self.system, self.prompt]
        waiting: list[str] = []
        speaker = ""
        for message in sent:
            role = message["role"]
            if role == "tool":
                assert message["tool_call_id"] in waiting, "an output without its call"
                waiting.remove(message["tool_call_id"])
            else:
                assert not waiting, "a call without its output"
                assert role != speaker, f"two messages of the {role} running"
                waiting = [c["id"] for c in message.get("tool_calls", ())]
            speaker = role
        assert not waiting
        assert speaker in {"user", "tool"}

    @property
    def compactions(self) -> list[Compact]:
        """What was done to the conversation."""
        return [s for s in self.steps if isinstance(s, Compact)]

    @property
    def calls(self) -> int:
        """How many answers the model gave to the task itself."""
        return self.state.spend[Purpose.AGENT].calls


def hold_shorter(before: TaskState, after: TaskState) -> None:
    """Hold that a compaction made a conversation shorter,
    by our own count and by what the next request takes.
    """
    longer, shorter = (tokens.count_messages(s.messages) for s in (before, after))
    assert shorter < longer
    assert context.size(after) < context.size(before)


def _said(answer: Answer) -> Message:
    return Message("assistant", answer.content, answer.tool_calls)


def test_old_outputs_go_first_oldest_first_and_enough_of_them_at_once() -> None:
    """Tool outputs of many windows: no summary is bought,
    the newest stay, and compactions are rare.
    """
    provider = Provider(10_000, 10_000, call, 100, lambda n: f"{n} " + words(900))
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert all(c.elided and c.summary is None for c in provider.compactions[:3])
    first = provider.compactions[0].elided
    assert list(first) == sorted(first)
    assert first[0] == 3, "the very first output goes first"
    # 90,000 tokens went through: about 4,000 are freed at a time.
    assert len(provider.compactions) <= 30
    assert provider.state.messages[-2].content.startswith("100 ")
    assert provider.refused == 0


def test_the_middle_is_summarised_where_outputs_are_not_what_fills_the_window() -> None:
    """Long answers cannot be elided: each summary takes in the one before, and is accounted for."""
    provider = Provider(
        8000, 8000, lambda turn: call(turn, content=words(300)), 120, lambda n: f"ok {n}"
    )
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    summaries = [c for c in provider.compactions if c.summary is not None]
    assert len(summaries) >= 5
    assert provider.state.spend[Purpose.COMPACTION].calls == len(summaries)
    assert sum(m.content.startswith("Summary of the work") for m in provider.state.messages) == 1
    assert all(c.start == context.HEAD for c in summaries)
    # A summary is asked for while the provider still has the conversation as it is in its cache.
    assert len(provider.compactions) <= provider.calls / 5
    assert provider.refused == 0


@pytest.mark.parametrize(
    "said",
    [
        Answer(content=""),
        Answer(content=" \n"),
        Answer(content="", tool_calls=(ToolCall("x", "shell", "{}"),), finish_reason="tool_calls"),
        Answer(content=words(1000), finish_reason="length"),
        Answer(content=words(20_000)),
    ],
    ids=["empty", "blank", "a tool call", "cut", "longer than what it replaces"],
)
def test_a_bad_summary_still_makes_room(said: Answer) -> None:
    """Without a summary a list of the steps stands for them; one that is too long is cut."""
    provider = Provider(
        8000,
        8000,
        lambda turn: call(turn, content=words(300)),
        60,
        lambda n: f"ok {n}",
        summary=lambda _: said,
    )
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    summaries = [c.summary for c in provider.compactions if c.summary is not None]
    assert summaries
    assert all(tokens.count(s) <= 1100 for s in summaries)
    if not said.content.strip():
        assert "- shell" in summaries[0]
        assert "cat 0.0" in summaries[0]
    assert len(provider.compactions) <= provider.calls / 5


def test_new_outputs_that_together_overflow_a_small_window_are_cut_in_their_middles() -> None:
    """Eight outputs of one answer, twice the window: each keeps its head and its tail."""
    provider = Provider(
        6000,
        6000,
        lambda turn: call(turn, calls=8),
        6,
        lambda n: f"head {n} " + words(1500) + f" tail {n}",
    )
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    cuts = [c for c in provider.compactions if c.clipped]
    assert cuts
    assert provider.refused == 0
    newest = [m.content for m in provider.state.messages[-9:-1]]
    assert all(m.startswith("head") and "cut out here" in m and "tail" in m for m in newest)


@pytest.mark.parametrize("opening", ["prompt", "window"])
def test_a_prompt_longer_than_the_window_ends_with_sizes_and_the_fix(opening: str) -> None:
    """No call is made for it, and the message says what takes how much, and what to do."""
    window, prompt = (6000, words(7000)) if opening == "prompt" else (700, "Write a game")
    provider = Provider(window, window, call, 3, lambda _: "ok", prompt=prompt)
    verdict = provider.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.ERROR, Reason.CONTEXT_OVERFLOW)
    assert not provider.counts
    assert verdict.error is not None
    assert f"a window of {window:,}" in verdict.error.message
    assert "first_prompt" in verdict.error.message
    assert 'context_window in [models."p/m"]' in verdict.error.message


def test_a_prompt_that_fills_most_of_the_window_is_worked_on_all_the_same() -> None:
    """What little is left is used, without a compaction at every step."""
    provider = Provider(8000, 8000, call, 60, lambda _: words(150), prompt=words(5700))
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert len(provider.compactions) <= provider.calls / 2
    assert provider.refused == 0


def test_large_tool_calls_of_the_model_give_way_to_a_summary() -> None:
    """A file written in one call cannot be cut: it is summarised, or left out when it must be."""
    provider = Provider(
        6000, 6000, lambda turn: call(turn, argument=words(1800)), 30, lambda n: f"ok {n}"
    )
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert any(c.summary for c in provider.compactions)
    assert provider.refused == 0


@pytest.mark.parametrize("names", [True, False], ids=["named", "not named"])
@pytest.mark.parametrize("known", [0, 100_000], ids=["unknown", "wrong"])
def test_a_window_that_was_not_known_is_learned_from_the_refusal(
    known: int, *, names: bool
) -> None:
    """One refusal is enough:
    the task goes on in the window that the provider named, or has shown.
    """
    provider = Provider(
        9000,
        known,
        call,
        80,
        lambda _: words(700),
        names=names,
        max_output=1000,
    )
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert provider.refused == 1
    learned = provider.state.windows["p/m"]
    assert learned == 9000 if names else 7000 < learned <= 9000
    assert (provider.state.overflows, provider.state.overflow) == (0, None)


@pytest.mark.parametrize("names", [True, False], ids=["named", "not named"])
@pytest.mark.parametrize(("window", "factor"), [(8192, 1.0), (4096, 1.1)])
def test_an_output_limit_as_large_as_the_window_is_no_reason_to_shorten_anything(
    window: int, factor: float, *, names: bool
) -> None:
    """Some providers count the output that is asked for:
    after a refusal less of it is asked for.
    """
    provider = Provider(window, 0, call, 3, lambda _: "ok", names=names, factor=factor)
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert provider.compactions == []
    assert provider.refused == 1 if names else provider.refused <= 2


@pytest.mark.parametrize("names", [True, False], ids=["named", "not named"])
def test_a_refusal_of_what_was_shortened_ends_the_task(*, names: bool) -> None:
    """Shortened once, and still too long: the error says what was tried and what to set."""
    provider = Provider(8000, 8000, call, 30, lambda _: words(700), names=names)
    provider.refuses = lambda _: len(provider.counts) > 5
    verdict = provider.run().verdict
    assert (verdict.status, verdict.reason) == (TaskStatus.ERROR, Reason.CONTEXT_OVERFLOW)
    assert verdict.error is not None
    assert names == ("again, after it was made to fit" in verdict.error.message)
    assert 'context_window in [models."p/m"]' in verdict.error.message
    assert verdict.error.http_status == 400
    # Where the window is not named, it may have been the output that was asked for.
    assert provider.refused == 2 if names else provider.refused <= 4
    assert provider.compactions, "it was tried with less"


def test_a_summary_whose_request_overflows_is_done_without() -> None:
    """The steps stand in for it, at no further cost, and the task goes on."""
    provider = Provider(
        8000, 8000, lambda turn: call(turn, content=words(300)), 40, lambda n: f"ok {n}"
    )
    provider.refuses = lambda step: step.purpose is Purpose.COMPACTION and not provider.refused
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert provider.refused == 1
    first = next(c for c in provider.compactions if c.summary is not None)
    assert "- shell" in (first.summary or "")
    assert provider.state.spend[Purpose.COMPACTION].calls == (
        sum(c.summary is not None for c in provider.compactions) - 1
    )


def test_estimates_hold_also_after_compactions_and_with_another_tokenizer() -> None:
    """What is asked for a permit is what the provider counts, within a few percent."""
    for factor in (1.0, 1.2):
        provider = Provider(
            12_000,
            12_000,
            lambda turn: call(turn, content=words(60), calls=1 + turn % 3),
            80,
            lambda _: words(300),
            factor=factor,
        )
        assert provider.run().verdict.status is TaskStatus.COMPLETED
        assert provider.compactions
        # The first call is a guess; from then on the provider's own counts are the base.
        for ours, theirs in provider.counts[1:]:
            assert ours == pytest.approx(theirs, rel=0.03 if factor == 1.0 else 0.1)


def test_text_cut_at_the_limit_is_continued_across_a_compaction() -> None:
    """The answer's pieces stay the user's, also those that have left the conversation."""

    def say(turn: int) -> Answer:
        return Answer(content=f"piece {turn} " + words(500), finish_reason="length")

    provider = Provider(6000, 6000, say, 20, lambda _: "")
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert provider.compactions
    assert all(f"piece {i} " in provider.state.answer for i in range(20))


@pytest.mark.parametrize("seed", range(24))
def test_any_task_in_any_window_comes_to_its_end(seed: int) -> None:
    """Whatever shapes a task has, conversations stay in order,
    get shorter, and the task completes.
    """
    rng = random.Random(seed)
    window = rng.choice([4096, 6000, 8192, 16_000])

    def answer(turn: int) -> Answer:
        return call(
            turn,
            content=words(rng.choice([0, 0, 40, 400])),
            calls=rng.choice([1, 1, 1, 2, 5]),
            argument=words(rng.choice([5, 5, 30, window // 6])),
        )

    most = window // 2
    provider = Provider(
        window,
        rng.choice([0, window, window, window, 4 * window]),
        answer,
        40,
        lambda _: words(rng.choice([1, 10, 200, 200, most])),
        prompt="Do it. " + words(rng.choice([10, 10, window // 5])),
        factor=rng.choice([1.0, 1.0, 1.1, 0.9]),
        names=rng.random() < 0.7,
        summary=lambda _: Answer(content=words(rng.choice([0, 50, 300, 3000]))),
        protocol=rng.choice(["auto", "text"]),
    )
    verdict = provider.run().verdict
    assert verdict.status is TaskStatus.COMPLETED, verdict
    assert len(provider.compactions) <= provider.calls * 1.5
    assert provider.refused <= 3


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(120))
def test_any_task_in_a_window_that_is_nearly_too_small_comes_to_its_end(seed: int) -> None:
    """It completes or ends as an overflow, and few compactions follow each other;
    none makes nothing shorter.
    """
    rng = random.Random(seed)
    window = rng.randrange(700, 1800)
    provider = Provider(
        window,
        rng.choice([0, window, window, 4 * window]),
        lambda turn: call(
            turn,
            content=words(rng.choice([0, 0, 40, 400])),
            calls=rng.choice([1, 1, 2, 5, 30]),
            argument=words(rng.choice([5, 5, 30, window // 6, window])),
        ),
        8,
        lambda _: words(rng.choice([1, 10, 100, 200, window // 2])),
        prompt="Do it. " + words(rng.choice([2, 10, window // 5])),
        factor=rng.choice([1.0, 1.0, 1.1, 0.9, 0.6, 1.9]),
        names=rng.random() < 0.7,
        summary=lambda _: Answer(content=words(rng.choice([0, 50, 300, 3000]))),
        protocol=rng.choice(["auto", "text"]),
        max_output=rng.choice([100, 8192]),
        system=_SYSTEM[: rng.choice([3, 200, 700])],
    )
    verdict = provider.run().verdict
    overflow = (TaskStatus.ERROR, Reason.CONTEXT_OVERFLOW)
    assert (verdict.status, verdict.reason) in {overflow, (TaskStatus.COMPLETED, None)}, verdict
    runs = "".join("c" if isinstance(s, Compact) else " " for s in provider.steps).split()
    assert max(map(len, runs), default=0) <= 6


def _any_message(rng: random.Random, number: int) -> list[Message]:
    """Return one turn of a conversation: what the model says,
    and what follows, in all shapes and densities.
    """

    def text() -> str:
        dense = "".join(chr(rng.randrange(0x4E00, 0x9FFF)) for _ in range(rng.choice([1, 60])))
        kinds = ["", "ok", " " * 1500, dense, dense + " " * 2000 + dense]
        return rng.choice([*kinds, words(rng.choice([8, 150, 700]))])

    thinking = rng.choice([None, None, "", words(300)])
    calls = call(number, calls=rng.choice([0, 0, 1, 3]), argument=text()).tool_calls
    said = Message("assistant", text(), calls, reasoning=thinking)
    outputs = [Message("tool", text(), tool_call_id=c.id) for c in calls]
    return [said, *(outputs or [Message("user", text())])]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(200))
def test_each_compaction_of_any_conversation_shortens_it(seed: int) -> None:
    """Whatever is in a conversation, and whatever a summary says:
    a plan shortens, asks, or gives up, within few steps.
    """
    rng = random.Random(seed)
    for _ in range(4):
        window = rng.choice([600, 700, 900, 1100, 1500, 2500, 8000])
        setup = ModelSetup(name="p/m", context_window=window)
        terms = events.Terms(model=setup, judge=setup, system_prompt="s")
        state = TaskState(first_prompt="p", terms=terms)
        turns = [m for i in range(rng.randrange(1, 9)) for m in _any_message(rng, i)]
        opening = (Message("system", "s"), Message("user", words(rng.choice([2, 200]))))
        state = structs.replace(
            state,
            messages=(*opening, *turns),
            scale=rng.choice([0.5, 1.0, 2.0]),
            overflows=rng.choice([0, 0, 1]),
        )
        for _step in range(40):
            planner = context.plan if state.summary is None else context.applied
            step = planner(state, context.size(state))
            if isinstance(step, Summarise):
                summary = rng.choice(["", " ", "x", words(900), "\u4e00" * 900])
                state = structs.replace(state, summary=summary)
            elif isinstance(step, Compact):
                before = state
                fields = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
                own = step.summary is not None
                state = apply(state, events.Compacted(at=1.0, own=own, **fields))
                hold_shorter(before, state)
                assert state.summary is None
            else:
                break
        else:
            raise AssertionError("it goes on and on")


def test_what_stands_where_something_was_cut_says_so() -> None:
    """Head and tail stay, and the note counts what is gone; a short text stays whole."""
    text = "a" * 500 + "b" * 500
    cut = clipped(text, 100)
    assert cut.startswith("a" * 50 + "\n[... 900 characters cut out here")
    assert cut.endswith("]\n" + "b" * 50)
    assert clipped("short", 100) == "short"
    assert clipped("gone", 0).strip().startswith("[... 4 characters")


def test_the_judge_is_shown_what_fits_the_longest_cut_first() -> None:
    """A long answer and a long list are cut, the task's own words stay whole."""
    setup = ModelSetup(name="p/m", context_window=6000)
    budget = context.judged(setup)
    texts = ("the task", words(30_000), words(9000), "- a.txt (3 bytes)", "abc")
    fitted = context.fitted(texts, budget)
    assert (fitted[0], fitted[3]) == (texts[0], texts[3])
    assert "cut out here" in fitted[1]
    judged = prompts.judge(*fitted)
    asked = tokens.count_messages(judged)
    assert 0.8 * budget < asked <= 5700 - 1024
    assert context.room(asked, setup) >= 1024
    assert context.fitted(texts[::3], budget) == list(texts[::3])


@pytest.mark.parametrize(
    ("known", "size", "most"), [(30_000, 40_000, 120_000), (0, 1 << 20, 8 << 20)]
)
def test_items_that_only_their_provider_reads_have_a_bound(
    known: int, size: int, most: int
) -> None:
    """However few tokens it says that they are: they count in a window by their length, and of a
    conversation without one at most eight megabytes go back.
    """
    raw = msgspec.Raw(json.dumps("x" * (size - 2)).encode())
    replay = Replay(api="responses", provider="p", model="m", items=(raw,))
    kept: list[int] = []

    def answer(turn: int) -> Answer:
        kept.append(sum(m.replay.size for m in provider.state.messages if m.replay))
        return replace(call(turn), replay=replay)

    provider = Provider(1 << 40, known, answer, 20, lambda _: "ok", factor=0.01)
    assert provider.run().verdict.status is TaskStatus.COMPLETED
    assert most / 2 <= max(kept) <= most
    assert 0 in kept[2:], "then none of those before do"


def test_what_takes_long_to_count_is_known_beforehand() -> None:
    """A long text, a window that is nearly full and a summary that waits:
    then a thread plans the next step.
    """
    provider = Provider(100_000, 100_000, call, 3, lambda _: words(50))
    provider.run()
    state = structs.replace(provider.state, seen=len(provider.state.messages), seen_tokens=20_000)
    assert not context.laborious(state)
    for more in (
        Message("tool", "x" * 30_000),
        Message("assistant", "", (ToolCall("1", "shell", "x" * 30_000),)),
    ):
        assert context.laborious(structs.replace(state, messages=(*state.messages, more)))
    assert context.laborious(structs.replace(state, seen_tokens=90_000))
    assert context.laborious(structs.replace(state, summary="s"))


def test_old_journals_are_read_as_they_were_written() -> None:
    """A summary of before is a message of the user; a failure of before names no window."""
    provider = Provider(8000, 8000, call, 4, lambda _: words(50))
    provider.run()
    body = b'["Compacted",{"at":1.0,"elided":[3],"start":2,"end":6,"summary":"s"}]'
    state = fold(provider.prompt, [*provider.journal[:12], events.decode(body)])
    assert state.messages[2] == Message("user", "Summary of the work so far:\ns")
    assert state.messages[3].role in {"assistant", "tool"}
    failed = b'["CallFailed",{"at":1.0,"failure":{"kind":"context_overflow","message":"x"}}]'
    assert events.decode(failed).failure.window == 0  # type: ignore[union-attr] # a CallFailed
    again = events.Compacted(at=1.0, elided=(3,))
    assert apply(state, again).messages[3].content == ELIDED
