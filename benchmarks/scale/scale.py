"""How many agents one daemon holds:
simulated workers that speak the real protocol over pipes, as those of other machines do.

A step is an ``Ask`` with what the tool before has printed (500 bytes), its permit, and an answer of
4 KB: two durable commits. As fast as it goes, for the ceiling, or with ``--pause`` seconds before
each step, as agents have that wait for models.
The workers are on this machine too, and their CPU is shown beside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import NO_REPORT, TICKS, Daemon, tree

_HERE = Path(__file__).parent
#: Agents of one worker.
_EACH = 500
_CONFIG = """\
[agent]
model = "bench/simulated"
[providers.bench]
base_url = "http://127.0.0.1:9/v1"
max_concurrent = 100000
[models."bench/simulated"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 0
agents_per_process = {each}
machines = [{{name = "simulated", command = ["{python}", "{program}"], processes = {count}}}]
heartbeat_timeout_s = 120.0
[evaluation]
by = "none"
[limits]
max_calls = 100000
[cost]
compare = []
[log]
level = "warning"
"""


@dataclass(frozen=True)
class Figures:
    """What one run came to."""

    agents: int
    steps: int
    seconds: float
    daemon_cpu_s: float
    workers_cpu_s: float
    peak_mb: float

    def line(self) -> str:
        """Return a row of the table."""
        rate = self.steps / self.seconds
        return (
            f"{self.agents:>7,} {self.steps:>9,} {rate:>9,.0f} {1e3 * self.daemon_cpu_s / self.steps:>11.3f}"
            f" {1e3 * self.workers_cpu_s / self.steps:>11.3f} {self.daemon_cpu_s / self.seconds:>9.2f}"
            f" {self.peak_mb:>9.0f}"
        )


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of some processes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def up(spool: Path) -> int:
    """Return how many workers the daemon has."""
    command = [sys.executable, "-m", "batchd", "--config", str(spool / "config.toml")]
    said = subprocess.run(
        [*command, "status", "--json"], capture_output=True, text=True, check=True
    )
    return sum(w["rss"] > 0 for w in json.loads(said.stdout)["daemon"]["workers"])


@contextlib.contextmanager
def serving(agents: int) -> Iterator[tuple[Daemon, list[int]]]:
    """Run a daemon with simulated workers for so many agents; yield it, and their processes."""
    with tempfile.TemporaryDirectory(prefix="batchd-scale-") as folder:
        each = min(_EACH, agents)
        count = -(-agents // each)
        config = _CONFIG.format(
            each=each, python=sys.executable, program=_HERE / "simulated.py", count=count
        )
        daemon = Daemon(Path(folder), NO_REPORT + config)
        try:
            while up(Path(folder)) < count:
                time.sleep(0.2)
            own = daemon.process.pid
            yield daemon, [pid for pid in tree(own) if pid != own]
        finally:
            daemon.process.terminate()
            daemon.process.wait(60)


def measured(agents: int, steps: int, pause_s: float) -> Figures:
    """Run a task of so many steps for each agent."""
    with serving(agents) as (daemon, pids):
        prompt = f"{steps} {pause_s}"
        own, theirs = cpu_s([daemon.process.pid]), cpu_s(pids)
        begun = time.monotonic()
        daemon.drop("b", [{"first_prompt": prompt}] * agents)
        counts = daemon.summary("b", 3600)["counts"]
        seconds = time.monotonic() - begun
        if counts["completed"] != agents:
            raise SystemExit(f"{counts}\n{(daemon.spool / 'log').read_text()[-3000:]}")
        return Figures(
            agents=agents,
            steps=agents * steps,
            seconds=seconds,
            daemon_cpu_s=cpu_s([daemon.process.pid]) - own,
            workers_cpu_s=cpu_s(pids) - theirs,
            peak_mb=daemon.peak_mb(),
        )


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[1000, 5000, 10_000])
    parser.add_argument("--steps", type=int, default=20, help="of each agent")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each step")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores; ms of CPU a step: the daemon's, the workers'")
    print(
        f"{'agents':>7} {'steps':>9} {'a second':>9} {'daemon':>11} {'workers':>11} {'cores':>9} {'peak MB':>9}"
    )
    for agents in args.agents:
        print(measured(agents, args.steps, args.pause).line(), flush=True)


if __name__ == "__main__":
    main()
