"""SIGKILL and SIGSTOP at random instants, judged by the model server's own log and the outbox.

`BATCHD_CHAOS_SEED` repeats a run; `BATCHD_CHAOS_TASKS` makes it longer, as `make chaos` does.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from arena import CALLS, Arena, Model, arena, tasks, until
from monkey import KILLS, Monkey
from patience import PATIENCE_S
from verdict import judge

from batchd import control
from batchd.errors import NoDaemonError

pytestmark = pytest.mark.in_turns

TASKS = int(os.environ.get("BATCHD_CHAOS_TASKS", "20"))
SEED = int(os.environ.get("BATCHD_CHAOS_SEED", str(time.time_ns() % 1_000_000)))
LONG = TASKS >= 500
#: Kills that a run must have seen, and strikes after which it is left alone:
#: the short form has a minute.
_LEAST, _MOST = (40, 100_000) if LONG else (1, 8)


def _answers(place: Arena) -> bool:
    with contextlib.suppress(NoDaemonError):
        control.request(place.folder / ".batchd", "status")
        return True
    return False


def _run(place: Arena, model: Model, monkey: Monkey, count: int, pause_s: float) -> None:
    """Work through a batch while the monkey strikes; then print the figures, and judge."""
    place.start()
    folder = place.drop("c", tasks(count))
    begun = time.monotonic()
    while not (folder / "summary.json").exists():
        assert time.monotonic() - begun < 4 * PATIENCE_S + count, place.tail()
        time.sleep(monkey.rng.uniform(0.05, 2 * pause_s))
        place.keep_alive()
        if monkey.counts.total() < _MOST:
            monkey.strike()
    took = time.monotonic() - begun
    monkey.settled()
    place.keep_alive()
    # One that was just started again handles no signal yet.
    until(lambda: _answers(place), PATIENCE_S, place.tail)
    place.stop()
    until(lambda: not place.processes(), 5, lambda: f"orphans: {place.processes()}")
    figures = judge(folder, model.log(), count)
    print(f"\nseed {SEED}, {took:.0f} s: {monkey.kills} kills {dict(monkey.counts)}; {figures}")
    assert figures.statuses == {"completed": count}
    assert figures.calls == count * CALLS
    assert model.repeated() <= figures.unsettled


@pytest.mark.timeout(3600)
def test_kills_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    """Every task ends once, whole;
    no recorded answer is asked for again, and no command is run again.

    What was in flight is in the results as unsettled, and no process outlives its daemon.
    """
    with arena(tmp_path, "--latency", "0.1", agents=8 if LONG else 4) as (place, model):
        monkey = Monkey(place, model, SEED)
        _run(place, model, monkey, TASKS, 0.8 if LONG else 0.4)
    assert monkey.kills >= _LEAST


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_server_that_dies_and_returns_costs_only_calls(tmp_path: Path) -> None:
    """Outages are waited out, parked where they last:
    all tasks complete, and lost calls are unsettled, not repeated.
    """
    harm = {**KILLS, "server": 80}
    count = max(16, TASKS // 5)
    with arena(tmp_path, "--latency", "0.1") as (place, model):
        config = place.folder / "config.toml"
        parks = "max_retries = 6\nprobe_s = 0.2\nmax_probe_s = 1.0"
        config.write_text(config.read_text().replace("max_retries = 20", parks))
        monkey = Monkey(place, model, SEED, harm)
        _run(place, model, monkey, count, 0.5)
    assert monkey.counts["server"]
