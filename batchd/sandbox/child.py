"""One child process and all that it starts: how it is watched, killed and waited for.

Nothing that a command started may live on: not after a time limit, and not after the command's own
end. bwrap ends before the last process inside is dead, so the end of bwrap is not enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import re
import resource
import select
import signal
import time
from collections.abc import Iterator

from batchd.errors import SandboxError
from batchd.sandbox.cgroup import TaskCgroup
from batchd.sandbox.guard import guard
from batchd.sandbox.process_table import left_by

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.001
#: What runs on for so long behind its command, stays.
_STRAGGLING_S = 0.05
_INNER = re.compile(rb'"child-pid": (\d+)')
_NETWORK = re.compile(rb'"net-namespace": (\d+)')
#: How long the death of a killed process may take (seconds); only a stuck file system needs it.
DYING_S = 10.0
_LOOK_S = 0.02


@functools.cache
def prepare_process() -> None:
    """Make this process one that can run hundreds of sandboxes at once.

    It becomes the parent of what a dead bwrap leaves behind, since only a parent can wait for a
    death safely; and it takes as many descriptors as it may, where 1,024 is the custom.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class ChildProcess:
    """A running child, the leader of its own process group; to be ended in any case."""

    def __init__(
        self,
        pid: int,
        status: int | None = None,
        gate: int | None = None,
        group: TaskCgroup | None = None,
    ) -> None:
        guard().watch(pid)
        self.pid = pid
        #: What holds it and all that it starts, if anything does.
        self.group = group
        #: As ``subprocess`` reports it: negative for a signal. 0 until it was waited for.
        self._returncode = 0
        self._status = status
        #: The command begins when this is closed, if there is one.
        self._gate = gate
        self._reports = status is not None
        self._report = b""
        #: The first process inside the sandbox, as the outside numbers it.
        self._inner: int | None = None

    @property
    def reached(self) -> bool:
        """Whether the command itself was started; false where its sandbox could not be set up."""
        return not self._reports or b'"exit-code"' in self._report or self._returncode < 0

    @property
    def exit_code(self) -> int:
        """The exit code as a shell reports it: 128 and the signal for one that was killed."""
        return 128 - self._returncode if self._returncode < 0 else self._returncode

    async def wait(self) -> None:
        """Return when the command has ended; what it started may still run."""
        loop = asyncio.get_running_loop()
        if self._status is not None and self._inner is None:
            loop.add_reader(self._status, self._on_status)
        try:
            with ending(self.pid) as ended:
                await ended
        finally:
            if self._status is not None:
                loop.remove_reader(self._status)

    async def ends(self, within_s: float) -> bool:
        """Return whether it ends by itself within a time."""
        try:
            async with asyncio.timeout(within_s):
                await self.wait()
        except TimeoutError:
            return False
        return True

    async def stays(self) -> bool:
        """Return whether the command, which has ended, left something running that goes on.

        Then that is what this child is from here on:
        the sandbox's first process, and all that runs in it.
        """
        self._read_status()
        inner = self._inner
        if inner is None or not left_by(inner):
            return False
        # Where something else has ended bwrap, it has not reported the command's end.
        if not self.reached or not running(os.P_PID, inner, os.WNOWAIT):
            return False
        with ending(inner) as ended:
            # What dies with the command, as the rest of a pipeline does, is not meant to stay.
            await asyncio.wait((ended,), timeout=_STRAGGLING_S)
            if ended.done():
                return False
        guard().watch(inner)
        guard().forget(self.pid)
        self._returncode = reaped(self.pid)
        self.pid = inner
        self.close()
        return True

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return bool(running(os.P_PID, self.pid, os.WNOWAIT))

    @property
    def parent(self) -> int:
        """Whose child ``first`` is."""
        return os.getpid() if self.pid == self._inner else self.pid

    @property
    def first(self) -> int | None:
        """The first process inside the sandbox, as the outside numbers it;
        None as long as that is not known, or without one.
        """
        return self._inner

    async def inside(self) -> tuple[int, int] | None:
        """Return the sandbox's first process, as the outside numbers it,
        and the number of its network.

        None where it could not be set up.
        """
        while (found := _NETWORK.search(self._report)) is None or self._inner is None:
            assert self._status is not None, "only a sandbox reports on itself"
            await readable(self._status)
            if not self._read_status():
                return None
        guard().watch(self._inner)
        return self._inner, int(found[1])

    def release(self) -> None:
        """Let a command begin that was held back."""
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    async def end(self) -> None:
        """Kill whatever still runs, and return when all of it is dead;
        a cancellation waits that long.

        Raises ``SandboxError`` for a process that does not die.
        """
        try:
            self.kill()
            cancelled = await dead(self.pid)
            if running(os.P_PID, self.pid, os.WNOWAIT):
                raise SandboxError("a command cannot be killed: it hangs in the kernel")
            self._read_status()
            if self._inner is None:
                self._reap()
                cancelled = await self._end_group() or cancelled
            else:
                cancelled = await self._end_inner(self._inner) or cancelled
                self._reap()
        finally:
            self.close()
        if cancelled:
            raise asyncio.CancelledError

    async def _end_inner(self, inner: int) -> bool:
        """Kill what is left of the sandbox by killing its first process."""
        cancelled = False
        if running(os.P_PID, inner, os.WNOWAIT):
            # Our child since bwrap is gone, and not waited for: the number is still its own.
            os.kill(inner, signal.SIGKILL)
            cancelled = await dead(inner)
        return cancelled

    async def _end_group(self) -> bool:
        """Wait for what was killed with the child:
        a plain command's processes, or an inner one not yet reported.
        """
        cancelled = False
        deadline = time.monotonic() + DYING_S
        while (some := running(os.P_PGID, self.pid)) is not None:
            if time.monotonic() > deadline:
                break
            if some:
                try:
                    await asyncio.sleep(_POLL_S)
                except asyncio.CancelledError:
                    cancelled = True
        return cancelled

    def end_now(self) -> None:
        """Wait for a short command's own end, without a loop."""
        descriptor = os.pidfd_open(self.pid)
        try:
            if not select.select([descriptor], [], [], DYING_S)[0]:
                self.kill()
                select.select([descriptor], [], [], DYING_S)
        finally:
            os.close(descriptor)
        self._read_status()
        if self._inner is not None:
            # Dying with bwrap, and ours to wait for only where this process adopts orphans.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._inner, os.WEXITED | os.WNOWAIT)
        self._reap()
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        self.release()
        if self._status is not None:
            os.close(self._status)
            self._status = None

    def kill(self) -> None:
        """Kill it, before its end is waited for; what is left then, ``end`` sees to."""
        if self.group is not None:
            self.group.kill()
        # Not waited for yet, so the number is still its own. bwrap's inner process leaves this
        # group only after its number was reported.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _on_status(self) -> None:
        self._read_status()
        if self._inner is not None:
            guard().watch(self._inner)
        if self._status is not None:
            asyncio.get_running_loop().remove_reader(self._status)

    def _read_status(self) -> bool:
        """Take in what bwrap has said so far: first its inner process, at the end the exit code.

        Returns False where it will say nothing more.
        """
        said = b""
        with contextlib.suppress(BlockingIOError):
            if self._status is not None:
                said = os.read(self._status, 4096)
            self._report += said
            if self._inner is None and (found := _INNER.search(self._report)):
                self._inner = int(found[1])
            return bool(said)
        return True

    def _reap(self) -> None:
        """Wait for the processes that are dead."""
        guard().forget(self.pid, self._inner)
        self._returncode = reaped(self.pid)
        if self._inner is not None:
            running(os.P_PID, self._inner)


