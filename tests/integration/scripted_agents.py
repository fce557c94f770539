"""Agents that do one thing each, for tests of the pool: run in real worker processes, by name."""

from __future__ import annotations

import asyncio
import os
import signal

from batchd import agent, wire


async def dies(run: wire.Run, host: agent.Host) -> agent.Ended:
    """Work as usual; whoever is asked to die takes the worker with it."""
    if "die" in run.task.first_prompt:
        os.kill(os.getpid(), signal.SIGKILL)
    return await agent.run(run, host)


async def breaks(run: wire.Run, host: agent.Host) -> agent.Ended:
    """Break as a bug would."""
    raise RuntimeError(f"a bug, in {run.ref}, {host.clock() > 0}")


async def stops_its_process(run: wire.Run, host: agent.Host) -> agent.Ended:
    """Stop the whole worker at the first attempt, so that its heart stands still."""
    if run.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    await asyncio.sleep(0)
    return await agent.run(run, host)
