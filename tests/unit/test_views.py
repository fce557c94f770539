"""One place says what an event is: every kind has a view,
and no face has words of its own for it.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import get_args

import pytest

from batchd import events, views
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
from batchd.log import Action
from batchd.records import (
    Answer,
    ErrorInfo,
    Evaluation,
    Failure,
    FailureKind,
    ModelSetup,
    Purpose,
    Reason,
    TaskStatus,
    ToolCall,
    Usage,
)
from batchd.views import Kind, view

ROOT = Path(__file__).parents[2] / "batchd"
MODEL = ModelSetup(name="openai/gpt-6-luna")
RESULT = json.dumps(
    {
        "iterations": 10,
        "error": {"type": "max_iterations", "message": "not done after 10 rounds: 3 failed"},
        "usage": {
            **dict.fromkeys(("calls", "input_tokens", "cached_input_tokens"), 7),
            **dict.fromkeys(("output_tokens", "reasoning_tokens"), 3),
            "estimated": False,
        },
        "timing": {"run_s": 61.0},
        "cost": {"total": 0.25},
    }
)
CALL = ToolCall(id="c1", name="shell", arguments='{"command": "make test"}')
TERMS = Terms(model=MODEL, judge=MODEL, system_prompt="You work.", opening="[In /task]")
#: One of each kind.
EVENTS: tuple[Event, ...] = (
    TaskStarted(at=1.0, terms=TERMS),
    Resumed(at=2.0, attempt=2),
    CallStarted(at=3.0, purpose=Purpose.AGENT, input_tokens=10, max_output_tokens=20),
    CallAnswered(
        at=4.0,
        purpose=Purpose.AGENT,
        answer=Answer(content="Done.", usage=Usage(calls=1, input_tokens=1200, output_tokens=30)),
        calls=(CALL,),
    ),
    CallFailed(
        at=5.0,
        failure=Failure(kind=FailureKind.OVERLOADED, message="come\nlater", http_status=503),
    ),
    CallDenied(
        at=6.0,
        status=TaskStatus.TIMEOUT,
        reason=Reason.BUDGET,
        error=ErrorInfo(type="budget", message="its $1.00 are spent"),
    ),
    ToolRan(
        at=7.0,
        call=CALL,
        output="ok",
        exit_code=2,
        seconds=1.5,
        refused=("evil.example:443",),
        excess="memory: 513 MB of 512",
    ),
    RoundEvaluated(at=8.0, evaluation=Evaluation(by="check", done=False, feedback="3 failed")),
    Compacted(at=9.0, elided=(3, 5)),
    Suspended(at=10.0, cause="park", message="quota"),
    ClockMoved(at=11.0, by_s=-60.0),
    CancelRequested(at=12.0),
    TaskFinished(at=13.0, status=TaskStatus.TIMEOUT, reason=Reason.MAX_ITERATIONS, result=RESULT),
)


def test_every_kind_of_event_has_a_view() -> None:
    """A view says what it is; one with a word in the log has a line there and one for people."""
    assert {type(event) for event in EVENTS} == set(get_args(events.Event))
    assert len(views.ALL) == len(EVENTS)
    for event in EVENTS:
        view = views.of(event)
        assert view.step, event
        assert views.last(type(event).__name__) is view
        lines = [*view.log(event)]
        assert bool(view.action) == bool(view.text(event)), event
        if view.action:
            assert lines, event
    assert views.last("FromTheFuture").step == ""
    assert views.last("FromTheFuture").then == "starting"


def test_a_round_that_ended_since_the_model_repeated_itself_says_so() -> None:
    """On the line of `logs`, and in the conversation of pages."""
    verdict = Evaluation(by="check", done=False, feedback="3 failed")
    event = RoundEvaluated(at=8.0, evaluation=verdict, looped=True)
    why = "the same calls came three times, with the same output: that ended the round"
    assert views.of(event).text(event) == f"{why}; check says not done: 3 failed"
    (passage,) = views.passages(event, "")
    assert passage.text == f"T{why[1:]}.\n3 failed"


def test_what_each_says() -> None:
    """To the letter: in the log, on a line, in a conversation, as a span."""
    said = {type(event).__name__: views.of(event).text(event) for event in EVENTS}
    assert said == {
        "TaskStarted": "model openai/gpt-6-luna",
        "Resumed": "resumed, attempt 2",
        "CallStarted": "",
        "CallAnswered": "1,200 in, 30 out, 0.0 s; shell",
        "CallFailed": "overloaded (HTTP 503): come later",
        "CallDenied": "no further call, budget: its $1.00 are spent",
        "ToolRan": "shell make test → exit 2, 1.5 s; network refused: evil.example:443; "
        "limit passed: memory: 513 MB of 512",
        "RoundEvaluated": "check says not done: 3 failed",
        "Compacted": "2 old outputs removed",
        "Suspended": "park: quota",
        "ClockMoved": "the clock moved by -60 s",
        "CancelRequested": "",
        "TaskFinished": "not accepted after 10 rounds",
    }
    logged = [line for event in EVENTS for line in views.of(event).log(event)]
    assert [line.action for line in logged] == [
        *(Action.TASK_STARTED, Action.TASK_STARTED, Action.PERMIT_GRANTED, Action.MODEL_CALLED),
        *(Action.MODEL_FAILED, Action.BUDGET_REACHED),
        *(Action.TOOL_RAN, Action.NETWORK_REFUSED, Action.LIMIT_PASSED),
        *(Action.ROUND_EVALUATED, Action.CONTEXT_COMPACTED, Action.TASK_PARKED),
        *(Action.CLOCK_MOVED, Action.TASK_FINISHED),
    ]
    # What is published stays: the status and the reason, not the words for people.
    assert logged[-1].fields == {"status": "timeout", "reason": "max_iterations"}
    passages = [p for event in EVENTS for p in views.passages(event, "Do it.")]
    assert [(p.kind, p.title) for p in passages] == [
        (Kind.SYSTEM, "model openai/gpt-6-luna"),
        (Kind.SYSTEM, "what stands before the prompt"),
        (Kind.PROMPT, ""),
        (Kind.NOTE, "resumed, attempt 2"),
        (Kind.ANSWER, "agent"),
        (Kind.FAILURE, "overloaded (HTTP 503)"),
        (Kind.TOOL, "shell make test → exit 2"),
        (Kind.VERDICT, "check: not done"),
        (Kind.NOTE, "2 old outputs removed"),
        (Kind.NOTE, "waits"),
        (Kind.NOTE, "the clock moved by -60 s"),
        (Kind.END, "not accepted after 10 rounds"),
    ]
    marks = [mark for event in EVENTS if (mark := views.of(event).span(event))]
    assert [mark.name for mark in marks] == [
        *("execute_tool shell", "evaluate check", "suspend park"),
    ]


def test_a_rate_that_is_refused_has_a_word_of_its_own() -> None:
    """The log has an action of its own for a provider that is full."""
    failure = Failure(kind=FailureKind.RATE_LIMITED, message="slow", retry_after_s=2.0)
    event = CallFailed(at=1.0, failure=failure)
    [line] = views.of(event).log(event)
    assert (line.action, line.fields["retry_after_s"]) == (Action.RATE_LIMITED, 2.0)


@pytest.mark.parametrize(
    ("end", "message", "said", "why"),
    [
        (("completed", None, 1), "", "completed", ""),
        (("error", "auth", 0), "no key", "failed: auth", "auth: no key"),
        (("cancelled", "user", 0), "moving", "cancelled", "user: moving"),
        (("timeout", "budget", 3), "spent", "out of money", "budget: spent"),
        (
            ("timeout", "max_iterations", 10),
            "not done after 10 rounds: 3 failed",
            "not accepted after 10 rounds",
            "after 10 rounds: 3 failed",
        ),
        (
            ("timeout", "max_iterations", 1),
            "not done after 1 round",
            "not accepted after 1 round",
            "after 1 round",
        ),
        (
            ("timeout", "max_iterations", 2),
            "not done after 2 rounds, and commands …",
            "not accepted after 2 rounds",
            "after 2 rounds, and commands …",
        ),
    ],
)
def test_how_tasks_end_in_words(
    end: tuple[str, str | None, int], message: str, said: str, why: str
) -> None:
    """What ran into a limit is no timeout to people, unless it was out of time;
    a reason is said in words.
    """
    assert view.said(*end) == said
    assert view.why(*end, message) == why


#: Who takes events apart for more than their words: they measure, count or look results up.
MEASURE = ("web/batch_page.py", "telemetry/metrics.py", "telemetry/traces.py")
FACES = ("cli", "observe", "web", "notify", "telemetry", "daemon/task_log.py")


def _kinds(path: Path) -> set[str]:
    """Return the kinds of events that a module names, as classes or as they are stored."""
    known = {kind.__name__ for kind in get_args(events.Event)}
    named = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "batchd.events":
            named |= known & {each.name for each in node.names}
        if isinstance(node, ast.Constant) and node.value in known:
            named.add(str(node.value))
    return named


def test_no_face_has_words_of_its_own_for_events() -> None:
    """A new event touches its vocabulary, its view, and who decides or performs it:
    no face names more than two kinds.
    """
    found = {}
    for face in FACES:
        place = ROOT / face
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            name = str(path.relative_to(ROOT))
            if name not in MEASURE and len(kinds := _kinds(path)) > (3 if name == FACES[-1] else 0):
                found[name] = kinds
    assert found == {}
