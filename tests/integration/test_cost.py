"""`batchd cost` on a store whose every token is known:
splits, filters, spreadsheets, and other models' prices.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchd.events import (
    CallAnswered,
    CallFailed,
    CallStarted,
    Event,
    TaskFinished,
    TaskStarted,
    Terms,
    encode,
)
from batchd.records import (
    Answer,
    Batch,
    Failure,
    FailureKind,
    ModelSetup,
    Price,
    Purpose,
    Rate,
    Ref,
    Task,
    TaskStatus,
    Usage,
)
from batchd.store import operations
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

#: 2026-11-24, noon.
NOON = 1795521600.0
DAY = 86400.0
PRICE = Price(rates=(Rate(input=1.0, cached_input=0.1, output=2.0),), source="config")


def answered(at: float, purpose: Purpose, **tokens: int) -> CallAnswered:
    """Return an answer that took so many tokens."""
    return CallAnswered(
        at=at, purpose=purpose, answer=Answer(content="x", usage=Usage(calls=1, **tokens))
    )


async def work(store: Store, batch: str, task: str, model: str, *events: Event) -> None:
    """Let a task have its events, and its end."""
    ref = Ref(batch, task)
    setup = ModelSetup(name=model, price=None if model.endswith("dark") else PRICE)
    judge = ModelSetup(name="q/judge", price=PRICE)
    given = await store.write(operations.dispatch, ref)
    history = [TaskStarted(at=NOON, terms=Terms(model=setup, judge=judge)), *events]
    raw = [msgspec.Raw(encode(e)) for e in history]
    await store.record(ref, given.attempt, 0, raw)
    end = TaskFinished(at=NOON + DAY + 60, status=TaskStatus.COMPLETED, reason=None, result="{}")
    await store.write(TaskTransaction.finish, ref, end, attempt=None)


@pytest.fixture
def spent(spool: Any) -> Any:
    """Give a spool with two batches on two days: two models, a judge, tags, an unsettled call."""
    store = Store(spool.folder / ".batchd" / "batchd.db", clock=lambda: NOON)

    async def fill() -> None:
        for name, tasks in {
            "first": [("1", "p/m", ("night", "=cmd")), ("2", "p/m", ("night",))],
            "second": [("1", "p/dark", ())],
        }.items():
            batch = Batch(
                name=name,
                claim=name,
                outbox=str(spool.folder / "outbox"),
                request="request.json",
                received_at=NOON,
            )
            await store.write(
                operations.add_batch,
                batch,
                [Task(id=i, first_prompt="x", model=m, tags=t) for i, m, t in tasks],
            )
        long = {"input_tokens": 300_000, "cached_input_tokens": 200_000, "output_tokens": 10_000}
        short = {"input_tokens": 60_000, "cache_write_tokens": 20_000, "output_tokens": 5_000}
        await work(
            store, "first", "1", "p/m", answered(NOON, Purpose.AGENT, **long),
            answered(NOON + DAY, Purpose.JUDGE, **short),
        )  # fmt: skip
        call = CallStarted(
            at=NOON, purpose=Purpose.AGENT, input_tokens=9, max_output_tokens=9, reserved_usd=0.5
        )
        failed = Failure(kind=FailureKind.TIMEOUT, message="too slow")
        await work(
            store, "first", "2", "p/m", call, CallFailed(at=NOON, failure=failed),
            answered(NOON, Purpose.AGENT, input_tokens=20_000, output_tokens=0),
        )  # fmt: skip
        await work(store, "second", "1", "p/dark", answered(NOON, Purpose.AGENT, **short))

    asyncio.run(fill())
    store.close()
    return spool


def costs(spool: Any, *arguments: str) -> Any:
    """Return what the command reports to programs."""
    done = spool.batchd("cost", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_split_and_filter(spent: Any) -> None:
    """Several splits at once, days, tags, models and providers:
    each part of the money, none of it twice.
    """
    rows = costs(spent, "--by", "day,model", "first")
    assert [(r["day"], r["provider"], r["model"], r["calls"]) for r in rows] == [
        ("2026-11-24", "p", "m", 2),
        ("2026-11-25", "q", "judge", 1),
    ]
    assert [(r["tag"], r["input_tokens"]) for r in costs(spent, "--by", "tag")] == [
        (None, 60_000),
        ("=cmd", 360_000),
        ("night", 380_000),
    ]
    for filters, calls in (
        (["--tag", "=cmd"], 2),
        (["--tag", "=cmd", "--until", "2026-11-24"], 1),
        (["--since", "2026-11-25"], 1),
        (["--provider", "q", "--provider", "p"], 4),
        (["--model", "p/m", "--model", "dark"], 3),
        (["second"], 1),
        (["--model", "p/judge"], 0),
    ):
        assert sum(r["calls"] for r in costs(spent, *filters)) == calls, filters
    table = spent.batchd("cost", "--by", "tag").stdout
    assert "(none)" in table
    assert "counts under each" in table
    assert "unknown" in table
    assert "1 of 4 calls" in table
    (total,) = [line for line in table.splitlines() if line.startswith("total")]
    assert "> $0." in total, "what is known of it is shown"
    assert "counts under each" not in spent.batchd("cost", "--by", "day").stdout
    assert "Nothing is on record" in spent.batchd("cost", "--tag", "nihgt").stdout


def test_spreadsheets_get_stable_columns_and_no_formulas(spent: Any) -> None:
    """The columns are those of docs/cost.md;
    a name that a spreadsheet would run is text; what is unknown is empty.
    """
    text = spent.batchd("cost", "--by", "tag,model", "--csv").stdout
    heads, *rows = csv.reader(io.StringIO(text))
    assert ",".join(heads) == (
        "tag,provider,model,calls,input_tokens,cached_input_tokens,cache_write_tokens,output_tokens,"
        "reasoning_tokens,estimated_calls,unpriced_calls,input_usd,output_usd,cost_usd,unsettled_calls,unsettled_usd,"
        "cache_write_long_tokens,cache_reported_tokens,cache_share,cache_saved,known_usd"
    )
    page = (Path(__file__).parents[2] / "docs/cost.md").read_text()
    assert " ".join(heads[3:]) in " ".join(page.split()).replace("`", "").replace(",", "")
    assert [r[:4] for r in rows] == [
        ["(none)", "p", "dark", "1"],
        ["'=cmd", "p", "m", "1"],
        ["'=cmd", "q", "judge", "1"],
        ["night", "p", "m", "2"],
        ["night", "q", "judge", "1"],
    ]
    assert rows[0][heads.index("cost_usd")] == ""
    money = [row[heads.index("known_usd")] for row in rows]
    assert all(re.fullmatch(r"\d+\.\d\d+", cell) for cell in money), "decimal, cents as cents"
    day = csv.DictReader(io.StringIO(spent.batchd("cost", "--by", "provider", "--csv").stdout))
    (partly,) = [row for row in day if row["provider"] == "p"]
    assert (partly["cost_usd"], partly["unpriced_calls"]) == ("", "1")
    assert float(partly["known_usd"]) > 0, "one call without a price hides no other's"
    assert list(costs(spent, "--by", "tag,model")[0]) == heads
    text = spent.batchd("cost", "--compare", "openai/gpt-4", "--csv").stdout
    assert text.startswith(
        "model,total,source,ratio,spent,unsettled,averaged,dearest\nopenai/gpt-4,"
    )


def test_real_tokens_at_other_prices(spent: Any) -> None:
    """Cached input and cache writes at each model's own prices,
    long calls at those for long ones, computed by hand.
    """
    models = ("anthropic/claude-3-opus", "anthropic/claude-sonnet-4-5", "a/b", "openai/gpt-4")
    rows = costs(spent, "first", "--tag", "=cmd", "--compare", *models)
    # 15 a million in, 1.50 from the cache, 18.75 into it, 75 out.
    opus = (0.1 * 15 + 0.2 * 1.5 + 0.01 * 75) + (0.04 * 15 + 0.02 * 18.75 + 0.005 * 75)
    # The agent's one call is longer than 200,000 tokens:
    # 6, 0.60 and 22.50; the judge's is not: 3, 3.75 and 15.
    sonnet = (0.1 * 6 + 0.2 * 0.6 + 0.01 * 22.5) + (0.04 * 3 + 0.02 * 3.75 + 0.005 * 15)
    gpt = 0.36 * 30 + 0.015 * 60
    assert [(r["model"], r["total"]) for r in rows] == [
        ("anthropic/claude-sonnet-4-5", pytest.approx(sonnet)),
        ("anthropic/claude-3-opus", pytest.approx(opus)),
        ("openai/gpt-4", pytest.approx(gpt)),
        ("a/b", None),
    ]
    really = (0.1 * 1 + 0.2 * 0.1 + 0.01 * 2) + (0.06 * 1 + 0.005 * 2)
    assert [r["spent"] for r in rows] == pytest.approx([really] * 4)
    assert [r["ratio"] for r in rows[:2]] == pytest.approx([sonnet / really, opus / really])
    assert rows[3]["ratio"] is None
    assert [r["averaged"] for r in rows] == [True, False, False, False]


def test_sums_over_many_calls_are_priced_by_their_average(spent: Any) -> None:
    """The money that may have been paid stays apart;
    where a price was missing there is no ratio, and both are said.
    """
    # The ledger has p/m's two calls of the 24th as one sum of 320,000 tokens: 160,000 a call.
    (row,) = costs(
        spent, "first", "--until", "2026-11-24", "--compare", "anthropic/claude-sonnet-4-5"
    )
    assert row["total"] == pytest.approx(0.12 * 3 + 0.2 * 0.3 + 0.01 * 15)
    assert row["unsettled"] == 0.5
    shown = spent.batchd("cost", "first", "--compare", "anthropic/claude-sonnet-4-5").stdout
    assert "as long as their average" in shown
    assert "up to $0.5000 for 1 call without an answer" in shown
    shown = spent.batchd("cost", "--compare", "openai/gpt-4").stdout
    assert ", as no price is known for 1 of 4 calls" in shown
    assert costs(spent, "--compare", "openai/gpt-4")[0]["ratio"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--by", "colour"], "not one of day, batch"),
        (["--by", ""], "not one of day, batch"),
        (["--since", "24.11.2026"], "is not a day"),
        (["--since", "2026-11-25", "--until", "2026-11-24"], "is after --until"),
        (["--by", "day", "--compare"], "leave --by out"),
        (["--tokens", ""], "--tokens needs two counts"),
        (["--tokens", f"{10**400},0"], "--tokens needs two counts"),
        (["--json", "--csv"], "not allowed with"),
        (["frist"], "no batch frist"),
    ],
)
def test_wrong_questions_are_refused(spent: Any, arguments: list[str], complaint: str) -> None:
    """What cannot be asked ends with 2, and says how to ask."""
    done = spent.batchd("cost", *arguments)
    assert done.returncode == 2, done.stdout
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
