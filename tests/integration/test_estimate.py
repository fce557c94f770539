"""`batchd estimate`: what it says before is held against what really happens afterwards."""

from __future__ import annotations

import json
import random
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batchd.events import CallStarted
from batchd.records import Ref
from batchd.store import lookups
from batchd.store.queries import StoreReader

pytestmark = pytest.mark.in_turns

_PRICES = """\
[models."standin/{model}"]
input_usd_per_mtok = 3.0
cached_input_usd_per_mtok = 0.3
output_usd_per_mtok = 15.0
"""


def tasks(seed: int, count: int, **more: Any) -> list[dict[str, Any]]:
    """Return tasks of very different lengths, some of which need a second and a third round."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        words = " ".join(
            rng.choices(["parse", "file", "error", "größe", "日本"], k=rng.randint(5, 400))
        )
        made.append(
            {
                "first_prompt": f"{seed}.{number} {words}",
                "check": 'test -n "$READY"',
                "env": {"READY": rng.choice(["", "yes", "yes"])},
                "limits": {"max_iterations": 3},
                **more,
            }
        )
    return made


def estimated(spool: Any, *files: Path) -> Any:
    """Return an estimate, for programs."""
    done = spool.batchd("estimate", *files, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def within(value: float, found: dict[str, float]) -> bool:
    """Return whether a value lies in a range."""
    return found["low"] <= value <= found["high"]


@pytest.fixture
def counted(spool: Any, counting_server: tuple[str, Path]) -> Any:
    """Give a spool whose server counts tokens, and has a prompt cache."""
    path = spool.folder / "config.toml"
    text = path.read_text().splitlines()
    text = [f'base_url = "{counting_server[0]}"' if x.startswith("base_url") else x for x in text]
    models = ("steps-3", "steps-9")
    path.write_text("\n".join([*text, *(_PRICES.format(model=m) for m in models)]))
    return spool


def run(spool: Any, *paths: Path) -> None:
    """Have files done."""
    for path in paths:
        spool.batchd("submit", "--wait", path)


def first_requests(spool: Any, batch: str) -> int:
    """Return what the agents themselves counted for their first requests."""
    with StoreReader(spool.folder / ".batchd/batchd.db") as reader:
        names = [t.ref.task for t in reader.tasks(batch)]
        calls = [
            next(
                e
                for e in reader.read(lookups.events, Ref(batch, name))
                if isinstance(e, CallStarted)
            )
            for name in names
        ]
    return sum(call.input_tokens for call in calls)


@pytest.mark.long
def test_what_is_estimated_comes_true(counted: Any) -> None:
    """After real batches the range of a like batch holds its real calls, tokens and money; first
    requests are exact but for what agents find in their directories.
    """
    made = {"model": "standin/steps-3"}
    olds = [counted.write(f"old{i}.json", tasks(i, 12, **made)) for i in range(3)]
    new = counted.write("new.json", tasks(99, 30, **made), budget_usd=50.0)
    # Tasks of another model must not mix in.
    other = counted.write("other.json", tasks(7, 6, model="standin/steps-9"))
    before = estimated(counted, new)
    assert before["total"]["with_history"] == 0
    assert before["total"]["in_all"] is None
    with counted.serving():
        run(counted, *olds, other)
        estimate = estimated(counted, new)
        shown = counted.batchd("estimate", new).stdout
        run(counted, new)
    accepted = sum(counted.result(f"old{i}", "summary")["counts"]["completed"] for i in range(3))
    assert estimate["history"] == [
        {
            "model": "standin/steps-3",
            "tasks": 36,
            "batches": 3,
            "completed": accepted,
            "to_come": 30,
        }
    ]
    lack = first_requests(counted, "new") - estimate["total"]["first_requests"]["input_tokens"]
    assert 30 * 20 < lack < 30 * 200
    # Which figure is of what: a row of one task of each model, then all of them.
    one, together = shown.split("\n\n")[:2]
    assert one.splitlines()[1].split()[:5] == ["ONE", "TASK", "OF", "TASKS", "CALLS"]
    assert together.splitlines()[0] == "All 30 tasks together:"
    for fact in ("first requests", "calls", "tokens", "cost", "wall-clock", "at most"):
        assert f"\n  {fact}" in together
    assert "if this batch goes as those on record" in together
    assert before["total"]["first_requests"] == estimate["total"]["first_requests"]
    summary = counted.result("new", "summary")
    whole, usage = estimate["total"]["in_all"], summary["usage"]
    assert within(usage["calls"], whole["calls"]), (usage["calls"], whole["calls"])
    assert within(usage["total_tokens"], whole["tokens"]), (usage, whole["tokens"])
    assert within(summary["cost"]["total"], whole["cost"]), (summary["cost"], whole["cost"])
    # A range that holds everything says nothing.
    assert whole["cost"]["high"] < 2 * whole["cost"]["low"]
    assert estimate["total"]["at_most"] == {"calls": 3000, "tokens": None, "cost": 50.0}
    for words in ("36 tasks of 3 batches on record", "$50.00", "roughly: 2 slots"):
        assert words in shown


def test_a_file_is_checked_as_submit_does(spool: Any) -> None:
    """Wrong files are refused with the very same errors; a good one is only looked at."""
    bad = spool.write("bad.json", [{"first_promt": "x"}, {"first_prompt": "y", "priority": "high"}])
    good = spool.write("good.json", [{"first_prompt": "x"}])
    refused, submitted = spool.batchd("estimate", good, bad), spool.batchd("submit", bad)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == submitted.stderr
    assert spool.batchd("estimate", "absent.json").returncode == 2
    done = spool.batchd("estimate", "-", stdin=good.read_bytes())
    assert done.returncode == 0, done.stderr
    assert not list(spool.folder.glob("inbox/*"))
    assert not (spool.folder / ".batchd/batchd.db").exists()


def test_what_it_costs_at_this_hour_is_said_beside_the_highest(counted: Any) -> None:
    """Of a model that is dear but on these days, `check` says both prices, and a comparison by the
    ledger that it takes the highest, as an estimate does.
    """
    config, today = counted.folder / "config.toml", datetime.now(UTC).date()
    near = [str(today + timedelta(days=n)) for n in (-1, 0, 1)]
    hours = f'utc = ["00:00-24:00"]\nexcept = {near}\npeak = {{input_usd_per_mtok = 9.0}}\n'
    text = re.sub('(?<=model = "standin/)[^"]*', "steps-3", config.read_text())
    config.write_text(f'{text}\n[models."standin/steps-3".hours]\n{hours}')
    new = counted.write("new.json", [{"first_prompt": "x", "model": "standin/steps-3"}])
    found = estimated(counted, new)
    first = found["total"]["first_requests"]
    assert first["cost"] == pytest.approx(first["input_tokens"] * 9e-6)
    checked = counted.batchd("check", "--offline").stdout
    assert "$9 in, $15 out a million tokens (config), at its highest; $3 and $15 at this hour" in (
        " ".join(checked.split())
    )
    compared = counted.batchd(
        "cost", "--tokens", "1000000,0", "--compare", "standin/steps-3", "standin/steps-9"
    ).stdout
    assert [line.split()[1:] for line in compared.splitlines()[1:3]] == [
        ["$3.00", "config"],
        ["$9.00", "config"],
    ]
    assert "the highest one counts" in compared


def test_what_is_unknown_is_said(counted: Any) -> None:
    """Without a price, money is unknown, never 0; without history, bounds are all."""
    new = counted.write(
        "new.json",
        [
            {"first_prompt": "x", "model": "standin/steps-4", "limits": {"max_cost_usd": 1.0}},
            {"first_prompt": "y", "model": "standin/steps-9", "limits": {"max_cost_usd": 0.25}},
        ],
    )
    empty = estimated(counted, new)
    dark, nine = empty["models"]
    assert empty["unpriced"] == ["standin/steps-4"]
    assert dark["first_requests"]["cost"] is None
    assert (dark["in_all"], nine["in_all"]) == (None, None)
    assert nine["first_requests"]["cost"] == pytest.approx(
        nine["first_requests"]["input_tokens"] * 3e-6
    )
    assert nine["at_most"] == {"calls": 100, "tokens": None, "cost": 0.25}
    shown = counted.batchd("estimate", new).stdout
    for words in (
        "No task with the model of 2 tasks has run here",
        "No price is known for standin/steps-4",
        "A limit on money is active",
        "unknown as new input",
    ):
        assert words in shown
    with counted.serving():
        old = [{"first_prompt": "z", "model": "standin/steps-4", "evaluator": "none"}] * 3
        run(counted, counted.write("old.json", old))
    known = estimated(counted, new)
    assert [(b["model"], b["tasks"]) for b in known["history"]] == [("standin/steps-4", 3)]
    assert known["models"][0]["in_all"]["tokens"]["mean"] > 0
    assert known["models"][0]["in_all"]["cost"] is None
    assert known["total"]["in_all"]["cost"] is None
    assert known["models"][1]["in_all"] is None
    shown = counted.batchd("estimate", new).stdout
    assert "cost            unknown" in shown
    assert "No task with the model of 1 task has run here" in " ".join(shown.split())


def test_every_budget_is_shown(counted: Any) -> None:
    """Of task, batch and day: each that there is, and which there is not;
    of the day's, what is left of it today.
    """
    config = counted.folder / "config.toml"
    plain = counted.write("plain.json", [{"first_prompt": "x", "model": "standin/steps-3"}])
    free = counted.batchd("estimate", plain).stdout
    assert "money without a limit" in free
    assert "Limits on money  task: none; batch: none; day: none" in free
    config.write_text(f"{config.read_text()}[budget]\nper_day_usd = 0.5\n")
    daily = counted.batchd("estimate", plain).stdout
    assert "without a limit" not in daily
    assert "what days allow" in daily
    assert "day: $0.50, $0.50 of it left today (UTC)" in daily
    assert "Today's budget has $0.50 left" in daily
    some = [{"first_prompt": "y", "limits": {"max_cost_usd": 0.25}}, {"first_prompt": "z"}]
    both = counted.write("both.json", some, model="standin/steps-3", budget_usd=2.0)
    with counted.serving():
        run(counted, plain)
        spent = counted.result("plain", "summary")["cost"]["total"]
        shown = counted.batchd("estimate", both, plain).stdout
        found = estimated(counted, both)
    assert "task: $0.25 for 1 of 3; batch: $2.00 for both, none for plain; day: $0.50," in shown
    assert found["budgets"] == {
        "tasks_with_limit": 1,
        "batches_usd": {"both": 2.0},
        "day_usd": 0.5,
        "left_today_usd": pytest.approx(0.5 - spent),
    }


def test_it_needs_no_sandbox(spool: Any) -> None:
    """An estimate runs nothing: where there is no sandbox, it is the same."""
    path = spool.write("one.json", [{"first_prompt": "x"}])
    (spool.folder / "bin").mkdir()
    done = subprocess.run(
        spool.command("estimate", path, "--json"),
        env={**spool.environment, "PATH": str(spool.folder / "bin")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == estimated(spool, path)


def test_a_tier_is_estimated_at_its_own_price(counted: Any) -> None:
    """Flex at what is set for it; where its calls may go on at the standard price, at that;
    a tier without a price at none.
    """
    path = counted.folder / "config.toml"
    tier = '[models."standin/steps-3".tiers.flex]\ninput_usd_per_mtok = 1.5\noutput_usd_per_mtok = 7.5\n'
    path.write_text(f"{path.read_text()}\n{tier}")

    def cost(**more: Any) -> float | None:
        file = counted.write("x.json", tasks(3, 2, model="standin/steps-3", **more))
        found: float | None = estimated(counted, file)["total"]["first_requests"]["cost"]
        return found

    standard = cost()
    assert standard is not None
    assert cost(service_tier="flex") == pytest.approx(standard / 2)
    assert cost(service_tier="flex", tier_fallback=60) == pytest.approx(standard)
    assert cost(service_tier="priority") is None
