"""What the sandbox costs: the median time of `true` in it, above that of a plain one, in the same run; with a list of hosts, too.

Run it as ``python benchmarks/bench_sandbox.py``. Exit code 1 where the bound does not hold.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox, Workplace

BOUND_MS = 8.0
HOSTS = ("a.example",)
ROUNDS = 150


def plain_ms() -> float:
    """Return the time of a plain ``true``, the quickest way there is, in milliseconds."""
    began = time.perf_counter()
    subprocess.run(["true"], check=True)
    return (time.perf_counter() - began) * 1e3


async def sandboxed_ms(place: Workplace) -> float:
    """Return the time of one command, from its start to the death of all of it, in milliseconds."""
    ran = await place.run(["true"], timeout_s=10.0)
    assert ran.exit_code == 0, ran.output
    return ran.seconds * 1e3


async def main() -> int:
    """Take turns between plain and sandboxed, so that both see the same noise."""
    plain: list[float] = []
    sandboxed: list[float] = []
    listed: list[float] = []
    sandbox = Sandbox(SandboxPolicy(network=HOSTS))
    with (
        tempfile.TemporaryDirectory() as folder,
        await sandbox.open(
            f"{folder}/task", fresh=True, network=False, env={}, tmp=f"{folder}/tmp/task"
        ) as place,
        await sandbox.open(f"{folder}/other", fresh=True, network=HOSTS, env={}) as other,
    ):
        for _ in range(ROUNDS):
            plain.append(plain_ms())
            sandboxed.append(await sandboxed_ms(place))
            listed.append(await sandboxed_ms(other))
    floor, median = statistics.median(plain), statistics.median(sandboxed)
    holds = median - floor <= BOUND_MS
    print(f"plain `true`      {floor:6.2f} ms (median of {ROUNDS})")
    print(f"sandboxed `true`  {median:6.2f} ms")
    print(
        f"with a list       {statistics.median(listed):6.2f} ms: hosts, and a proxy that keeps to them"
    )
    print(
        f"difference        {median - floor:6.2f} ms, bound {BOUND_MS:g} ms: {'holds' if holds else 'BROKEN'}"
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
