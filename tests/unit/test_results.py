"""Results and summaries: pure, true to their schemas, and never a cost where no price is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jsonschema
import pytest
from replacing import replace

from batchd import events, formats, results
from batchd.cli.display.summary_text import lines
from batchd.errors import Problem
from batchd.records import (
    Answer,
    Batch,
    Evaluation,
    ModelSetup,
    Price,
    Purpose,
    Rate,
    Reason,
    Task,
    TaskLimits,
    TaskStatus,
    Trigger,
    Usage,
)
from batchd.taskstate import fold
from batchd.words import percent

BATCH = Batch(
    name="games", claim="01", outbox="/spool/outbox", request="request.json", received_at=1e9
)
PRICE = Price(
    rates=(
        Rate(input=1.0, cached_input=0.1, output=2.0),
        Rate(input=2.0, cached_input=0.2, output=4.0, above=200_000),
    ),
    source="config",
)


def summary_of(batch: Batch, texts: Iterable[str], at: float) -> str:
    """Return the summary of results, added up one by one."""
    sums = results.Sums()
    for text in texts:
        sums.add(text)
    return sums.summary(batch, at)


def journal(
    price: Price | None,
    *,
    open_call: bool = False,
    triggers: Mapping[str, Trigger] | None = None,
) -> list[events.Event]:
    """Return a task's events: an agent's call, a judge's, and perhaps one that is open."""
    setup = ModelSetup(name="openai/x", price=price)
    terms = events.Terms(
        model=setup,
        judge=setup,
        files={"old": (1, 1)},
        triggers=triggers,
        compare=(ModelSetup(name="a/b", price=PRICE),),
    )
    usage = Usage(calls=1, input_tokens=1000, cached_input_tokens=400, output_tokens=100)
    made: list[events.Event] = [events.TaskStarted(at=1e9 + 1, terms=terms)]
    for i, purpose in enumerate((Purpose.AGENT, Purpose.JUDGE)):
        at = 1e9 + 2 + i
        made += [
            events.CallStarted(
                at=at, purpose=purpose, input_tokens=900, max_output_tokens=5, reserved_usd=0.5
            ),
            events.CallAnswered(
                at=at + 1, purpose=purpose, answer=Answer(content="猜", usage=usage, seconds=1)
            ),
        ]
    verdict = Evaluation(by="judge", done=True)
    made.append(events.RoundEvaluated(at=1e9 + 5, evaluation=verdict))
    if open_call:
        made.append(
            events.CallStarted(
                at=1e9 + 6,
                purpose=Purpose.AGENT,
                input_tokens=9,
                max_output_tokens=5,
                reserved_usd=0.5,
            )
        )
    return made


def text_of(
    price: Price | None,
    task_id: str = "001",
    *,
    open_call: bool = False,
    more: Sequence[events.Event] = (),
    finished_at: float = 1e9 + 6,
    triggers: tuple[Mapping[str, Trigger] | None, Mapping[str, Trigger] | None] = ({}, {}),
    limits: TaskLimits | None = None,
    status: TaskStatus = TaskStatus.COMPLETED,
    reason: Reason | None = None,
) -> str:
    """Return the result of a task with that journal, and ``more``;
    ``triggers``: before and after.
    """
    task = Task(
        id=task_id,
        first_prompt="写",
        model="openai/x",
        metadata={"k": [1, None]},
        limits=limits or TaskLimits(),
    )
    state = fold(
        task.first_prompt, [*journal(price, open_call=open_call, triggers=triggers[0]), *more]
    )
    return results.result(
        BATCH,
        task,
        state,
        status=status,
        reason=reason,
        error=None,
        queued_at=1e9,
        finished_at=finished_at,
        attempts=1,
        files={"old": (2, 9), "new": (3, 3)},
        triggers=triggers[1],
    )


def valid(kind: str, text: str) -> Any:
    """Return the parsed text after holding it to its schema."""
    value = json.loads(text)
    jsonschema.validate(value, formats.schema(kind))
    return value


