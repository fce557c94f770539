"""The same batch on this machine's own workers and on others': two machines in namespaces of their
own, or a Ray cluster of three nodes on this one. Results, accounting, CPU a call.

Run by `make scale-ray`, in the environment that has Ray. In turns, the median of so many pairs. All
of the outbox must be the same, times apart: each result with its tokens and its cost, the summary
with their sums, and each file that a task made; else it says what differs, and exits with 1. Two
figures of CPU: of batchd's own processes (daemon, bridge, workers, parents), and with Ray's (heads,
raylets, agents, actors), which stand there whether a batch runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
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
[ray]
address = "{address}"
min_processes = {processes}
cpus_per_process = 0.3
memory_mb_per_process = 64
token_file = "{token}"
"""
#: Until all workers are up (seconds).
_PATIENCE_S = 120.0
#: So many differences are named.
_MOST_NAMED = 10


@dataclass(frozen=True)
class Ran:
    """One batch."""

    seconds: float
    #: Of batchd's own processes, and with Ray's.
    own_cpu_s: float
    all_cpu_s: float
    #: What the outbox has, by path: what a file says, times and places apart.
    outbox: dict[str, Any]


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


def outbox(folder: Path, batch: str) -> dict[str, Any]:
    """Return what a batch has left in a spool's outbox, by path:
    results and summary without times, of all other files a digest.

    Transcripts and the report are left out: they have times in every line.
    """
    top = folder / "outbox" / batch
    found: dict[str, Any] = {}
    for path in sorted(path for path in top.rglob("*") if path.is_file()):
        name = str(path.relative_to(top))
        if path.parent != top:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(path.read_text().replace(str(folder), "SPOOL")))
    return found


def timeless(value: Any) -> Any:
    """Return a value of JSON without what is a time by its key, or a median of such."""
    if isinstance(value, list):
        return [timeless(each) for each in value]
    if not isinstance(value, dict):
        return value
    times = ("_s", "_at", "_s_median")
    return {key: timeless(each) for key, each in value.items() if not key.endswith(times)}


def differences(here: Any, there: Any, at: str = "") -> Iterator[str]:
    """Yield where two values of JSON differ, with what each says."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted(here.keys() | there.keys()):
            yield from differences(here.get(key), there.get(key), f"{at} {key}".strip())
    elif here != there:
        yield f"{at}: {here!r} here, {there!r} there"


def up(folder: Path) -> int:
    """Return how many workers a daemon has."""
    found = control.request(folder / ".batchd", "status")["workers"]
    return sum(worker["rss"] > 0 for worker in found)


def ran(folder: Path, config: str, tasks: int, others: list[int]) -> Ran:
    """Run a batch on a fresh daemon; ``others``: processes that are Ray's."""
    daemon = Daemon(folder, NO_REPORT + config)
    try:
        daemon.run("warm", 4 * _PROCESSES * _AGENTS)
        deadline = time.monotonic() + _PATIENCE_S
        while up(folder) < _PROCESSES:
            if time.monotonic() > deadline:
                raise SystemExit(f"only {up(folder)} of {_PROCESSES} workers came up")
            time.sleep(0.2)
        time.sleep(1.0)
        pids = tree(daemon.process.pid) + [p for other in others for p in tree(other)]
        own, every = cpu_s(ours(pids)), cpu_s(pids)
        seconds = daemon.run("b", tasks)
        pids = tree(daemon.process.pid) + [p for other in others for p in tree(other)]
        own, every = cpu_s(ours(pids)) - own, cpu_s(pids) - every
        return Ran(seconds, own, every, outbox(folder, "b"))
    finally:
        daemon.process.terminate()
        daemon.process.wait(60)


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Run a head and two nodes."""
    from ray.cluster_utils import Cluster  # machines do without

    node = {"num_cpus": 2, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**node)
    try:
        yield made
    finally:
        made.shutdown()


def here(config: str, tasks: int) -> Ran:
    """Run the batch on this machine's own workers."""
    with tempfile.TemporaryDirectory(prefix="batchd-pair-") as folder:
        Path(folder).chmod(0o755)
        return ran(Path(folder), config, tasks, [])


def there(config: str, tasks: int) -> Ran:
    """Run it on the cluster."""
    with cluster() as made, tempfile.TemporaryDirectory(prefix="batchd-pair-") as folder:
        Path(folder).chmod(0o755)
        token = Path(folder, "token")
        token.write_text("0" * 64)
        config += _RAY.format(
            address=made.address,
            token=token,
            processes=_PROCESSES,
        )
        nodes = [made.head_node, *made.worker_nodes]
        others = [p.process.pid for n in nodes for each in n.all_processes.values() for p in each]
        return ran(Path(folder), config, tasks, others)


def machines(config: str, tasks: int) -> Ran:
    """Run it on two machines in namespaces of their own, with half of the workers each."""
    worker = f'exec \\"{sys.executable}\\" -m batchd worker'
    tables = (
        f'{{name = "m{n}", processes = {_PROCESSES // 2}, command = '
        f'["unshare", "--uts", "--mount", "sh", "-c", "hostname m{n} && {worker}"]}}'
        for n in (1, 2)
    )
    config = config.replace(f"processes = {_PROCESSES}", "processes = 0")
    config = config.replace("[pool]\n", f"[pool]\nmachines = [{', '.join(tables)}]\n")
    return here(config, tasks)


def main() -> None:
    """Print what both come to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--model", default="steps-4", help="steps-4, or notes-4, which writes files"
    )
    parser.add_argument("--on", choices=["ray", "machines"], default="ray")
    args = parser.parse_args()
    elsewhere = there if args.on == "ray" else machines
    calls = args.tasks * int(args.model.rpartition("-")[2])
    server = Server()
    ratios: list[float] = []
    try:
        for _ in range(args.pairs):
            server.reset()
            config = (_PRICES + CONFIG).format(
                model=args.model, base_url=server.base_url, processes=_PROCESSES, agents=_AGENTS
            )
            local = here(config, args.tasks)
            away = elsewhere(config, args.tasks)
            found = [*differences(local.outbox, away.outbox)]
            ratios.append(away.own_cpu_s / local.own_cpu_s)
            print(
                f"{args.tasks} tasks, {calls} calls, {len(local.outbox)} files:"
                f" {'the same results' if not found else f'{len(found)} DIFFERENCES'}; "
                f"{local.seconds:.2f} s here, {away.seconds:.2f} s on {args.on}; CPU a call "
                f"{1e3 * local.own_cpu_s / calls:.2f} and {1e3 * away.own_cpu_s / calls:.2f} ms, "
                f"with all else {1e3 * away.all_cpu_s / calls:.2f} ms",
                flush=True,
            )
            if found:
                print(*found[:_MOST_NAMED], sep="\n")
                raise SystemExit(1)
    finally:
        server.process.terminate()
    print(
        f"CPU a call on {args.on}, of batchd's own: {statistics.median(ratios):.2f} times local's"
    )


if __name__ == "__main__":
    main()
