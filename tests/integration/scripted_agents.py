"""Agents that do one thing each, for tests of the pool: run in real worker processes, by name."""

from __future__ import annotations

import asyncio
import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

from batchd import events, wire
from batchd.agent import loop, services
from batchd.errors import StaleAttemptError
from batchd.pool import worker
from batchd.records import Purpose

#: What ``grows`` holds on to.
_KEPT: list[bytes] = []


async def dies(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Work as usual; a task that is asked to die takes the worker with it."""
    if "die" in run.task.first_prompt:
        os.kill(os.getpid(), signal.SIGKILL)
    return await loop.run(run, host)


async def dies_once(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Work as usual; a task that is to die takes the first worker with it."""
    if "die" in run.task.first_prompt and run.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return await loop.run(run, host)


async def dies_when_asked(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Work as usual;
    a task that is to die does so once there is a file ``ask`` beside the results.
    """
    if "die" in run.task.first_prompt:
        while not Path(run.batch.folder, "ask").exists():  # noqa: ASYNC110, ASYNC240 (another process makes it)
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return await loop.run(run, host)


async def breaks(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Break as a bug would."""
    raise RuntimeError(f"a bug, in {run.ref}, {host.clock() > 0}")


async def stops_its_process(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Stop the whole worker at the first attempt, so that its heart stands still."""
    if run.attempt == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    await asyncio.sleep(0)
    return await loop.run(run, host)


def _note(run: wire.Run, name: str, text: str) -> None:
    """Leave word for the test, beside the results."""
    with Path(run.batch.folder, name).open("a") as file:
        file.write(text)


async def notes_its_process(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Leave a line about where each attempt ran;
    work as usual, or die where the prompt asks for it.
    """
    _note(run, "attempts", f"{os.getpid()} {run.ref.task} {run.attempt}\n")
    if "die" in run.task.first_prompt:
        # Late enough for the neighbours to be at work.
        await asyncio.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return await loop.run(run, host)


async def dies_before_any_event(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Take the worker with it before anything is recorded."""
    os.kill(os.getpid(), signal.SIGKILL)
    return await loop.run(run, host)


async def spins(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Keep the process busy for ever, its loop and its signal handlers too."""
    while run and host:
        pass
    return await loop.run(run, host)


async def clings(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Take back the order to be killed with the daemon,
    and see nothing of its death for a while.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    pipe = parent.sentinel
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) & ~os.O_ASYNC)
    _note(run, "clings", f"{os.getpid()}")
    time.sleep(8)  # noqa: ASYNC251 (nothing else may run)
    return await loop.run(run, host)


async def breaks_the_heart(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Take away what the heart of the worker needs,
    at the first attempt, and wait for what never comes.
    """
    if run.attempt == 1:
        os.close(worker._statm(os.getpid()))
        await asyncio.Event().wait()
    return await loop.run(run, host)


async def speaks_for_another_attempt(run: wire.Run, host: Any) -> loop.AttemptEnd:
    """Record and ask under an attempt that is not its own; then work as usual."""
    own, host.attempt = host.attempt, host.attempt - 1
    body = msgspec.Raw(events.encode(events.Suspended(at=0.0, cause="drain")))
    common: dict[str, Any] = {"ref": run.ref, "attempt": host.attempt, "seq": 0, "events": (body,)}
    refused = 0
    try:
        await host.record(wire.Record(**common))
    except StaleAttemptError:
        refused += 1
    try:
        await host.ask(
            wire.Ask(
                **common,
                purpose=Purpose.AGENT,
                model=run.task.model,
                input_tokens=1,
                max_output_tokens=1,
            )
        )
    except StaleAttemptError:
        refused += 1
    _note(run, "refused", f"{refused}")
    host.attempt = own
    return await loop.run(run, host)


async def grows(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Keep memory that is never given back, and stay for a few heartbeats."""
    _note(run, "attempts", f"{os.getpid()} {run.ref.task} {run.attempt}\n")
    _KEPT.append(b"x" * (200 << 20))
    await asyncio.sleep(1.2)
    return await loop.run(run, host)


async def waits_for_ever(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Wait for what never comes at the first attempt, as an agent does whose wake-up is lost."""
    if run.attempt == 1:
        await asyncio.Event().wait()
    return await loop.run(run, host)


async def makes_a_folder(run: wire.Run, host: services.AgentServices) -> loop.AttemptEnd:
    """Make the folder that its prompt names."""
    os.mkdir(run.task.first_prompt)  # one system call, in which all of it stands
    return await loop.run(run, host)
