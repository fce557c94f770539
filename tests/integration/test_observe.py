"""How things stand, as faces see it: with a real daemon at work, and after it has gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from patience import PATIENCE_S
from weather import Station, until

from batchd import control
from batchd.observe.status import Observer
from batchd.records import Ref
from batchd.store import lookups, queries
from batchd.views import Kind, Passage, passages

pytestmark = pytest.mark.in_turns


@pytest.fixture
def base_url(model_server: str) -> str:
    """A stand-in model server."""
    return model_server


def test_a_status_shows_what_is_at_work_and_how_fast(tmp_path: Path, base_url: str) -> None:
    """Agents with their steps, what is queued and parked, money, speed;
    without a daemon, what the store knows.
    """
    station = Station(
        tmp_path, base_url, model="latency-0.2+steps-4", more="[budget]\nper_day_usd = 0\n"
    )
    with Observer(tmp_path / ".batchd") as observer:
        nothing = observer.look()
        assert (nothing.daemon, nothing.batches, nothing.left) == (None, (), 0)
        with station.serving():
            station.drop(
                "b.json",
                json.dumps({"tasks": [{"first_prompt": f"do {n}"} for n in range(12)]}).encode(),
            )
            until(lambda: len(observer.look().agents) == 2 and observer.look().providers)
            now = observer.look()
            assert now.daemon is not None
            assert (now.daemon.slots, now.daemon.day.spent_usd) == (2, 0.0)
            assert now.left == now.queued + 2
            assert {now.doing[a.ref].step for a in now.agents} <= {
                "starting",
                "waiting",
                "model",
                "tool",
            }
            assert [p.name for p in now.providers] == ["standin"]
            assert now.speed is None or now.speed.over_s >= 5, "not known before"
            station.completed("b", 12)
        after = observer.look()
        assert (after.daemon, after.silent, after.left) == (None, False, 0)
        assert [b.batch.name for b in after.batches] == ["b"]
        read = [
            p
            for e in observer.reader.read(lookups.events, Ref("b", "001"))
            for p in passages(e, "do 0")
        ]
    _reads_well(read)


def test_speed_is_measured_from_the_start_of_what_is_open(tmp_path: Path, base_url: str) -> None:
    """Who looks late learns at once what was done before the first look,
    and how long the rest takes.
    """
    station = Station(tmp_path, base_url, model="latency-2.5+steps-1")
    with station.serving(), Observer(tmp_path / ".batchd") as observer:
        tasks = [{"first_prompt": f"do {n}"} for n in range(8)]
        station.drop("b.json", json.dumps({"tasks": tasks}).encode())
        until(lambda: len([*station.outbox.glob("b/00*.json")]) >= 4)
        late = observer.look()
        assert late.speed is not None
        [row] = late.batches
        assert late.speed.over_s == pytest.approx(late.at - row.batch.received_at, abs=2)
        pace = row.finished / late.speed.over_s
        assert late.speed.tasks_a_minute == pytest.approx(pace * 60, rel=0.01)
        if late.agents:
            assert late.seconds_left == pytest.approx(late.left / pace, rel=0.01)
        station.completed("b", 8)


def test_one_look_shows_what_is_used(tmp_path: Path, base_url: str) -> None:
    """Tokens and requests a minute come from calls on record:
    of tasks that are in the middle of their work, too.
    """
    station = Station(tmp_path, base_url, model="latency-0.3+steps-60")
    with station.serving():
        tasks = [{"first_prompt": f"do {n}"} for n in range(2)]
        station.drop("b.json", json.dumps({"tasks": tasks}).encode())
        until(lambda: len(station.logged("model_called")) >= 40, within_s=PATIENCE_S)
        with Observer(tmp_path / ".batchd") as observer:
            first = observer.look()
            [row] = first.batches
            assert (row.finished, len(first.agents)) == (0, 2)
            assert first.speed is not None
            used = row.tally.input_tokens + row.tally.output_tokens
            assert first.speed.tokens_a_minute == pytest.approx(
                used / first.speed.over_s * 60, rel=0.2
            )
            [provider] = first.providers
            calls = observer.reader.read(queries.answered, 0)
            over_s = first.at - min(call.at - call.seconds for call in calls)
            assert 5 < over_s < 60, "else it is the last minute"
            assert provider.rate is not None
            assert provider.rate.tokens == pytest.approx(used / over_s * 60, rel=0.2)
            assert provider.rate.calls == pytest.approx(row.tally.calls / over_s * 60, rel=0.2)
        station.process.kill()  # type: ignore[union-attr]
        station.process.wait()  # type: ignore[union-attr]
        station.process = None


def test_what_is_paused_is_not_in_the_time_left(tmp_path: Path, base_url: str) -> None:
    """Tasks of a paused batch, a paused task and a parked provider's are held,
    whether they have begun or not; others are not.
    """
    more = f'[providers.other]\nbase_url = "{base_url}"\n'
    station = Station(tmp_path, base_url, model="hang", more=more)
    with station.serving(), Observer(tmp_path / ".batchd") as observer:
        for name, count, extra in (("a", 5, {}), ("c", 4, {"model": "other/hang"}), ("d", 3, {})):
            tasks = [{"first_prompt": f"{name} {n}", **extra} for n in range(count)]
            station.drop(f"{name}.json", json.dumps({"tasks": tasks}).encode())
            until(lambda name=name: (station.outbox / name / "request.json").exists())  # type: ignore[misc]
        until(lambda: len(observer.look().agents) == 2)
        assert observer.look().held == 0
        for scope, name, held in (
            ("batch", "d", 3),
            ("provider", "other", 7),
            ("task", "a/005", 8),
            ("all", "", 10),
        ):
            control.request(station.folder / ".batchd", "pause", scope=scope, name=name)
            assert observer.look().held == held, scope


def _reads_well(read: list[Passage]) -> None:
    """The prompt first, then each answer before its tool calls, the verdict and the end last."""
    kinds = [p.kind for p in read]
    assert kinds[:3] == [Kind.SYSTEM, Kind.PROMPT, Kind.ANSWER]
    assert kinds[-2:] == [Kind.VERDICT, Kind.END]
    assert kinds.count(Kind.ANSWER) == 4
    assert kinds.count(Kind.TOOL) == 3
    assert read[1].text == "do 0"
    assert read[3].title.startswith("shell ")
    assert all(p.usage is not None for p in read if p.kind is Kind.ANSWER)
    assert read[-1].title == "completed"