def test_who_ends_while_it_is_parked_was_not_at_work() -> None:
    """The wait counts as parked; a stopped daemon's time as neither."""
    for cause, parked_s in (("park", 94.0), ("drain", 0.0)):
        suspended = events.Suspended(at=1e9 + 6, cause=cause)
        timing = valid("result", text_of(PRICE, more=[suspended], finished_at=1e9 + 100))["timing"]
        assert (timing["parked_s"], timing["run_s"]) == (parked_s, 5.0)


def test_what_others_take_for_long_inputs_counts_call_by_call() -> None:
    """Two calls of 1,000 tokens are not compared as one of 2,000, which would cost more."""
    dearer = Rate(input=5.0, cached_input=5.0, output=9.0, above=1500)
    cost = valid("result", text_of(replace(PRICE, rates=(PRICE.rates[0], dearer))))["cost"]
    assert cost["compare"][0]["total"] == cost["total"]


def test_a_result_counts_every_call_by_purpose_and_prices_cached_input() -> None:
    """Tokens and money over agent and judge; the same events give the same bytes."""
    result = valid("result", text_of(PRICE))
    assert result["usage"]["total_tokens"] == 2200
    assert result["usage"]["average_tokens_per_call"] == 1100
    assert result["usage"]["by_purpose"]["judge"]["input_tokens"] == 1000
    one_call = (600 * 1.0 + 400 * 0.1 + 100 * 2.0) / 1e6
    assert result["cost"]["total"] == pytest.approx(2 * one_call)
    assert result["cost"]["compare"] == [{"model": "a/b", "total": pytest.approx(2 * one_call)}]
    assert result["files"] == {"created": ["new"], "modified": ["old"], "deleted": []}
    assert (result["timing"]["run_s"], result["timing"]["model_s"]) == (4.0, 2.0)
    assert result["timing"]["queued_at"] == "2001-09-09T01:46:40.000Z"
    assert result["metadata"] == {"k": [1, None]}
    assert text_of(PRICE) == text_of(PRICE)


def test_an_unknown_price_gives_null_and_an_open_call_is_unsettled() -> None:
    """Cost is null, never 0, without a price;
    a call that may have been paid counts at its reservation.
    """
    cost = valid("result", text_of(None))["cost"]
    assert (cost["total"], cost["price_source"]) == (None, None)
    result = valid("result", text_of(PRICE, open_call=True))
    assert (result["usage"]["unsettled_calls"], result["cost"]["unsettled"]) == (1, 0.5)


def test_long_inputs_are_priced_at_their_own_rate() -> None:
    """Where a model costs more above a size, each call is priced by its own input."""
    small = PRICE.cost(Usage(input_tokens=200_000 - 1))
    large = PRICE.cost(Usage(input_tokens=200_001))
    assert large.total == pytest.approx(2 * small.total, rel=1e-4)


def test_what_runs_code_is_what_was_created_or_changed_since_the_start() -> None:
    """Each with the command that shows it and runs nothing;
    what is as before, or gone, is not named.
    """
    before = {
        ".git/config": Trigger("git", (1, 2)),
        ".envrc": Trigger("shells", (3,)),
        "gone/.envrc": Trigger("shells", (4,)),
    }
    after = {
        ".git/config": Trigger("git", (1, 3)),
        ".envrc": Trigger("shells", (3,)),
        "a b/.vscode/x": Trigger("editors", (5,), "link"),
        "shut": Trigger("", (6,), "folder"),
        ".": Trigger("", (), "folder"),
    }
    result = valid("result", text_of(PRICE, triggers=(before, after)))
    assert [tuple(each.values()) for each in result["runs_code"]] == [
        (".", "created", "", "find /spool/outbox/games/001 -newerct @1000000001"),
        (".git/config", "modified", "git", "cat -v /spool/outbox/games/001/.git/config"),
        (
            *("a b/.vscode/x", "created", "editors"),
            "readlink '/spool/outbox/games/001/a b/.vscode/x'",
        ),
        ("shut", "created", "", "ls -la /spool/outbox/games/001/shut"),
    ]
    summary = json.loads(summary_of(BATCH, [text_of(PRICE, triggers=(before, after))], 1e9))
    assert summary["tasks"][0]["runs_code"] == 4
    assert "1 task may have changed what runs code" in lines(summary)[-1]


def test_limits_that_came_near_are_named() -> None:
    """Those of which four fifths are used; of one that ended over a limit the reason says it."""
    tight = TaskLimits(max_calls=2, max_tokens=2_500, max_iterations=1, timeout_s=0)
    text = text_of(PRICE, limits=tight)
    near = {"max_calls": 1.0, "max_tokens": 0.88}
    assert valid("result", text)["near_limits"] == near
    summary = json.loads(summary_of(BATCH, [text], 1e9))
    assert summary["tasks"][0]["near_limits"] == near
    assert "Near a limit: 001; `batchd status games` says which" in lines(summary)
    over = text_of(PRICE, limits=tight, status=TaskStatus.TIMEOUT, reason=Reason.MAX_CALLS)
    assert valid("result", over)["near_limits"] == {}


def test_without_a_look_what_runs_code_is_unknown() -> None:
    """Also for a task that an older version began; but one that never began has changed nothing."""
    for looks in (({}, None), (None, {}), (None, None)):
        assert valid("result", text_of(PRICE, triggers=looks))["runs_code"] is None
    ended = {"status": TaskStatus.CANCELLED, "reason": Reason.USER, "error": None, "files": None}
    times = {"queued_at": 1e9, "finished_at": 1e9, "attempts": 0}
    task = Task(id="001", first_prompt="x", model="a/b")
    text = results.result(BATCH, task, fold("x", []), **ended, **times)
    assert valid("result", text)["runs_code"] == []


def test_a_summary_adds_its_results_up() -> None:
    """Counts, success rate, tokens and money are sums;
    a single unknown cost makes the sum unknown.
    """
    texts = [text_of(PRICE, "001"), text_of(PRICE, "002", open_call=True)]
    summary = valid("summary", summary_of(BATCH, texts, 1e9 + 9))
    assert summary["counts"] == {"completed": 2, "timeout": 0, "error": 0, "cancelled": 0}
    assert (summary["success_rate"], summary["wall_s"]) == (1.0, 9.0)
    assert summary["usage"]["total_tokens"] == 4400
    assert summary["usage"]["unsettled_calls"] == 1
    total = sum(json.loads(t)["cost"]["total"] for t in texts)
    assert summary["cost"]["total"] == pytest.approx(total)
    assert [t["task"] for t in summary["tasks"]] == ["001", "002"]
    unknown = valid("summary", summary_of(BATCH, [*texts, text_of(None, "003")], 1e9))
    assert unknown["cost"]["total"] is None


