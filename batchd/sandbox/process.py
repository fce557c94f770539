"""Runs one command to its end: time limit, output, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

from batchd.errors import SandboxError
from batchd.masking import Masker
from batchd.sandbox.child import Child
from batchd.sandbox.memory import memory_file
from batchd.sandbox.network import Door
from batchd.sandbox.output import Output, Reader
from batchd.sandbox.shortage import SHORT, patiently

#: Starts a command, given the descriptors of its input, if it has any, and of its output.
Start = Callable[[int | None, int], Child]
#: What a shell answers for a command that cannot be executed.
_CANNOT_RUN = 126


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended."""

    #: As a shell tells it (128 and the signal for a killed one); None where time ran out.
    exit_code: int | None
    #: Standard output and error as they came; valid Unicode, bytes that are not UTF-8 replaced.
    output: str
    timed_out: bool = False
    #: Whether the middle of the output was cut out, which it then says.
    cut: bool = False
    #: From its start to the death of all that it started.
    seconds: float = 0.0
    #: Where it wanted to go and might not, a line each.
    refused: tuple[str, ...] = ()


async def run(
    start: Start,
    *,
    stdin: bytes | None,
    timeout_s: float,
    limit: int,
    masker: Masker,
    door: Door | None = None,
) -> Ran:
    """Run a command and all that it starts, for at most ``timeout_s``, and keep ``limit`` bytes of output, masked.

    ``door``: its way to some hosts, for a command that is held back until it has one.

    Raises ``SandboxError`` where its sandbox cannot be set up. When cancelled, it kills them all first.
    """
    fresh = functools.partial(Output, limit, masker)
    try:
        return await patiently(functools.partial(_once, start, stdin, timeout_s, fresh, door))
    except OSError as error:
        if error.errno == errno.E2BIG:
            return Ran(exit_code=_CANNOT_RUN, output="the command is too long\n")
        raise SandboxError(f"a command could not be run: {error}") from error


async def _once(
    start: Start,
    stdin: bytes | None,
    timeout_s: float,
    fresh: Callable[[], Output],
    door: Door | None,
) -> Ran:
    """Run a command, once. Raises ``OSError`` only where nothing of it ran."""
    clock = asyncio.get_running_loop().time
    output = fresh()
    child, reader = _begin(start, stdin, output)
    began = clock()
    try:
        timed_out, refused = await _to_the_end(child, timeout_s, door)
    except OSError as error:
        # Not chained: it has run, and nobody may take this for a shortage and begin it anew.
        raise SandboxError(f"a command could not be followed to its end: {error}") from None
    finally:
        reader.close(drain=True)
    if not (child.reached or timed_out):
        raise _not_set_up(output.text().strip())
    return Ran(
        exit_code=None if timed_out else child.exit_code,
        output=output.text(),
        timed_out=timed_out,
        cut=bool(output.cut),
        seconds=clock() - began,
        refused=refused,
    )


def _not_set_up(said: str) -> OSError | SandboxError:
    """Return why there is no sandbox, by what bwrap said: what it was short of, or anything else."""
    message = f"the sandbox could not be set up: {said}"
    number = next((n for n in SHORT if os.strerror(n) in said), None)
    return SandboxError(message) if number is None else OSError(number, message)


def _begin(start: Start, stdin: bytes | None, output: Output) -> tuple[Child, Reader]:
    """Start the child, and what reads from it. Nothing ran where this fails."""
    read_end, write_end = os.pipe()
    reader = Reader(read_end, output)
    try:
        return _started(start, stdin, write_end), reader
    except BaseException:
        reader.close(drain=False)
        raise


def _started(start: Start, stdin: bytes | None, write_end: int) -> Child:
    """Start the child; afterwards it alone holds its ends."""
    source = None
    try:
        if stdin is not None:
            source = memory_file(stdin)
        return start(source, write_end)
    finally:
        os.close(write_end)
        if source is not None:
            os.close(source)


async def _to_the_end(
    child: Child, timeout_s: float, door: Door | None
) -> tuple[bool, tuple[str, ...]]:
    """Return, when all of it is dead, whether its time ran out, and what it was refused."""
    timed_out, refusals = False, None
    try:
        async with asyncio.timeout(timeout_s):
            async with door.opened(child) if door else contextlib.nullcontext() as refusals:
                await child.wait()
    except TimeoutError:
        timed_out = True
    finally:
        await child.end()
    return timed_out, refusals.told() if refusals else ()
