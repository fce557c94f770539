"""What the sandbox costs: the median time, and the mean processor time of all processes, of a shell
that runs `true` in it, above that of a plain one, in the same run: for a task of one command, with
a list of hosts too, and for a later command.

Run it as ``python benchmarks/bench_sandbox.py``. Exit code 1 where a bound does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox, Workplace

BOUND_MS = 2.0
HOSTS = ("a.example",)
ROUNDS, AT_ONCE = 20, 10
_TICK_MS = 1e3 / os.sysconf("SC_CLK_TCK")


def cpu_ms() -> float:
    """Return the processor time so far of this process and of all that it has started."""
    used, waiting = 0.0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        with contextlib.suppress(OSError):
            proc = Path("/proc", str(process))
            waiting += map(int, (proc / f"task/{process}/children").read_text().split())
            if process != os.getpid():
                used += int((proc / "schedstat").read_text().split()[0]) / 1e6
                words = (proc / "stat").read_text().rpartition(")")[2].split()
                used += (int(words[13]) + int(words[14])) * _TICK_MS
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used + 1e3 * (time.process_time() + waited.ru_utime + waited.ru_stime)


def plain() -> Awaitable[None]:
    """Run a plain shell, the quickest way there is."""
    subprocess.run(["bash", "-c", "true"], check=True)
    return asyncio.sleep(0)


async def run(place: Workplace) -> None:
    """Run one in the task's sandbox."""
    ran = await place.shell("true", timeout_s=10.0, stays=True)
    assert ran.exit_code == 0, ran.output


async def whole(place: Workplace) -> None:
    """Run one in a sandbox that is made for it, until all of it is dead."""
    await run(place)
    await place.clear("it is measured")


async def main(folder: str) -> int:
    """Take turns between plain and sandboxed, so that all see the same noise."""
    sandbox = Sandbox(SandboxPolicy(network=HOSTS))
    async with (
        await sandbox.open(
            f"{folder}/task", fresh=True, network=False, env={}, tmp=f"{folder}/tmp/task"
        ) as place,
        await sandbox.open(f"{folder}/other", fresh=True, network=HOSTS, env={}) as other,
        await sandbox.open(f"{folder}/third", fresh=True, network=False, env={}) as third,
    ):
        await run(third)
        work: dict[str, Callable[[], Awaitable[None]]] = {
            "plain shell": plain,
            "a task's first": lambda: whole(place),
            "with a list": lambda: whole(other),
            "a later one": lambda: run(third),
        }
        times: dict[str, list[float]] = {name: [] for name in work}
        cpu = dict.fromkeys(work, 0.0)
        for _ in range(ROUNDS):
            for name, one in work.items():
                before = cpu_ms()
                for _ in range(AT_ONCE):
                    began = time.perf_counter()
                    await one()
                    times[name].append((time.perf_counter() - began) * 1e3)
                cpu[name] += (cpu_ms() - before) / ROUNDS / AT_ONCE
    for name, taken in times.items():
        print(f"{name:<15} {statistics.median(taken):6.2f} ms, {cpu[name]:6.2f} ms of a processor")
    waits = statistics.median(times["a later one"]) - statistics.median(times["plain shell"])
    takes = cpu["a later one"] - cpu["plain shell"]
    holds = max(waits, takes) <= BOUND_MS
    verdict = "holds" if holds else "BROKEN"
    print(
        f"later: {waits:.2f} ms, {takes:.2f} ms above a plain one, bound {BOUND_MS:g} ms: {verdict}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        sys.exit(asyncio.run(main(made)))
