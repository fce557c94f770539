"""What a loop of agents costs: processor time and time,
taken in a process of its own that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

#: Agents at a time: as many as batchd has slots in the benchmarks.
AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call took."""

    #: Milliseconds of processor time, without the processes that were started, and with them.
    own: float
    whole: float
    #: From the first call of all to the last.
    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """What the agents do."""

    base_url: str
    model: str
    tasks: int
    calls: int


def measured(python: str, program: Path, work: Work) -> Cost:
    """Have a program of ``main`` do some work, and return what it prints."""
    words = [work.base_url, work.model, str(work.tasks), str(work.calls)]
    command = [python, str(program), *words]
    # What it shares with this process, it finds beside it, in whatever environment it runs.
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "MSWEA_SILENT_STARTUP": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environ)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


async def ran(command: str) -> str:
    """Run a command in a plain subprocess, and return what it says."""
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    return (await process.communicate())[0].decode()


async def in_turns(tasks: int, one: Callable[[int], Awaitable[object]]) -> None:
    """Do all tasks by number, so many at a time as agents are at work."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def turn(number: int) -> None:
        async with turns:
            await one(number)

    await asyncio.gather(*(turn(number) for number in range(tasks)))


def main(run: Callable[[Work], object]) -> None:
    """Warm up with a few tasks, do the work, print what a call took, as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("tasks", type=int)
    parser.add_argument("calls", type=int)
    args = parser.parse_args()
    run(Work(args.base_url, args.model, 4, args.calls))
    own, others = _cpu_s(resource.RUSAGE_SELF), _cpu_s(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    run(Work(args.base_url, args.model, args.tasks, args.calls))
    seconds = time.monotonic() - began
    own, others = _cpu_s(resource.RUSAGE_SELF) - own, _cpu_s(resource.RUSAGE_CHILDREN) - others
    made = args.tasks * args.calls / 1000
    print(json.dumps(asdict(Cost(own / made, (own + others) / made, seconds))))


def _cpu_s(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
