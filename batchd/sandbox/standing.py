"""A sandbox that stays: what a command has left running goes on in it,
and later commands of its task enter it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import Sequence

from batchd.errors import SandboxError
from batchd.masking import Masker
from batchd.sandbox import process_table
from batchd.sandbox.bwrap import TMP
from batchd.sandbox.command_run import CommandEnd, LeftRunning
from batchd.sandbox.deaths import dead, ending, reaped
from batchd.sandbox.entrance import Entrance, Guest
from batchd.sandbox.output import CommandOutput, OutputReader
from batchd.sandbox.process_table import left_by, named
from batchd.sandbox.resource_shortage import patiently
from batchd.sandbox.unbroken import unbroken

#: Whether anything still runs in it is looked at so often (seconds).
_LOOK_S = 1.0
#: What goes on is named by so many of its processes.
_MOST_NAMED = 5
#: Of what it prints, so much is kept (bytes);
#: the rest is read and thrown away, since who prints must never wait.
_MOST_PRINTED = 16 << 20
#: A command that cannot begin beside what runs there has a sandbox
#: of its own after so long (seconds).
_PATIENCE_S = 2.0
#: What a shell says of a process that was killed.
_KILLED = 137
_ENDED = "it has ended by itself"
_OUT_OF_TIME = "killed with a command that ran out of its time"
_BROKEN_OFF = "killed with a command that was broken off"
#: Unlike ``head``, ``dd`` writes what comes as it comes.
_DRAIN = (
    'PATH=/usr/bin:/bin; dd of="$1" count="$2" bs=65536 iflag=count_bytes oflag=append conv=notrunc 2>/dev/null;'
    " exec cat >/dev/null"
)


class StandingSandbox:
    """One sandbox that stays, as long as something runs in it. To be ended."""

    def __init__(self, left: LeftRunning, guest: Guest) -> None:
        self._child = left.child
        self._hold = left.hold
        self._holding = left.end
        #: What it may still print to, until a process in it reads that.
        self._output = left.output
        self._first = left.child.pid
        #: Of its processes.
        self._namespace = 0
        self._guest = guest
        self._entrance: Entrance | None = None
        #: Those of its processes that are ours: they keep no sandbox.
        self._ours: set[int] = set()
        #: Keeps the process that keeps the sandbox while a command is in it:
        #: what has entered is no child of the first process.
        self._anchor: int | None = None
        self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        #: Read what no process in it could be started to read.
        self._readers: list[OutputReader] = []
        self._busy = False
        #: Whether something may have entered of which nothing is known.
        self._lost = False
        self._ending = asyncio.Lock()
        self._look: asyncio.Task[None] | None = None
        #: Whether it is over, and why; and why it could not be kept, if that is so.
        self.over = False
        self.why = ""
        self.lost = ""

    async def begin(self) -> str:
        """Make it one that can be entered, and return where what runs in it prints to from now on.

        Raises ``SandboxError`` and ``OSError`` where it cannot be entered; then it is over.
        """
        return await unbroken(self._begin(), functools.partial(self._kill, _BROKEN_OFF))

    async def _begin(self) -> str:
        try:
            self._namespace = process_table.namespace(self._first)
            self._entrance = await Entrance.open(self._first, self._guest, self._child.group)
            heard, self._anchor = os.pipe()
            try:
                await self._placed([b"/bin/cat"], heard)
            finally:
                os.close(heard)
        except (OSError, SandboxError):
            # Most of the time it has just ended by itself.
            if self._child.alive and self._needed():
                self.lost = "batchd could not keep it"
            await self._end(self.lost or _ENDED)
            raise
        output, self._output = self._output, None
        log = await self._drained(output)
        self._look = asyncio.get_running_loop().create_task(self._until_over())
        return log

    def rest(self, limit: int) -> bytes:
        """Return what it has printed that was not read,
        where it could not be kept, and close that.
        """
        output, self._output = self._output, None
        if output is None:
            return b""
        os.set_blocking(output, False)
        with os.fdopen(output, "rb", buffering=0) as pipe:
            return pipe.read(limit) or b""

    def running(self) -> tuple[str, ...]:
        """Return what commands have left running, by the names and numbers that it has inside."""
        if self.over:
            return ()
        try:
            there = [number for number in left_by(self._first) if number not in self._ours]
        except OSError:  # no descriptor is left to look by
            return ("it",)
        found = [name for number in there if (name := named(number))]
        more = len(found) - _MOST_NAMED
        return (*found[:_MOST_NAMED], *((f"{more} more",) if more > 0 else ()))

    async def run(
        self, command: Sequence[bytes], *, timeout_s: float, output: CommandOutput
    ) -> CommandEnd | None:
        """Run a command in it, and leave running what the command leaves;
        None: it did not begin, and the sandbox is over.

        One that runs out of its time is killed with all that it has started; where that cannot be
        kept apart from what ran before, with all of the sandbox,
        and so is one that is cancelled. Raises ``SandboxError``.
        """
        broken_off = functools.partial(self._kill, _BROKEN_OFF)
        try:
            return await unbroken(self._run(command, timeout_s, output), broken_off)
        except asyncio.CancelledError:
            await self.end(_BROKEN_OFF)
            raise
        except OSError as error:
            await self.end(f"killed: {error.strerror}")
            raise SandboxError(f"a command in a standing sandbox failed: {error}") from error

    async def _run(
        self, command: Sequence[bytes], timeout_s: float, output: CommandOutput
    ) -> CommandEnd | None:
        clock = asyncio.get_running_loop().time
        read_end, write_end = os.pipe()
        reader = OutputReader(read_end, output)
        self._busy, began = True, clock()
        try:
            try:
                pid = await self._entered(command, write_end)
            except OSError as error:
                # It has just ended, or has taken the last process that it may have.
                await self.end(f"killed: no command could begin beside it ({error.strerror})" if self._child.alive else _ENDED)  # fmt: skip
                return None
            except SandboxError:
                # Whether it has begun is not known: it is not begun a second time.
                self._lost = True
                await self._end("killed with the helper that enters it")
                return CommandEnd(exit_code=_KILLED, output=output.text(), seconds=clock() - began)
            timed_out, status = await self._waited(pid, timeout_s - (clock() - began))
            excess, refused = self._hold.excess(), self._hold.refused()
            if excess or not self._child.alive:
                await self._end(f"killed: {excess}" if excess else _ENDED)
            log = "" if self.over else await self._drained(reader.handed())
        finally:
            self._busy = False
            reader.close(drain=True)
        if not (self.over or self._needed()):
            await self._end(_ENDED)
        return CommandEnd(
            exit_code=None if timed_out else status,
            output=output.text(),
            timed_out=timed_out,
            cut=bool(output.cut),
            seconds=clock() - began,
            refused=refused,
            excess=excess,
            killed=bool(excess) and not timed_out,
            left=self.running(),
            log=log,
        )

    def _kill(self, why: str) -> None:
        # Once it is over, its number may be another's.
        if not self.over:
            self.why = self.why or why
            self._child.kill()

    async def end(self, why: str) -> None:
        """Kill what runs in it, if it is not over, and return when all of it is dead.

        Raises ``SandboxError``.
        """
        await unbroken(self._end(why))

    async def _end(self, why: str) -> None:
        async with self._ending:
            if self.over:
                return
            self.over, self.why = True, self.why or why
            if self._look is not None and self._look is not asyncio.current_task():
                self._look.cancel()
            self._child.kill()
            try:
                if self._entrance is not None:
                    await self._entrance.close()
                if self._lost:
                    await self._bury()
                await self._holding.aclose()
            finally:
                for reader in self._readers:
                    reader.close(drain=False)
                for descriptor in (self._anchor, self._nothing):
                    if descriptor is not None:
                        os.close(descriptor)
                if self._child.group is not None:
                    self._child.group.close()

    async def _bury(self) -> None:
        """Wait for what has entered, and was not reported by the helper before its own end."""
        for _ in range(process_table.LOOKS):
            process_table.wait_for_strays(self._namespace, self._first)
            if not self._child.alive:
                return
            await asyncio.sleep(process_table.PAUSE_S)

    async def _entered(self, command: Sequence[bytes], output: int) -> int:
        """Start a command in it, and return its number. Closes ``output``.

        Raises ``OSError`` where it did not begin, and ``SandboxError`` where that is not known.
        """
        entrance = self._entrance
        assert entrance is not None, "it has begun"

        async def attempt() -> int:
            try:
                return await entrance.start(command, output)
            except OSError as error:
                # Whatever runs out in a sandbox that is over, stays used up.
                raise error if self._child.alive else ProcessLookupError from None

        try:
            return await patiently(attempt, _PATIENCE_S)
        finally:
            os.close(output)

    async def _waited(self, pid: int, timeout_s: float) -> tuple[bool, int]:
        """Wait for a command; return whether its time ran out,
        and its exit code as a shell has it.
        """
        watch, why, timed_out = self._hold.watch, "", False
        if watch is not None:
            watch.entered = (pid,)
        with ending(pid) as ended:
            await asyncio.wait((ended,), timeout=max(0.0, timeout_s))
            timed_out = not ended.done()
        if timed_out and not await asyncio.to_thread(
            process_table.killed, pid, self._first, self._ours
        ):
            why = _OUT_OF_TIME
            self._kill(why)
        # Before the rest is waited for: its first process, when killed,
        # waits for all of those that have entered.
        await dead(pid)
        if watch is not None:
            watch.entered = ()
        code = reaped(pid)
        if why:
            await self._end(why)
        return timed_out, 128 - code if code < 0 else code

    async def _drained(self, output: int | None) -> str:
        """Read what is printed there from within, and return the file that it goes to;
        empty: nothing is, or it is not kept.
        """
        if output is None:
            return ""
        # No name that a command inside could know before.
        log = f"{TMP}/background-{secrets.token_hex(3)}.log"
        words = ["/bin/sh", "-c", _DRAIN, "sh", log, str(_MOST_PRINTED)]
        try:
            await self._placed([word.encode() for word in words], output)
        except (OSError, SandboxError):
            # Who prints must not wait, nor find its pipe broken: it is read here, and thrown away.
            self._readers.append(OutputReader(output, CommandOutput(1, Masker())))
            return ""
        os.close(output)
        return log

    async def _placed(self, command: Sequence[bytes], stdin: int) -> None:
        """Start a process of ours in it."""
        assert self._entrance is not None, "it has begun"
        self._ours.add(await self._entrance.leave(command, self._nothing, stdin))
        if self._hold.watch is not None:
            self._hold.watch.ours = frozenset(self._ours)

    def _needed(self) -> bool:
        """Whether something runs in it, or is about to."""
        return self._busy or any(number not in self._ours for number in left_by(self._first))

    async def _until_over(self) -> None:
        """End it when nothing runs in it any more."""
        with ending(self._first) as ended:
            needed = True
            while needed and not ended.done():
                await asyncio.wait((ended,), timeout=_LOOK_S)
                with contextlib.suppress(OSError):  # the next look may have a descriptor again
                    needed = self._needed()
        excess = self._hold.excess()
        with contextlib.suppress(SandboxError):
            await self._end(f"killed: {excess}" if excess else _ENDED)
