"""A sandbox that stays: what a command has left running goes on in it, and later commands of its task enter it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from batchd.errors import SandboxError
from batchd.sandbox.child import dead, ending, reaped
from batchd.sandbox.entrance import Entrance, Guest
from batchd.sandbox.output import Output, Reader
from batchd.sandbox.process import Left, Ran
from batchd.sandbox.processes import Process, Table, left_by, read
from batchd.sandbox.shortage import patiently

#: Whether anything still runs in it is looked at so often (seconds).
_LOOK_S = 1.0
#: A killed process is dead, and waited for, within so many looks, with a pause before each (seconds).
_LOOKS, _DYING_S = 20, 0.05
#: What goes on is named by so many of its processes.
_MOST_NAMED = 5
#: Of what it prints, so much is kept (bytes); the rest is read and thrown away, since who prints must never wait.
_MOST_PRINTED = 16 << 20
_ENDED = "it has ended by itself"
#: Unlike ``head``, ``dd`` writes what comes as it comes.
_DRAIN = (
    'dd of="$1" count="$2" bs=65536 iflag=count_bytes oflag=append conv=notrunc 2>/dev/null;'
    " exec cat >/dev/null"
)


class Standing:
    """One sandbox that stays, as long as something runs in it. To be ended."""

    def __init__(self, left: Left, guest: Guest, log: Callable[[], str]) -> None:
        """``log``: names the next file for what nobody waits for any more to print to, as commands see it."""
        self._child = left.child
        self._hold = left.hold
        self._end = left.end
        #: What it may still print to, as long as nobody in it reads that.
        self._output = left.output
        self._first = left.child.pid
        self._guest = guest
        self._log = log
        self._entrance: Entrance | None = None
        #: Those of its processes that are ours: they keep no sandbox.
        self._ours: set[int] = set()
        #: Keeps the process that keeps the sandbox while a command is in it, which is nobody's child there.
        self._anchor: int | None = None
        self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._busy = False
        self._ending = asyncio.Lock()
        self._look: asyncio.Task[None] | None = None
        #: Whether it is over, and why.
        self.over = False
        self.why = ""

    async def begin(self) -> str:
        """Make it one that can be entered, and return where what runs in it prints to from now on; empty: it is over.

        Raises ``SandboxError`` and ``OSError`` where it cannot be entered.
        """
        try:
            self._entrance = await Entrance.open(self._first, self._guest, self._child.group)
            heard, self._anchor = os.pipe()
            try:
                await self._placed([b"/bin/cat"], heard)
            finally:
                os.close(heard)
            output, self._output = self._output, None
            log = await self._drained(output)
        except BaseException:
            await self.end("it could not be kept")
            raise
        self._look = asyncio.get_running_loop().create_task(self._until_over())
        return log

    def running(self) -> tuple[str, ...]:
        """Return what commands have left running, by the names and numbers that it has inside."""
        if self.over:
            return ()
        found = [name for n in left_by(self._first) if n not in self._ours and (name := _name(n))]
        more = len(found) - _MOST_NAMED
        return (*found[:_MOST_NAMED], *((f"{more} more",) if more > 0 else ()))

    async def run(
        self, command: Sequence[bytes], *, timeout_s: float, output: Output
    ) -> Ran | None:
        """Run a command in it, and leave running what the command leaves; None: it could not begin there.

        One that runs out of its time is killed with all that it has started; where that cannot be told from what ran before,
        with all of the sandbox. Raises ``SandboxError``.
        """
        clock = asyncio.get_running_loop().time
        read_end, write_end = os.pipe()
        reader = Reader(read_end, output)
        self._busy = True
        try:
            began = clock()
            pid = await self._entered(command, write_end)
            if pid is None:
                await self.end(_ENDED)
                return None
            timed_out, status = await self._waited(pid, timeout_s)
            excess, refused = self._hold.excess(), self._hold.refused()
            if excess or not self._child.alive:
                await self.end(f"killed: {excess}" if excess else _ENDED)
            log = "" if self.over else await self._drained(reader.handed())
        finally:
            self._busy = False
            reader.close(drain=True)
        if not (self.over or self._needed()):
            await self.end(_ENDED)
        return Ran(
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

    async def end(self, why: str) -> None:
        """Kill what runs in it, if it is not over, and return when all of it is dead. Raises ``SandboxError``."""
        async with self._ending:
            if self.over:
                return
            self.over, self.why = True, why
            if self._look is not None and self._look is not asyncio.current_task():
                self._look.cancel()
            try:
                await self._end.aclose()
            finally:
                if self._entrance is not None:
                    await self._entrance.close()
                for descriptor in (self._anchor, self._nothing, self._output):
                    if descriptor is not None:
                        os.close(descriptor)
                if self._child.group is not None:
                    self._child.group.close()

    async def _entered(self, command: Sequence[bytes], output: int) -> int | None:
        """Have a command begin, and return its number; None: it did not begin. Closes ``output``."""
        entrance = self._entrance
        assert entrance is not None, "it has begun"

        async def attempt() -> int | None:
            try:
                return await entrance.start(command, output)
            except OSError:
                if self._child.alive:
                    raise
                return None

        try:
            return await patiently(attempt)
        finally:
            os.close(output)

    async def _waited(self, pid: int, timeout_s: float) -> tuple[bool, int]:
        """Wait for a command; return whether its time ran out, and its exit code as a shell tells it."""
        watch, why, cancelled = self._hold.watch, "", False
        if watch is not None:
            watch.entered = (pid,)
        try:
            async with asyncio.timeout(timeout_s):
                with ending(pid) as ended:
                    await ended
            timed_out = False
        except TimeoutError:
            timed_out = True
            if not await asyncio.to_thread(self._killed, pid):
                why = "killed with a command that ran out of its time"
        except asyncio.CancelledError:
            timed_out, cancelled, why = False, True, "killed with a command that was broken off"
        if why:
            self._child.kill()
        # Before the rest is waited for: its first process, when killed, waits for all of those that have entered.
        cancelled = await dead(pid) or cancelled
        if watch is not None:
            watch.entered = ()
        code = reaped(pid)
        if why:
            await self.end(why)
        if cancelled:
            raise asyncio.CancelledError
        return timed_out, 128 - code if code < 0 else code

    def _killed(self, pid: int) -> bool:
        """Kill a command with what it has started; return whether nothing is left that may be of it. Blocks for a moment."""
        before = Table.read()
        command = before.processes.get(pid)
        if command is None:
            return False
        for process in before.of(pid):
            _kill(process)
        # What it has started may be dead, and the sandbox's first process not have seen that yet.
        for _ in range(_LOOKS):
            time.sleep(_DYING_S)
            if self._nothing_since(command.started):
                return True
        return False

    def _nothing_since(self, began: int) -> bool:
        """Whether all that runs there ran before, or was started by what did."""
        table = Table.read()
        rest = [process for process in table.of(self._first) if process.number != self._first]
        known = {process.number for process in rest if process.started < began} | self._ours
        return all(_descends(process, known, table) for process in rest)

    async def _drained(self, output: int | None) -> str:
        """Have what is printed there read from within, and return the file that it goes to; empty: nothing is."""
        if output is None:
            return ""
        log = self._log()
        words = [
            b"/bin/sh",
            b"-c",
            _DRAIN.encode(),
            b"sh",
            log.encode(),
            str(_MOST_PRINTED).encode(),
        ]
        try:
            await self._placed(words, output)
        except OSError:  # it has just ended
            return ""
        finally:
            os.close(output)
        return log

    async def _placed(self, command: Sequence[bytes], stdin: int) -> None:
        """Start a process of ours in it."""
        assert self._entrance is not None, "it has begun"
        self._ours.add(await self._entrance.leave(command, self._nothing, stdin))

    def _needed(self) -> bool:
        """Whether something runs in it, or is about to."""
        return self._busy or any(number not in self._ours for number in left_by(self._first))

    async def _until_over(self) -> None:
        """End it when nothing runs in it any more."""
        with ending(self._first) as ended:
            while not ended.done() and self._needed():
                await asyncio.wait((ended,), timeout=_LOOK_S)
        excess = self._hold.excess()
        with contextlib.suppress(SandboxError):
            await self.end(f"killed: {excess}" if excess else _ENDED)


def _kill(process: Process) -> None:
    """Kill a process of the table, and never another one that has its number by now."""
    with contextlib.suppress(OSError):
        there = os.pidfd_open(process.number)
        try:
            again = read(process.number)
            if again is not None and again.started == process.started:
                signal.pidfd_send_signal(there, signal.SIGKILL)
        finally:
            os.close(there)


def _descends(process: Process, known: set[int], table: Table) -> bool:
    """Whether a process is one of ``known``, or descends from one."""
    there: Process | None = process
    while there is not None:
        if there.number in known:
            return True
        there = table.processes.get(there.parent)
    return False


def _name(number: int) -> str:
    """Return a process's name, with the number that it has inside; empty: it has ended."""
    try:
        name = Path(f"/proc/{number}/comm").read_text(errors="replace").strip()
        status = Path(f"/proc/{number}/status").read_text(errors="replace")
    except OSError:
        return ""
    inside = status.partition("\nNSpid:")[2].partition("\n")[0].split()[-1:]
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return f"{shown} (pid {inside[0]})" if inside else shown
