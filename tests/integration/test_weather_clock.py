"""Whole daemons in a time that jumps, and on a machine that sleeps."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import resource
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standin
from clock import Clock
from weather import TASK, Station, answer_after, until

from batchd import control, events, taskstate
from batchd.store.queries import StoreReader
from tests.conftest import stand_in

pytestmark = pytest.mark.in_turns


def _results(station: Station, batch: str) -> list[dict[str, Any]]:
    lines = (station.outbox / batch / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _seconds(time_: str) -> float:
    return datetime.fromisoformat(time_).timestamp()


def test_a_clock_that_jumps_costs_nothing(tmp_path: Path, model_server: str) -> None:
    """Two hours ahead, then five back: tasks end by the time they worked,
    and files are taken when they are whole.
    """
    limits = "[limits]\ntimeout_s = 30.0\n"
    station = Station(tmp_path, model_server, model="latency-0.4+steps-4", more=limits)
    clock = Clock(station.folder)
    with station.serving():
        for i, ahead_s in enumerate((7200.0, -10800.0)):
            name = f"jump{i}"
            tasks = [{"first_prompt": f"{name}-{n}"} for n in range(2)]
            station.drop(f"{name}.json", json.dumps(tasks).encode())
            until(lambda: len(station.logged("model_called")) > 2, station.text)
            clock.set(ahead_s)
            # Neither as old as it seems, nor to be waited for until its time has come.
            with (station.inbox / f"young{i}.md").open("wb") as young:
                young.write(b"half, ")
                young.flush()
                time.sleep(0.6)
                young.write(b"whole")
            station.completed(name, 2)
            station.completed(f"young{i}")
            assert _results(station, f"young{i}")[0]["first_prompt"] == "half, whole"
            for result in _results(station, name):
                assert 1.0 < result["timing"]["run_s"] < 25, result["timing"]
                ended = _seconds(result["timing"]["finished_at"])
                assert abs(ended - time.time() - ahead_s) < 600
            (station.folder / "log").write_text("")
        # Set back, it dates what comes now by the new time.
        received = _seconds(station.summary("young1")["received_at"])
        assert abs(received - time.time() + 10800) < 600
        assert station.logged("worker_died") == []


def test_time_at_work_leaves_out_what_the_clock_was_moved_by() -> None:
    """Wherever the note of it stands: behind the event that was late, or before the next one."""
    base: list[events.Event] = [
        events.Resumed(at=1000.0, attempt=1),
        events.Suspended(at=1010.0, cause="drain"),
    ]
    for moved in (3600.0, -3600.0):
        late = [
            events.Suspended(at=1015.0 + moved, cause="drain"),
            events.ClockMoved(at=1016.0 + moved, by_s=moved),
        ]
        early = [
            events.ClockMoved(at=1015.0 + moved, by_s=moved),
            events.Suspended(at=1016.0 + moved, cause="drain"),
        ]
        for order in (late, early):
            state = taskstate.fold("x", [*base, *order])
            assert state.run_s == 16.0
            assert state.run_time(1020.0 + moved) == 20.0


def test_money_at_midnight(tmp_path: Path, model_server: str) -> None:
    """A day's budget that is spent holds tasks until midnight UTC, not longer;
    each call is booked on its own day, and no day on more than it may.
    """
    per_day, model = 0.012, "latency-0.1+steps-2"
    more = (
        f"[budget]\nper_day_usd = {per_day}\n[limits]\nmax_output_tokens = 500\n"
        f'[models."standin/{model}"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    )
    station = Station(tmp_path, model_server, model=model, more=more)
    clock = Clock(station.folder)
    days = [datetime.now(UTC).date() + timedelta(days=n) for n in (1, 2)]
    midnight = datetime.combine(days[1], dt.time(), UTC).timestamp()
    clock.set(midnight - 3600 - time.time())  # tomorrow, late in the evening
    with station.serving():
        tasks = [{"first_prompt": f"do {n}"} for n in range(8)]
        station.drop("b.json", json.dumps(tasks).encode())
        until(lambda: station.logged("budget_reached"), station.text)
        done = len([*station.outbox.glob("b/00*.json")])
        assert done < 8
        parked = json.loads(station.status("--json"))["parked"]
        assert ("day", "budget") in {(p["scope"], p["cause"]) for p in parked}
        clock.set(midnight - 3 - time.time())
        station.completed("b", 8)
        assert json.loads(station.status("--json"))["parked"] == []
    with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
        booked = {row.day: row for row in reader.spend(("day",))}
    assert [*booked] == [day.isoformat() for day in days]
    assert all(row.tally.known_usd + row.tally.unsettled_usd <= per_day for row in booked.values())
    assert sum(row.tally.calls for row in booked.values()) == 16
    ends = [_seconds(r["timing"]["finished_at"]) for r in _results(station, "b")]
    assert done <= sum(end < midnight for end in ends) < 8
    assert max(ends) < midnight + 600, "it goes on at once"


def test_a_start_with_the_clock_a_day_ahead_grants_no_money_twice(
    tmp_path: Path, model_server: str
) -> None:
    """A day is spent, the next daemon starts a day ahead and spends that one,
    the clock is set right: the first is still spent.
    """
    per_day, model = 0.004, "steps-2"
    more = (
        f"[budget]\nper_day_usd = {per_day}\n[limits]\nmax_output_tokens = 300\n"
        f'[models."standin/{model}"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    )
    station = Station(tmp_path, model_server, model=model, more=more)
    clock = Clock(station.folder)
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    noon = datetime.combine(tomorrow, dt.time(12), UTC).timestamp() - time.time()
    clock.set(noon)
    with station.serving():
        tasks = [{"first_prompt": f"do {n}"} for n in range(40)]
        station.drop("b.json", json.dumps(tasks).encode())
        until(lambda: len(station.logged("budget_reached")) == 1, station.text, 60)
    clock.set(noon + 86400)
    with station.serving():
        until(lambda: len(station.logged("budget_reached")) == 2, station.text, 60)
        clock.set(noon)
        until(lambda: len(station.logged("budget_reached")) == 3, station.text, 60)
    with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
        booked = [row.tally.known_usd + row.tally.unsettled_usd for row in reader.spend(("day",))]
    assert len(booked) == 2
    assert all(per_day / 2 < usd <= per_day for usd in booked), booked


_HOURS = """
[models."standin/{model}"]
input_usd_per_mtok = 0.15
cached_input_usd_per_mtok = 0.003
output_usd_per_mtok = 0.6
[models."standin/{model}".hours]
days = "mon-fri"
utc = ["01:00-04:00", "06:00-10:00"]
except = [2026-10-01]
peak = {{input_usd_per_mtok = 0.3, cached_input_usd_per_mtok = 0.006, output_usd_per_mtok = 1.2}}
[cost]
compare = ["deepseek/deepseek-flash"]
"""


def test_a_call_costs_what_its_hour_says(tmp_path: Path) -> None:
    """In results, their comparison, ledger and status as the server's own books have it;
    a limit that holds one call at the cheap price lets it go then, and not where a dear hour has
    begun, or would before its time is over.
    """
    model, limit = "steps-1+deepseek-flash", 0.0075
    with stand_in(count=True) as base_url:
        more = _HOURS.format(model=model)
        station = Station(tmp_path, base_url, model=model, settle_s=0.05, more=more)
        clock = Clock(station.folder)
        clock.set(datetime(2026, 9, 28, tzinfo=UTC).timestamp() - time.time())
        books: dict[str, float | None] = {}
        with station.serving():
            for moment, billed, ends in (
                ("2026-09-28 00:30", "2026-09-28 00:30", "completed"),
                ("2026-09-28 00:55", "", "timeout"),
                ("2026-09-28 04:00:10", "", "timeout"),
                ("2026-09-28 04:10", "2026-09-28 04:10", "completed"),
                ("2026-09-28 07:00", "2026-09-28 07:00", "dear"),
                ("2026-09-28 10:00:10", "2026-09-28 09:59", "dear"),
                ("2026-10-01 07:00", "2026-10-01 07:00", "completed"),
                ("2026-10-03 07:00", "2026-10-03 07:00", "completed"),
            ):
                clock.set(datetime.fromisoformat(f"{moment}+00:00").timestamp() - time.time())
                if billed:
                    at = datetime.fromisoformat(f"{billed}+00:00").timestamp()
                    change = json.dumps({"now": at}).encode()
                    urllib.request.urlopen(
                        f"{base_url.removesuffix('/v1')}/control", change
                    ).close()
                name = f"b{len(books)}"
                limits = {} if ends == "dear" else {"max_cost_usd": limit}
                task = {"first_prompt": f"do {name}", "limits": limits}
                station.drop(f"{name}.json", json.dumps(task).encode())
                (result,) = station.summary(name) and _results(station, name)
                assert result["status"] == ends.replace("dear", "completed"), moment
                asked = [each for each in station.asked() if each["status"] == 200]
                books[name] = asked[-1]["cost"] if billed else 0.0
                assert result["cost"]["total"] == books[name], moment
                (compared,) = result["cost"]["compare"]
                if "10-01" not in moment:  # of which the list knows nothing
                    assert compared["total"] == books[name], moment
                assert len(asked) == sum(1 for usd in books.values() if usd)
            day = json.loads(station.status("--json"))["daemon"]["day"]
            assert day["spent_usd"] == books[name]
    with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
        (total,) = reader.spend(())
    assert round(1e9 * total.tally.known_usd) == round(
        1e9 * sum(usd or 0.0 for usd in books.values())
    )


def test_a_call_that_a_full_disk_keeps_until_a_dear_hour_is_asked_for_again(tmp_path: Path) -> None:
    """It was granted at the cheap price, which its task's limit has room for: at the dear one
    it is not made, and what is booked lies within the limit.
    """
    model = "latency-1+length-1+deepseek-flash"
    with stand_in(count=True) as base_url:
        more = _HOURS.format(model=model)
        station = Station(tmp_path, base_url, model=model, settle_s=0.05, more=more)
        clock = Clock(station.folder)
        night = datetime(2026, 9, 28, 0, 30, tzinfo=UTC).timestamp()
        clock.set(night - time.time())
        with station.serving():
            task = {"first_prompt": "do", "limits": {"max_cost_usd": 0.0075}}
            station.drop("b.json", json.dumps(task).encode())
            until(lambda: any(call["status"] == 0 for call in station.asked()), station.text)
            assert station.process is not None
            _, hard = resource.prlimit(station.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(station.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
            until(lambda: control.request(tmp_path / ".batchd", "status")["troubles"], station.text)
            clock.set(night + 5400 - time.time())
            resource.prlimit(station.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
            (result,) = station.summary("b") and _results(station, "b")
    assert (result["status"], result["reason"]) == ("timeout", "budget")
    assert result["usage"]["calls"] == 1
    assert 0 < result["cost"]["total"] <= 0.0075


class Model:
    """A stand-in server that keeps its address when it is started again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def start(self) -> None:
        """Start it."""
        port = self.base_url.rpartition(":")[2].removesuffix("/v1") or "0"
        options = ("--no-count", "--latency", "0.3", "--port", port)
        self._process, self.base_url = standin.start(*options)

    def stop(self) -> None:
        """End it, and every connection with it."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def open(self) -> int:
        """Return how many calls are under way."""
        with urllib.request.urlopen(f"{self.base_url.removesuffix('/v1')}/totals") as answer:
            return int(json.load(answer)["open"])


@pytest.fixture
def model() -> Iterator[Model]:
    """A server of one's own."""
    model = Model()
    model.start()
    yield model
    model.stop()


