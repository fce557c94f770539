"""How things stand, as faces see it: with a real daemon at work, and after it has gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from weather import Station, until

from batchd.observe.conversation import Kind, Passage, passages
from batchd.observe.snapshot import Observer
from batchd.records import Ref


@pytest.fixture
def base_url(model_server: str) -> str:
    """A stand-in model server."""
    return model_server


def test_a_snapshot_tells_what_is_at_work_and_how_fast(tmp_path: Path, base_url: str) -> None:
    """Agents with their steps, what is queued and parked, money, speed; without a daemon, what the store knows."""
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
            assert {a.step for a in now.agents} <= {"starting", "waiting", "model", "tool"}
            assert [p.name for p in now.providers] == ["standin"]
            assert now.speed is None, "nobody can tell yet"
            station.completed("b", 12)
        after = observer.look()
        assert (after.daemon, after.silent, after.left) == (None, False, 0)
        assert [b.batch.name for b in after.batches] == ["b"]
        told = [p for e in observer.reader.events(Ref("b", "001")) for p in passages(e, "do 0")]
    _reads_well(told)


def test_speed_is_measured_from_the_start_of_what_is_open(tmp_path: Path, base_url: str) -> None:
    """Who looks late is told at once what was done before the first look, and how long the rest takes."""
    station = Station(tmp_path, base_url, model="latency-2.5+steps-1")
    with station.serving(), Observer(tmp_path / ".batchd") as observer:
        tasks = [{"first_prompt": f"do {n}"} for n in range(8)]
        station.drop("b.json", json.dumps({"tasks": tasks}).encode())
        until(lambda: len([*station.outbox.glob("b/00*.json")]) >= 4)
        late = observer.look()
        assert late.speed is not None
        # Two at once, each 2.7 seconds and a little.
        assert 25 < late.speed.tasks_a_minute < 50
        assert late.seconds_left is not None
        assert 2 < late.seconds_left < 15
        station.completed("b", 8)


def _reads_well(told: list[Passage]) -> None:
    """The prompt first, then each answer before its tool calls, the verdict and the end last."""
    kinds = [p.kind for p in told]
    assert kinds[:3] == [Kind.SYSTEM, Kind.PROMPT, Kind.ANSWER]
    assert kinds[-2:] == [Kind.VERDICT, Kind.END]
    assert kinds.count(Kind.ANSWER) == 4
    assert kinds.count(Kind.TOOL) == 3
    assert told[1].text == "do 0"
    assert told[3].title.startswith("shell ")
    assert all(p.usage is not None for p in told if p.kind is Kind.ANSWER)
    assert told[-1].title == "completed"
