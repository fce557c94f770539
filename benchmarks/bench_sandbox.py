"""What the sandbox costs: the median time of `true` in it, above that of a plain one,
in the same run; with a list of hosts, and in a sandbox that stays, too.

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
STAYING_BOUND_MS = 2.0
HOSTS = ("a.example",)
ROUNDS = 150


def plain_ms(*command: str) -> float:
    """Return the time of a plain command, the quickest way there is, in milliseconds."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return (time.perf_counter() - began) * 1e3


async def sandboxed_ms(place: Workplace) -> float:
    """Return the time of one command, from its start to the death of all of it, in milliseconds."""
    ran = await place.run(["true"], timeout_s=10.0)
    assert ran.exit_code == 0, ran.output
    return ran.seconds * 1e3


async def entered_ms(place: Workplace) -> float:
    """Return the time of one that a shell runs in the sandbox that stays, in milliseconds."""
    ran = await place.shell("true", timeout_s=10.0, stays=True)
    assert ran.left, "something else runs there"
    return ran.seconds * 1e3


async def main() -> int:
    """Take turns between plain and sandboxed, so that all see the same noise."""
    taken: tuple[list[float], ...] = ([], [], [], [], [])
    plain, sandboxed, listed, shell, entered = taken
    sandbox = Sandbox(SandboxPolicy(network=HOSTS))
    with (
        tempfile.TemporaryDirectory() as folder,
        await sandbox.open(
            f"{folder}/task", fresh=True, network=False, env={}, tmp=f"{folder}/tmp/task"
        ) as place,
        await sandbox.open(f"{folder}/other", fresh=True, network=HOSTS, env={}) as other,
        await sandbox.open(f"{folder}/third", fresh=True, network=False, env={}) as third,
    ):
        await third.shell("sleep 1000 &", timeout_s=10.0, stays=True)
        for _ in range(ROUNDS):
            plain.append(plain_ms("true"))
            sandboxed.append(await sandboxed_ms(place))
            listed.append(await sandboxed_ms(other))
            shell.append(plain_ms("bash", "-c", "true"))
            entered.append(await entered_ms(third))
        await third.clear("all is measured")
    above = statistics.median(sandboxed) - statistics.median(plain)
    inside = statistics.median(entered) - statistics.median(shell)
    print(f"plain `true`       {statistics.median(plain):6.2f} ms (median of {ROUNDS})")
    print(f"sandboxed `true`   {statistics.median(sandboxed):6.2f} ms")
    print(
        f"with a list        {statistics.median(listed):6.2f} ms: hosts, and a proxy that keeps to them"
    )
    print(f"plain shell        {statistics.median(shell):6.2f} ms, that runs `true`")
    print(f"where one stays    {statistics.median(entered):6.2f} ms, by a shell too")
    holds = True
    for name, found, bound in (
        ("difference", above, BOUND_MS),
        ("where one stays", inside, STAYING_BOUND_MS),
    ):
        holds &= found <= bound
        verdict = "holds" if found <= bound else "BROKEN"
        print(f"{name:<18} {found:6.2f} ms, bound {bound:g} ms: {verdict}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