def test_a_machine_that_sleeps_goes_on_where_it_was(tmp_path: Path, model: Model) -> None:
    """Stopped for longer than any heartbeat may be late, its connections dead:
    no worker is killed, each task completes.

    The calls under way are asked again, and what they may have cost is counted as unsettled.
    """
    more = '[models."standin/steps-4"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n'
    station = Station(tmp_path, model.base_url, model="steps-4", heartbeat_s=2.0, more=more)
    with station.serving():
        station.drop("nap.json", json.dumps([{"first_prompt": f"{i}"} for i in range(6)]).encode())
        until(lambda: len(station.logged("model_called")) > 2, station.text)
        answer_after(model.base_url, 600)
        until(lambda: model.open() == 2, station.text)
        asleep = station.processes()
        for pid in asleep:
            os.kill(pid, signal.SIGSTOP)
        model.stop()
        time.sleep(3.5)  # heartbeat_timeout_s is 2
        model.start()
        for pid in asleep:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        station.completed("nap", 6)
        assert station.logged("worker_died") == []
        results = _results(station, "nap")
        assert {r["attempts"] for r in results} == {1}
        assert sum(r["usage"]["unsettled_calls"] for r in results) >= 1
        assert sum(r["usage"]["calls"] for r in results) == 24
        station.drop("after.json", TASK)
        station.completed("after")
