"""The same batch on this machine's own workers and on a Ray cluster of three nodes on it:
results, accounting, CPU a call.

Run by `make scale-ray`, in the environment that has Ray. In turns, the median of so many pairs. Two
figures of CPU: of batchd's own processes (daemon, launcher, keepers, workers), and with Ray's
(heads, raylets, agents, actors), which stand there whether a batch runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import CONFIG, NO_REPORT, TICKS, Daemon, Server, tree
from ray.cluster_utils import Cluster

from batchd import control

_PROCESSES, _AGENTS = 6, 4
#: So that what tasks cost can be compared, too.
_PRICES = """\
[models."bench/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
"""
#: Goes on with the harness's section of the pool.
_RAY = """\
engine = "ray"
listen = "0.0.0.0:{port}"
advertise = "{host}:{port}"
[ray]
address = "{address}"
min_processes = {processes}
cpus_per_process = 0.3
memory_mb_per_process = 64
token_file = "{token}"
[workspace]
shared = true
"""


@dataclass(frozen=True)
class Ran:
    """One batch."""

    seconds: float
    #: Of batchd's own processes, and with Ray's.
    own_cpu_s: float
    all_cpu_s: float
    #: By task: what its result says, times and places apart.
    results: dict[str, Any]


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of some processes and of what they have waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:13]))
    return total / TICKS


def ours(pids: list[int]) -> list[int]:
    """Return those that run batchd: Ray's actors carry it, and count as Ray's."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"batchd" in line or b"multiprocessing" in line:
                found.append(pid)
    return found


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same wherever a task ran."""
    usage = {name: result["usage"][name] for name in ("calls", "input_tokens", "output_tokens")}
    return {
        "status": result["status"],
        "usage": usage,
        "cost": result["cost"],
        "files": sorted((result.get("files") or {}).get("created", ())),
        "rounds": result["evaluation"]["rounds"]
        if "rounds" in (result["evaluation"] or {})
        else None,
    }


def up(folder: Path) -> int:
    """Return how many workers a daemon has."""
    found = control.request(folder / ".batchd", "status")["workers"]
    return sum(worker["rss"] > 0 for worker in found)


def ran(folder: Path, config: str, tasks: int, others: list[int]) -> Ran:
    """Run a batch on a fresh daemon; ``others``: processes that are Ray's."""
    daemon = Daemon(folder, NO_REPORT + config)
    try:
        daemon.run("warm", 4 * _PROCESSES * _AGENTS)
        while up(folder) < _PROCESSES:
            time.sleep(0.2)
        time.sleep(1.0)
        pids = tree(daemon.process.pid) + [p for other in others for p in tree(other)]
        own, every = cpu_s(ours(pids)), cpu_s(pids)
        seconds = daemon.run("b", tasks)
        pids = tree(daemon.process.pid) + [p for other in others for p in tree(other)]
        own, every = cpu_s(ours(pids)) - own, cpu_s(pids) - every
        results = {
            path.stem: plain(json.loads(path.read_bytes()))
            for path in (folder / "outbox/b").glob("[0-9]*.json")
        }
        return Ran(seconds, own, every, results)
    finally:
        daemon.process.terminate()
        daemon.process.wait(60)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a head and two nodes."""
    node = {"num_cpus": 2, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**node)
    try:
        yield made
    finally:
        made.shutdown()


def main() -> None:
    """Print what both come to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="steps-4")
    args = parser.parse_args()
    calls = args.tasks * int(args.model.rpartition("-")[2])
    server = Server()
    ratios: list[float] = []
    try:
        for _ in range(args.pairs):
            server.reset()
            config = (_PRICES + CONFIG).format(
                model=args.model, base_url=server.base_url, processes=_PROCESSES, agents=_AGENTS
            )
            with tempfile.TemporaryDirectory(prefix="batchd-pair-") as folder:
                Path(folder).chmod(0o755)
                local = ran(Path(folder), config, args.tasks, [])
            with cluster() as made, tempfile.TemporaryDirectory(prefix="batchd-pair-") as folder:
                Path(folder).chmod(0o755)
                token = Path(folder, "token")
                token.write_text("0" * 64)
                with socket.create_server(("", 0)) as probe:
                    port = probe.getsockname()[1]
                config += _RAY.format(
                    port=port,
                    host=made.head_node.node_ip_address,
                    address=made.address,
                    token=token,
                    processes=_PROCESSES,
                )
                nodes = [made.head_node, *made.worker_nodes]
                others = [
                    p.process.pid for n in nodes for each in n.all_processes.values() for p in each
                ]
                away = ran(Path(folder), config, args.tasks, others)
            same = local.results == away.results
            ratios.append(away.own_cpu_s / local.own_cpu_s)
            print(
                f"{args.tasks} tasks, {calls} calls: {'the same results' if same else 'DIFFERENT RESULTS'}; "
                f"{local.seconds:.2f} s here, {away.seconds:.2f} s on Ray; CPU a call "
                f"{1e3 * local.own_cpu_s / calls:.2f} and {1e3 * away.own_cpu_s / calls:.2f} ms, "
                f"with Ray's own {1e3 * away.all_cpu_s / calls:.2f} ms",
                flush=True,
            )
            if not same:
                raise SystemExit(1)
    finally:
        server.process.terminate()
    print(f"CPU a call on Ray, of batchd's own: {statistics.median(ratios):.2f} times local's")


if __name__ == "__main__":
    main()
