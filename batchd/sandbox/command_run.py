"""The run of one command to its end: time limit, output, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from batchd.errors import SandboxError
from batchd.masking import Masker
from batchd.sandbox.child import ChildProcess
from batchd.sandbox.command_watch import CommandWatcher, WatchedCommand
from batchd.sandbox.cover import Cover
from batchd.sandbox.disk import DiskUsage
from batchd.sandbox.memory_files import memory_file
from batchd.sandbox.network import NetworkDoor, RefusedHosts
from batchd.sandbox.output import CommandOutput, OutputReader
from batchd.sandbox.resource_shortage import SHORTAGE_ERRNOS, patiently

#: Starts a command, given the descriptors of its input, if it has any, and of its output.
Start = Callable[[int | None, int], ChildProcess]
#: What a shell answers for a command that cannot be executed.
_CANNOT_RUN = 126


@dataclass(frozen=True, slots=True)
class ProcessHold:
    """The hold on the processes of a sandbox: keeps them to their limits, and serves them."""

    watch: WatchedCommand | None = None
    refusals: RefusedHosts | None = None

    def excess(self) -> str:
        """Return which limit they have passed, and by what; empty: none."""
        return self.watch.ended() if self.watch else ""

    def refused(self) -> tuple[str, ...]:
        """Return where they wanted to go and might not, since this was last asked."""
        return self.refusals.taken() if self.refusals else ()


@dataclass(frozen=True, slots=True)
class LeftRunning:
    """The processes that go on behind their command: the sandbox, with what holds it."""

    child: ChildProcess
    hold: ProcessHold
    #: Ends both.
    end: contextlib.AsyncExitStack
    #: What it may still print to, to be read; None: nothing.
    output: int | None

    async def close(self) -> None:
        """End it, where it is not kept. Raises ``SandboxError``."""
        if self.output is not None:
            os.close(self.output)
        await self.end.aclose()


_Watched = contextlib.AbstractAsyncContextManager[ProcessHold]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEnd:
    """The end of a command."""

    #: As a shell reports it (128 and the signal for a killed one); None where time ran out.
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
    #: Which limit was passed, by what and where it stands; empty: none.
    excess: str = ""
    #: Whether it was killed for that.
    killed: bool = False
    #: What goes on in its sandbox, by name.
    left: tuple[str, ...] = ()
    #: The file that it prints to from now on, as commands see it; empty: what it had before it.
    log: str = ""
    #: Why what it left running was ended, where that could not be kept.
    lost: str = ""


async def run(
    start: Start,
    *,
    stdin: bytes | int | None,
    timeout_s: float,
    limit: int,
    masker: Masker,
    limits: tuple[CommandWatcher, DiskUsage] | None = None,
    door: NetworkDoor | None = None,
    cover: Cover | None = None,
    keep: Callable[[LeftRunning], None] | None = None,
) -> CommandEnd:
    """Run a command and all that it starts, for at most ``timeout_s``,
    and keep ``limit`` bytes of output, masked.

    ``stdin``: what it reads, or a descriptor that stays the caller's. ``limits``: who holds it to
    what all of its processes may use together, and what its task has written. ``door``: its way to
    some hosts, for a command that is held back until it has one. ``cover``: what is laid over what
    it sees; where that goes as the command begins, it is begun again. ``keep``: gets what the
    command has left running; else that is killed.

    Raises ``SandboxError`` where its sandbox cannot be set up.
    When cancelled, it kills them all first.
    """
    fresh = functools.partial(CommandOutput, limit, masker)
    watched = functools.partial(_watched, limits, door)
    try:
        once = functools.partial(
            _once, start, stdin, timeout_s, fresh, watched, cover=cover, keep=keep
        )
        ran = await patiently(once)
    except OSError as error:
        if error.errno == errno.E2BIG:
            return CommandEnd(exit_code=_CANNOT_RUN, output="the command is too long\n")
        raise SandboxError(f"a command could not be run: {error}") from error
    return replace(ran, refused=tuple(map(masker.text, ran.refused)))


async def _once(
    start: Start,
    stdin: bytes | int | None,
    timeout_s: float,
    fresh: Callable[[], CommandOutput],
    watched: Callable[[ChildProcess], _Watched],
    *,
    cover: Cover | None,
    keep: Callable[[LeftRunning], None] | None,
) -> CommandEnd:
    """Run a command, once. Raises ``OSError`` only where nothing of it ran."""
    clock = asyncio.get_running_loop().time
    output = fresh()
    # What is covered is known before the command is begun:
    # nothing else has its turn between the two.
    covered = cover.look() if cover else {}
    child, reader = _begin(start, stdin, output)
    began = clock()
    try:
        end = await _to_the_end(child, timeout_s, watched, may_stay=keep is not None)
        if keep is not None and end.stays is not None:
            async with contextlib.AsyncExitStack() as safe:
                hold, rest = end.stays
                safe.push_async_callback(rest.aclose)
                keep(LeftRunning(child, hold, rest, reader.handed()))
                safe.pop_all()
    except OSError as error:
        # Not chained: it has run, so no caller may take this for a shortage and run it again.
        raise SandboxError(f"a command could not be followed to its end: {error}") from None
    finally:
        reader.close(drain=True)
    if not (child.reached or end.timed_out):
        raise _not_set_up(output.text().strip(), gone=cover is not None and cover.gone(covered))
    return CommandEnd(
        exit_code=None if end.timed_out else child.exit_code,
        output=output.text(),
        timed_out=end.timed_out,
        cut=bool(output.cut),
        seconds=clock() - began,
        refused=end.refused,
        excess=end.excess,
        killed=bool(end.excess) and not end.timed_out,
    )


def _not_set_up(said: str, *, gone: bool) -> OSError | SandboxError:
    """Return why there is no sandbox, by what bwrap said: what it was short of, or anything else.

    ``gone``: what was to be covered has gone, or is another,
    since it was looked at; the next try looks again.
    """
    message = f"the sandbox could not be set up: {said}"
    number = next(
        (n for n in SHORTAGE_ERRNOS if os.strerror(n) in said), errno.EAGAIN if gone else None
    )
    return SandboxError(message) if number is None else OSError(number, message)


def _begin(
    start: Start, stdin: bytes | int | None, output: CommandOutput
) -> tuple[ChildProcess, OutputReader]:
    """Start the child, and what reads from it. Nothing ran where this fails."""
    read_end, write_end = os.pipe()
    reader = OutputReader(read_end, output)
    try:
        return _started(start, stdin, write_end), reader
    except BaseException:
        reader.close(drain=False)
        raise


def _started(start: Start, stdin: bytes | int | None, write_end: int) -> ChildProcess:
    """Start the child; afterwards it alone holds its ends."""
    source = None
    try:
        if stdin is not None:
            source = os.dup(stdin) if isinstance(stdin, int) else memory_file(stdin)
        return start(source, write_end)
    finally:
        os.close(write_end)
        if source is not None:
            os.close(source)


@dataclass(slots=True)
class _End:
    """How it ended, beside its exit code."""

    timed_out: bool = False
    refused: tuple[str, ...] = ()
    excess: str = ""
    #: What goes on behind the command is held to, and what ends it.
    stays: tuple[ProcessHold, contextlib.AsyncExitStack] | None = None


@contextlib.asynccontextmanager
async def _watched(
    limits: tuple[CommandWatcher, DiskUsage] | None, door: NetworkDoor | None, child: ChildProcess
) -> AsyncIterator[ProcessHold]:
    """Hold a running command to its limits, and give it its way to some hosts."""
    async with (
        door.opened(child) if door else contextlib.nullcontext() as refusals,
        limits[0].watching(child, limits[1]) if limits else contextlib.nullcontext() as watch,
    ):
        yield ProcessHold(watch, refusals)


async def _to_the_end(
    child: ChildProcess,
    timeout_s: float,
    watched: Callable[[ChildProcess], _Watched],
    *,
    may_stay: bool,
) -> _End:
    """Return, when all of it is dead that does not stay, how it ended."""
    end, hold, stays = _End(), ProcessHold(), False
    async with contextlib.AsyncExitStack() as rest:
        rest.push_async_callback(child.end)
        try:
            async with asyncio.timeout(timeout_s):
                hold = await rest.enter_async_context(watched(child))
                await child.wait()
                stays = may_stay and await child.stays()
        except TimeoutError:
            end.timed_out = True
        end.excess, end.refused = hold.excess(), hold.refused()
        if stays and not (end.timed_out or end.excess):
            end.stays = hold, rest.pop_all()
    return end
