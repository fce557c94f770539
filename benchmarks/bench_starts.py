"""Starts, with the files in the page cache: ``batchd run`` to its first model call, an idle daemon
without a worker to its first call, and ``estimate`` beside ``status``.

A start has no floor that does the same: beside it stands what Python takes to start and load the
two libraries without which no call is made.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness import CONFIG, NO_REPORT, Server, row, stage

RUNS = 7


def command(spool: Path, *words: str) -> float:
    """Run a command of batchd's; return the CPU seconds that it and its children took."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "batchd", "--config", str(spool / "config.toml"), *words],
        check=True,
        capture_output=True,
    )
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def first_call(server: Server, spool: Path) -> float:
    """Return the seconds from the start of ``run`` to the call that its one task makes."""
    server.reset()
    begun = time.time()
    command(spool, "run", str(spool / "one.json"))
    at: float = server.get("/log")[0]["at"]
    return at - begun


def idle_calls() -> list[float]:
    """Return the seconds from files that are dropped to their first calls,
    each right after the daemon's only worker was killed.
    """
    found = []
    with stage("steps-1", processes=1, extra=NO_REPORT) as (server, daemon):
        daemon.run("warm", 1)
        for number in range(RUNS):
            server.reset()
            os.kill(daemon.youngest_worker(), signal.SIGKILL)
            dropped = daemon.drop(f"idle{number}", [{"first_prompt": "hello"}])
            daemon.summary(f"idle{number}")
            found.append(server.get("/log")[0]["at"] - dropped)
    return found


def floor() -> float:
    """Return the seconds that Python takes to load the client of models and the tokenizer."""
    begun = time.time()
    subprocess.run([sys.executable, "-c", "import openai, tiktoken"], check=True)
    return time.time() - begun


def medians(*ways: Callable[[], float]) -> list[float]:
    """Return the median of each way, taken in turns; the first time warms the page cache."""
    found = [[way() for way in ways] for _ in range(RUNS + 1)][1:]
    return [statistics.median(each) for each in zip(*found, strict=True)]


def main() -> int:
    """Measure and print."""
    server = Server()
    with tempfile.TemporaryDirectory(prefix="batchd-bench-") as name:
        spool = Path(name)
        (spool / "config.toml").write_text(
            CONFIG.format(model="steps-1", base_url=server.base_url, processes=2, agents=8)
        )
        (spool / "one.json").write_text(json.dumps([{"first_prompt": "hello"}]))
        start, loaded = medians(lambda: first_call(server, spool), floor)
        status, estimate = medians(
            lambda: command(spool, "status"),
            lambda: command(spool, "estimate", str(spool / "one.json")),
        )
    server.process.terminate()
    row("`run` to its first model call, median", f"{start:.2f} s", "≤ 1.20 s", held=start <= 1.2)
    row("  Python that loads openai and tiktoken", f"{loaded:.2f} s", "", held=True)
    idle = statistics.median(idle_calls())
    what = "an idle daemon without a worker, to its first model call"
    row(what, f"{idle:.2f} s", "≤ 0.60 s", held=idle <= 0.6)
    found = estimate / status
    row("`estimate` beside `status`, CPU", f"{found:.1f} x", "≤ 2.0 x", held=found <= 2)
    row("  `status`", f"{status * 1000:.0f} ms", "", held=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