def reaped(pid: int) -> int:
    """Wait for a child that is dead, and return how it ended, as ``subprocess`` has it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, os.WNOHANG)[1])


def running(kind: int, number: int, options: int = 0) -> bool | None:
    """Return whether a child of this process, or of its group, runs; one that does not is reaped.

    None: there is none.
    """
    try:
        return os.waitid(kind, number, os.WEXITED | os.WNOHANG | options) is None
    except ChildProcessError:
        return None


@contextlib.contextmanager
def ending(pid: int) -> Iterator[asyncio.Future[None]]:
    """Give a future that is done when a child, which was not waited for, has ended."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        look = loop.create_task(_looked_at(pid, ended))
        try:
            yield ended
        finally:
            look.cancel()
        return
    loop.add_reader(descriptor, _settle, ended)
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def readable(descriptor: int) -> None:
    """Wait until something can be read, or never will be."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def _looked_at(pid: int, ended: asyncio.Future[None]) -> None:
    """Look at a child now and then: there is no descriptor left to see it by."""
    while running(os.P_PID, pid, os.WNOWAIT):  # noqa: ASYNC110 (a process sets no event)
        await asyncio.sleep(_LOOK_S)
    _settle(ended)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def dead(pid: int) -> bool:
    """Wait for the death of a killed child, and return whether this was cancelled meanwhile."""
    if not running(os.P_PID, pid, os.WNOWAIT):
        return False
    clock = asyncio.get_running_loop().time
    deadline = clock() + DYING_S
    cancelled = False
    with ending(pid) as ended:
        while (left := deadline - clock()) > 0 and running(os.P_PID, pid, os.WNOWAIT):
            try:
                if ended.done():  # dead, but a debugger that traces it learns it first
                    await asyncio.sleep(_POLL_S)
                else:
                    await asyncio.wait((ended,), timeout=left)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled
