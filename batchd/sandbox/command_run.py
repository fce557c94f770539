"""The end of a command; and the run of one without a sandbox: time limit, output, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from batchd.errors import SandboxError
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.command_watch import CommandWatcher, WatchedSandbox
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.memory_files import memory_file
from batchd.sandbox.output import CommandOutput, OutputReader
from batchd.sandbox.resource_shortage import patiently

#: Starts a command, given the descriptors of its input, if it has any, and of its output.
Start = Callable[[int | None, int], ChildProcess]
#: What a shell answers for a command that cannot be executed.
_CANNOT_RUN = 126
#: Said of one of which the words take more than a process can have.
TOO_LONG = "the command is too long\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEnd:
    """The end of a command."""

    #: As a shell reports it (128 and the signal for a killed one); None where time ran out.
    exit_code: int | None
    #: Standard output and error as they came; valid Unicode, bytes that are not UTF-8 replaced.
    output: str
    #: Whether the middle of the output was cut out, which it then says.
    cut: bool = False
    #: From its start to the death of all that it started.
    seconds: float = 0.0
    #: Where it wanted to go and might not, a line each.
    refused: tuple[str, ...] = ()
    #: Which limit was passed, by what and where it stands; empty: none.
    excess: str = ""
    #: Whether it was killed for that.
    killed: bool = False
    #: What goes on in its sandbox, by name.
    left: tuple[str, ...] = ()
    #: The file that it prints to from now on, as commands see it; empty: what it had before it.
    log: str = ""

    @classmethod
    def of(
        cls, began: float, output: CommandOutput, exit_code: int | None, excess: str = ""
    ) -> CommandEnd:
        """Return the end, at this moment, of one that began at a time of the loop's."""
        return cls(
            exit_code=exit_code,
            output=output.text(),
            cut=bool(output.cut),
            seconds=asyncio.get_running_loop().time() - began,
            excess=excess,
            killed=bool(excess) and exit_code is not None,
        )

    @property
    def timed_out(self) -> bool:
        """Whether its time ran out."""
        return self.exit_code is None


async def run(
    start: Start,
    *,
    stdin: bytes | int | None,
    timeout_s: float,
    output: CommandOutput,
    limits: tuple[CommandWatcher, DiskUsage] | None = None,
) -> CommandEnd:
    """Run a plain command and all that it starts, for at most ``timeout_s``.

    ``stdin``: what it reads, or a descriptor that stays the caller's. ``output``: takes what it
    prints. ``limits``: who holds it to what all of its processes may use together,
    and what its task has written.

    Raises ``SandboxError`` where it cannot be started. When cancelled, it kills them all first.
    """

    async def begun() -> tuple[ChildProcess, OutputReader]:
        """The child alone holds its ends of both pipes. Nothing ran where this fails."""
        source = None
        read_end, write_end = os.pipe()
        reader = OutputReader(read_end, output)
        try:
            if stdin is not None:
                source = os.dup(stdin) if isinstance(stdin, int) else memory_file(stdin)
            return start(source, write_end), reader
        except BaseException:
            reader.close(drain=False)
            raise
        finally:
            os.close(write_end)
            if source is not None:
                os.close(source)

    try:
        child, reader = await patiently(begun)
    except OSError as error:
        if error.errno == errno.E2BIG:
            return CommandEnd(exit_code=_CANNOT_RUN, output=TOO_LONG)
        raise SandboxError(f"a command could not be run: {error}") from error
    began, timed_out, excess = asyncio.get_running_loop().time(), False, ""
    try:
        async with contextlib.AsyncExitStack() as rest:
            rest.push_async_callback(child.end)
            watch = None
            if limits is not None:
                watch = WatchedSandbox(child, limits[1])
                rest.callback(limits[0].forget, watch)
                limits[0].begin(watch)
            try:
                async with asyncio.timeout(timeout_s):
                    await child.wait()
            except TimeoutError:
                timed_out = True
            excess = watch.ended() if watch else ""
    except OSError as error:
        # Not chained: it has run, so no caller may take this for a shortage and run it again.
        raise SandboxError(f"a command could not be followed to its end: {error}") from None
    finally:
        reader.close(drain=True)
    return CommandEnd.of(began, output, None if timed_out else child.exit_code, excess)