def test_models_and_tags_stand_side_by_side() -> None:
    """Each with its tasks: a task with two tags counts under both; averages are of those that
    began; what one accepted task cost has all in it, and is unknown as soon as a price is.
    """
    well, unpriced = json.loads(text_of(PRICE)), json.loads(text_of(None))
    bad = well | {"status": "error", "reason": "auth", "tags": ["b"], "iterations": 3}
    never = bad | {"iterations": 0, "model": "z/z", "timing": {**bad["timing"], "run_s": 0.0}}
    texts = [well | {"tags": ["a", "b", "a"]}, bad, unpriced | {"model": "y/y"}, never]
    summary = valid("summary", summary_of(BATCH, [*map(json.dumps, texts)], 1e9 + 9))
    cost, run_s = well["cost"]["total"], well["timing"]["run_s"]
    known = {"run_s_median": run_s, "cost": pytest.approx(2 * cost)}
    half = {"tasks": 2, "accepted": 1, "success_rate": 0.5, "iterations_mean": 2.0, **known}
    assert [g["name"] for g in summary["by_model"]] == ["openai/x", "y/y", "z/z"]
    first, second, third = summary["by_model"]
    assert first == {"name": "openai/x", **half, "cost_per_accepted": pytest.approx(2 * cost)}
    assert (second["accepted"], second["cost"], second["cost_per_accepted"]) == (1, None, None)
    assert (third["iterations_mean"], third["run_s_median"]) == (None, None)
    assert (third["cost"], third["cost_per_accepted"]) == (pytest.approx(cost), None)
    assert [(g["name"], g["tasks"]) for g in summary["by_tag"]] == [("a", 1), ("b", 3)]


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (("completed", "completed"), "finished"),
        (("cancelled", "cancelled"), "cancelled"),
        (("completed", "cancelled"), "cancelled"),
        (("error", "cancelled"), "finished"),
        (("timeout", "cancelled"), "finished"),
    ],
)
def test_a_batch_that_orders_ended_is_cancelled(ends: tuple[str, ...], status: str) -> None:
    """Where no limit and no error ended any task of it;
    what had completed before does not count against it.
    """
    texts = [text_of(PRICE).replace('"status": "completed"', f'"status": "{end}"') for end in ends]
    summary = valid("summary", summary_of(BATCH, texts, 1e9))
    assert summary["status"] == status
    assert ("was cancelled" in lines(summary)[0]) == (status == "cancelled")


def test_one_failure_of_many_is_no_full_success() -> None:
    """However many tasks there are, a success rate of 1, and 100 % for people, mean all of them."""
    completed = text_of(PRICE)
    failed = completed.replace('"status": "completed"', '"status": "error"')
    summary = valid("summary", summary_of(BATCH, [failed, *[completed] * 4_999], 1e9))
    assert summary["success_rate"] == 0.9998
    assert "99.9 %" in "\n".join(lines(summary))
    assert [percent(p) for p in (0, 0.00001, 0.5, 2 / 3, 0.99999, 1)] == [
        *("0.0 %", "0.1 %", "50.0 %", "66.7 %", "99.9 %", "100.0 %"),
    ]


def test_what_ended_several_tasks_stands_once_below_their_summary() -> None:
    """The cause, and the tasks that it ended; another task's own stands beside it."""
    texts = [text_of(PRICE, name) for name in ("001", "002", "003")]
    summary = json.loads(summary_of(BATCH, texts, 1e9))
    for task, message in zip(summary["tasks"], ("no tool ran", "out", "no tool ran"), strict=True):
        task["message"] = message
    shown = lines(summary)
    assert "001, 003: no tool ran" in shown
    assert "002: out" in shown
    assert "\n".join(shown).count("no tool ran") == 1


def test_a_refused_file_gets_a_summary_with_every_problem() -> None:
    """Status `rejected`, and where, what and how to fix it for each problem."""
    problems = [Problem("tasks[3].dir", "lies in the outbox", "name another"), Problem("", "empty")]
    summary = valid("summary", results.rejected(BATCH, problems, 1e9))
    assert (summary["status"], summary["success_rate"]) == ("rejected", None)
    assert summary["errors"][0] == {
        "place": "tasks[3].dir",
        "message": "lies in the outbox",
        "hint": "name another",
    }


def test_results_and_transcripts_are_lines() -> None:
    """`results.jsonl` holds a result a line,
    a transcript an event a line, without the result's copy.
    """
    text = text_of(PRICE)
    line = results.line(text)
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(text)
    end = events.TaskFinished(at=1e9, status=TaskStatus.ERROR, reason=Reason.LOOP, result=text)
    lines = results.transcript([*journal(PRICE), end]).splitlines()
    assert [json.loads(x)["event"] for x in lines][::6] == ["TaskStarted", "TaskFinished"]
    assert "result" not in json.loads(lines[-1])
