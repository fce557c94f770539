from __future__ import annotations

import random
from collections import defaultdict

import pytest

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
    STANDARD,
    Answer,
    ErrorInfo,
    Evaluation,
    Failure,
    FailureKind,
    ModelSetup,
    Price,
    Purpose,
    Rate,
    Reason,
    Tally,
    TaskStatus,
    Tokens,
    ToolCall,
    Usage,
)
from batchd.store import stored_values
from batchd.store.task_transaction import Ledger, TaskLine, fold
from batchd.taskstate import TaskState, apply

_DAY = 86400.0


def _setup(rng: random.Random, name: str) -> ModelSetup:
    rates = (
        Rate(input=1.25, cached_input=0.125, output=10.0),
        Rate(input=2.5, cached_input=0.25, output=15.0, above=50_000),
    )
    tiers = {"flex": (Rate(input=0.6, cached_input=0.06, output=5.0),)}
    price = Price(rates=rates, source="config", tiers=tiers) if rng.random() < 0.8 else None
    return ModelSetup(name=name, price=price)


def _event(rng: random.Random, at: float) -> Event:
    purpose = rng.choice(list(Purpose))
    match rng.choice(["start", "start", "answer", "answer", "fail", "rare", "round", "tool"]):
        case "start":
            reserved = rng.choice([None, rng.random()])
            return CallStarted(
                at=at, purpose=purpose, input_tokens=10, max_output_tokens=20, reserved_usd=reserved
            )
        case "answer":
            fresh, cached = rng.randint(0, 90_000), rng.randint(0, 9_000)
            usage = Usage(
                calls=1,
                input_tokens=fresh + cached,
                cached_input_tokens=cached,
                cache_write_tokens=(written := rng.randint(0, fresh)),
                cache_write_long_tokens=rng.randint(0, written),
                cache_reported_tokens=rng.choice([0, fresh + cached]),
                output_tokens=rng.randint(0, 5_000),
                reasoning_tokens=rng.randint(0, 50),
                estimated=rng.random() < 0.1,
            )
            return CallAnswered(
                at=at,
                purpose=purpose,
                answer=Answer(content="x", usage=usage),
                tier=rng.choice([STANDARD, "flex"]),
            )
        case "fail":
            failure = Failure(kind=rng.choice(list(FailureKind)), message="x")
            return CallFailed(at=at, failure=failure)
        case "round":
            evaluation = Evaluation(by="judge", done=False)
            return RoundEvaluated(at=at, evaluation=evaluation, final=rng.random() < 0.7)
        case "tool":
            return ToolRan(at=at, call=ToolCall("1", "shell", "{}"), output=str(rng.random()))
    error = ErrorInfo(type="auth", message="x")
    rare: list[Event] = [
        Resumed(at=at, attempt=2),
        Suspended(at=at, cause="park"),
        CancelRequested(at=at),
        Compacted(at=at, summary="x"),
        CallDenied(at=at, status=TaskStatus.ERROR, reason=Reason.AUTH, error=error),
    ]
    return rng.choice(rare)


def _line() -> TaskLine:
    return TaskLine(0, 0, "p/m", "", TaskStatus.RUNNING)


def _check(line: TaskLine, state: TaskState, booked: Tally) -> None:
    row, said = line.tally, state.tally
    assert line.rounds + line.round_open == state.iterations
    for name in Tokens.__struct_fields__:
        assert getattr(row, name) == getattr(booked, name) == getattr(said, name)
    assert row.estimated == said.estimated
    assert row.cost_usd == pytest.approx(said.cost_usd)
    assert booked.cost_usd == pytest.approx(said.cost_usd)
    saved = state.cache_saved_usd or 0.0
    assert (row.cache_saved_usd, booked.cache_saved_usd) == pytest.approx((saved, saved))
    assert row.unsettled_calls == booked.unsettled_calls == state.unsettled_calls
    assert row.unsettled_usd == pytest.approx(state.unsettled_usd)
    assert booked.unsettled_usd == pytest.approx(state.unsettled_usd)
    assert (booked.input_usd, booked.output_usd) == pytest.approx((said.input_usd, said.output_usd))
    assert (line.call_at is None) == (state.open_call is None)
    if state.open_call:
        assert line.reserved_usd == state.open_call.reserved_usd


@pytest.mark.parametrize("seed", range(40))
def test_the_row_and_the_ledger_say_what_the_fold_says(seed: int) -> None:
    """After every event of any history, row, ledger and ``TaskState`` have the same sums."""
    rng = random.Random(seed)
    terms = Terms(model=_setup(rng, "p/m"), judge=_setup(rng, "q/j"))
    events: list[Event] = [TaskStarted(at=_DAY - 50, terms=terms)]
    events += [_event(rng, _DAY - 50 + i) for i in range(1, 100)]
    end = TaskFinished(at=_DAY + 60, status=TaskStatus.ERROR, reason=Reason.LOOP, result="{}")
    line, state = _line(), TaskState(first_prompt="x")
    ledger: Ledger = defaultdict(Tally)
    for event in [*events, end]:
        fold(line, event, ledger)
        state = apply(state, event)
        booked = sum(ledger.values(), Tally())
        _check(line, state, booked)
    assert (line.status, line.reason, line.finished_at) == ("error", "loop", end.at)
    assert line.seq == len(events) + 1
    # Each call on its day, under its provider, model and purpose.
    answers = [e for e in events if isinstance(e, CallAnswered)]
    for account, tally in ledger.items():
        name = f"{account.provider}/{account.model}"
        assert name == ("q/j" if account.purpose == Purpose.JUDGE else "p/m")
        mine = [a for a in answers if a.purpose == account.purpose and a.at // _DAY == account.day]
        assert tally.calls == len(mine)


def test_large_bodies_are_deflated_and_small_ones_left() -> None:
    """Whatever is stored comes back to the byte."""
    for body in (
        b"{}",
        b'["ToolRan",{}]',
        b'"' + b"x" * 600 + b'"',
        random.Random(1).randbytes(9000),
    ):
        assert stored_values.unpack(stored_values.pack(b"[" + body)) == b"[" + body
    assert len(stored_values.pack(b'"' + b"x" * 600 + b'"')) < 100


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ('{"status":"error","error":{"type":"auth","message":"bad key"}}', "bad key"),
        ('{"status":"completed","error":null}', ""),
        ('{"error":{"message":7}}', ""),
        ("no JSON", ""),
    ],
)
def test_the_message_of_an_error_is_read_out_of_the_result(result: str, message: str) -> None:
    """What people see of an error is what the result says, and nothing where it says nothing."""
    assert stored_values.error_message(result) == message
