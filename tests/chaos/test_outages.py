"""A refused key, a long outage and a spent day, over whole batches:
nothing ends that could have waited.

Judged by the model server's own log and the outbox. `make chaos` runs the long form.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from arena import CALLS, ROOT, Arena, Model, arena, tasks, until
from verdict import judge

pytestmark = pytest.mark.in_turns

_TASKS = int(os.environ.get("BATCHD_CHAOS_TASKS", "30"))
_KEY = "sk-the-right-one-0123456789"
_STEPS = f"standin/steps-{CALLS}"
_PROVIDER = "max_concurrent = 64\n"


def _batchd(place: Arena, *arguments: str) -> str:
    """Run a command as a user would; return what it prints."""
    command = [sys.executable, "-m", "batchd", "--config", str(place.folder / "config.toml")]
    done = warm.run([*command, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)})
    done.check_returncode()
    return done.stdout


def _configure(place: Arena, old: str, new: str) -> None:
    path = place.folder / "config.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _parked(place: Arena) -> list[dict[str, Any]]:
    parked: list[dict[str, Any]] = json.loads(_batchd(place, "status", "--json"))["daemon"][
        "parked"
    ]
    return parked


def _finished(place: Arena, model: Model, folder: Path, count: int) -> None:
    until((folder / "summary.json").exists, 60 + count / 4, place.tail)
    place.stop()
    figures = judge(folder, model.log(), count)
    print(f"  all of them: {figures}")
    assert figures.statuses == {"completed": count}
    assert figures.calls == count * CALLS


@pytest.mark.timeout(600)
def test_a_refused_key_costs_a_handful_of_requests(tmp_path: Path) -> None:
    """Everything waits, untouched, and says why; the key file fixed and resumed, all complete."""
    count = _TASKS // 2
    with arena(tmp_path, "--api-key", _KEY, agents=8) as (place, model):
        _configure(place, _PROVIDER, f'{_PROVIDER}api_key_file = "key"\n')
        key = place.folder / "key"
        key.write_text("sk-the-wrong-one-0123456789")
        place.start()
        folder = place.drop("c", tasks(count))
        until(model.log, 20, place.tail)
        time.sleep(2.0)
        requests = len(model.log())
        print(f"\na bad key, {count} tasks: {requests} requests reached the server")
        assert requests <= 3 * 8
        assert not list(folder.glob("[0-9]*.json"))
        (parked,) = _parked(place)
        assert (parked["name"], parked["cause"]) == ("standin", "auth")
        assert "batchd resume" in _batchd(place, "status")
        assert "batchd resume" in place.log.read_text()
        key.write_text(_KEY)
        _batchd(place, "resume", "--provider", "standin")
        _finished(place, model, folder, count)


@pytest.mark.timeout(900)
def test_a_long_outage_fails_no_task(tmp_path: Path) -> None:
    """The server is away for many times as long as all retries of a call take:
    tasks are parked, and go on alone.

    With the defaults, 6 retries take about a minute, and 20 minutes are 20 times that;
    here they take 0.3 s.
    """
    count = max(24, _TASKS // 4)
    away_s = 3.0 if _TASKS < 500 else 30.0
    with arena(tmp_path, "--latency", "0.1", agents=8) as (place, model):
        _configure(place, "max_retries = 20", "max_retries = 3\nprobe_s = 0.5\nmax_probe_s = 2.0")
        _configure(place, "max_backoff_s = 1.0", "max_backoff_s = 0.1")
        place.start()
        folder = place.drop("c", tasks(count))
        until(lambda: len(model.log()) > count, 60, place.tail)
        model.kill()
        time.sleep(away_s)
        (parked,) = _parked(place)
        assert (parked["name"], parked["cause"]) == ("standin", "provider_unavailable")
        done = len(list(folder.glob("[0-9]*.json")))
        print(f"\nan outage of {away_s:.0f} s, {count} tasks, {done} of them done before it")
        model.start()
        _finished(place, model, folder, count)


@pytest.mark.timeout(600)
def test_a_day_costs_what_it_may_and_no_cent_more(tmp_path: Path) -> None:
    """The budget is a fifth of what the tasks cost:
    spending stops below it, by the server's count; the rest waits.
    """
    count = max(40, _TASKS // 4)
    with arena(tmp_path, agents=8) as (place, model):
        model.control(count=True)
        place.start()
        folder = place.drop("first", tasks(1))
        until((folder / "summary.json").exists, 30, place.tail)
        place.stop()
        usage = model.log()[-1]["usage"]
        dollars = 5.0 / (count * CALLS * (usage["input_tokens"] + 2 * usage["output_tokens"]))
        prices = f"input_usd_per_mtok = {dollars * 1e6}\noutput_usd_per_mtok = {2 * dollars * 1e6}"
        _configure(place, "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0", prices)
        with (place.folder / "config.toml").open("a") as config:
            config.write("[budget]\nper_day_usd = 1.0\n")
        before = len(model.log())
        place.start()
        limits = {"max_output_tokens": 100}
        folder = place.drop("c", [{**task, "limits": limits} for task in tasks(count)])
        until(lambda: "budget_reached" in place.log.read_text(), 60, place.tail)
        time.sleep(1.0)
        asked = [entry["usage"] for entry in model.log()[before:] if entry["usage"]]
        spent = dollars * sum(u["input_tokens"] + 2 * u["output_tokens"] for u in asked)
        results = [json.loads(path.read_bytes()) for path in folder.glob("[0-9]*.json")]
        print(f"\na day's budget of $1 for tasks of $5: ${spent:.4f} spent in {len(asked)} calls")
        print(f"  {len(results)} of {count} tasks are done, the rest waits")
        assert 0.9 < spent <= 1.0
        assert {result["status"] for result in results} <= {"completed"}
        (parked,) = _parked(place)
        assert (parked["scope"], parked["cause"]) == ("day", "budget")
        time.sleep(1.0)
        assert len([e for e in model.log()[before:] if e["usage"]]) == len(asked)
        _batchd(place, "tune", "budget.per_day_usd=100")
        until((folder / "summary.json").exists, 60 + count / 4, place.tail)
        place.stop()
        results = [json.loads(path.read_bytes()) for path in folder.glob("[0-9]*.json")]
        assert [result["status"] for result in results] == ["completed"] * count
