"""Kills, freezes, drains and restarts on a Ray cluster of three nodes,
judged by the model server's own log and the outbox.

`make chaos-cluster` is the long form: 500 tasks, 20 strikes.
`BATCHD_CHAOS_SEED` strikes in the same order again.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from arena import CALLS, arena, tasks, until
from cluster_spools import TOKEN
from patience import PATIENCE_S
from ray_monkey import RayMonkey
from ray_nodes import three_nodes
from verdict import judge

TASKS = int(os.environ.get("BATCHD_CHAOS_TASKS", "40"))
STRIKES = int(os.environ.get("BATCHD_CHAOS_STRIKES", "4"))
SEED = int(os.environ.get("BATCHD_CHAOS_SEED", str(time.time_ns() % 1_000_000)))
_LEASE_S = 6.0
_POOL = """\
[pool]
engine = "ray"
"""
_MORE = """\
[ray]
address = "{address}"
memory_mb_per_process = 64
token_file = "{token}"
"""


@pytest.mark.timeout(3600)
def test_strikes_on_a_cluster_lose_nothing_and_pay_nothing_twice(tmp_path: Path) -> None:
    """Each task has one result, no recorded answer is asked for again,
    no process is left, and the money is accounted for.
    """
    with (
        arena(tmp_path, "--latency", "0.5", processes=6) as (place, model),
        three_nodes(place.mark) as nodes,
    ):
        config, token = place.folder / "config.toml", place.folder / "ray-token"
        token.write_text(TOKEN)
        text = config.read_text().replace("[pool]\n", _POOL)
        text = text.replace("heartbeat_timeout_s = 2.0", f"heartbeat_timeout_s = {_LEASE_S}")
        config.write_text(text + _MORE.format(address=nodes.address, token=token))
        monkey = RayMonkey(place, nodes, SEED, STRIKES, _LEASE_S)
        place.start()
        begun = time.monotonic()
        folders = [place.drop("c1", tasks(TASKS))]
        while monkey.left or not _ended(folders[-1]):
            assert time.monotonic() - begun < 4 * PATIENCE_S + 60 * STRIKES, place.tail()
            time.sleep(monkey.rng.uniform(0.0, 1.0))
            # In the middle of the work, on any machine: by how much of it is done.
            done = sum(len([*folder.glob("[0-9]*.json")]) for folder in folders)
            if monkey.left and done * (STRIKES + 1) >= TASKS * (monkey.done.total() + 1):
                monkey.strike()
            place.keep_alive()
            if monkey.left and _ended(folders[-1]):
                # A strike takes its time, and the nodes that it spares have done the rest.
                more = tasks(TASKS, first=TASKS * len(folders))
                folders.append(place.drop(f"c{len(folders) + 1}", more))
        took = time.monotonic() - begun
        place.stop()
        until(lambda: not monkey.ours(), 5, lambda: f"left on nodes: {monkey.ours()}")
        figures = [judge(folder, model.log(), TASKS) for folder in folders]
        print(f"\nseed {SEED}, {took:.0f} s: {monkey.done.total()} strikes {dict(monkey.done)}")
        for folder, came_to in zip(folders, figures, strict=True):
            print(f"{folder.name}: {came_to}")
            assert came_to.statuses == {"completed": TASKS}
            assert came_to.calls == TASKS * CALLS
            _money_adds_up(folder)
        assert model.repeated() <= sum(each.unsettled for each in figures)


def _ended(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _money_adds_up(folder: Path) -> None:
    """Hold what results say that they cost to what they used, and the summary to their sum."""
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for result in results:
        usage = result["usage"]
        cost = (usage["input_tokens"] * 1.0 + usage["output_tokens"] * 2.0) / 1e6
        assert abs(result["cost"]["total"] - cost) < 1e-9, result["task"]
    summary = json.loads((folder / "summary.json").read_text())
    total = sum(result["cost"]["total"] for result in results)
    assert abs(summary["cost"]["total"] - total) < 1e-6
