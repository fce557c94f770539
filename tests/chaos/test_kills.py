"""SIGKILL at random instants of workers and daemon, judged by the server's own count and the outbox.

`BATCHD_CHAOS_SEED` repeats a run; `BATCHD_CHAOS_TASKS` makes it longer.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from batchd import control

CALLS = 3
TASKS = int(os.environ.get("BATCHD_CHAOS_TASKS", "60"))
SEED = int(os.environ.get("BATCHD_CHAOS_SEED", str(time.time_ns() % 1_000_000)))


def start(spool: Any) -> subprocess.Popen[bytes]:
    """Start a daemon and return when it answers."""
    with (spool.folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(spool.command("serve"), stderr=log, env=spool.environment)

    def up() -> bool:
        assert process.poll() is None, (spool.folder / "daemon.log").read_text()
        return bool(spool.answers())

    spool.eventually(up)
    return process


def workers(spool: Any) -> list[int]:
    """Return the worker processes, by the daemon's own word."""
    told = control.request(spool.folder / ".batchd", "status")
    return [worker["pid"] for worker in told["workers"] if worker["pid"]]


def ended(folder: Path) -> bool:
    """Tell whether the batch has its summary."""
    return (folder / "summary.json").exists()


@pytest.mark.timeout(240)
def test_kills_lose_nothing_and_pay_nothing_twice(spool: Any, slow_server: str) -> None:
    """Every task ends once, whole; each recorded answer was asked for once; what was in flight is unsettled."""
    rng = random.Random(SEED)
    config = spool.folder / "config.toml"
    text = config.read_text().replace("steps-2", f"steps-{CALLS}")
    lines = [f'base_url = "{slow_server}"' if "base_url" in x else x for x in text.splitlines()]
    pool = "processes = 3\nagents_per_process = 4\nmax_attempts = 99"
    config.write_text("\n".join(lines).replace("processes = 2", pool) + "\n")
    path = spool.write("c.json", [{"first_prompt": f"task {i}"} for i in range(TASKS)])
    daemon, kills = start(spool), 0
    path.rename(spool.folder / "inbox" / "c.json")
    folder = spool.folder / "outbox" / "c"
    try:
        while not ended(folder):
            time.sleep(rng.uniform(0.1, 0.6))
            if rng.random() < 0.3:
                daemon.kill()
                daemon.wait()
                daemon = start(spool)
                kills += 1
            elif victims := workers(spool):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                kills += 1
    finally:
        daemon.terminate()
        daemon.wait(30)
    found = [json.loads(p.read_bytes()) for p in folder.glob("[0-9]*.json")]
    with urllib.request.urlopen(f"{slow_server.removesuffix('/v1')}/totals") as answer:
        requests = json.load(answer)["requests"]
    unsettled = sum(r["usage"]["unsettled_calls"] for r in found)
    print(f"seed {SEED}: {kills} kills, {requests} requests, {unsettled} calls unsettled")  # noqa: T201 (what a chaos run is read for)
    assert [r["status"] for r in found] == ["completed"] * TASKS
    assert sum(r["usage"]["calls"] for r in found) == TASKS * CALLS
    assert requests - TASKS * CALLS <= unsettled
    assert kills
