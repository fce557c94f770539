"""A child process that is a command without a sandbox, and how any child is waited for.

Nothing that a command started may live on: not after a time limit, and not after the command's own
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import resource
import signal
import time
from collections.abc import Set as AbstractSet

from batchd import trees
from batchd.errors import SandboxError
from batchd.sandbox.guard import guard

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.001
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
    """A running child, the leader of its own process group: a command without a sandbox.
    To be ended in any case.
    """

    #: It is no sandbox, which has a first process and others of ours, and may have a cgroup.
    first, group = 0, None
    frame: AbstractSet[int] = frozenset()
    drains: AbstractSet[int] = frozenset()

    def __init__(self, pid: int) -> None:
        guard().watch(pid)
        self.pid = pid
        #: As ``subprocess`` reports it: negative for a signal. 0 until it was waited for.
        self._returncode = 0

    @property
    def exit_code(self) -> int:
        """The exit code as a shell reports it: 128 and the signal for one that was killed."""
        return 128 - self._returncode if self._returncode < 0 else self._returncode

    async def wait(self) -> None:
        """Return when it has ended; what it started may still run."""
        await ended(self.pid)

    async def end(self) -> None:
        """Kill whatever still runs, and return when all of it is dead;
        a cancellation waits that long.

        Raises ``SandboxError`` for a process that does not die.
        """
        self.kill()
        cancelled = await dead(self.pid)
        if running(os.P_PID, self.pid, os.WNOWAIT):
            raise SandboxError("a command cannot be killed: it hangs in the kernel")
        guard().forget(self.pid)
        self._returncode = reaped(self.pid)
        cancelled = await self._end_group() or cancelled
        if cancelled:
            raise asyncio.CancelledError

    async def _end_group(self) -> bool:
        """Wait for what was killed with it; return whether this was cancelled meanwhile."""
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

    def kill(self) -> None:
        """Kill it, before its end is waited for; what is left then, ``end`` sees to."""
        # Not waited for yet, so the number is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


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


async def ended(pid: int) -> None:
    """Return when a child has ended, which was not waited for."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # there is none left to see it by
        while running(os.P_PID, pid, os.WNOWAIT):  # noqa: ASYNC110 (a process sets no event)
            await asyncio.sleep(_LOOK_S)
        return
    with trees.held(descriptor):
        await readable(descriptor)


async def readable(descriptor: int, within_s: float | None = None) -> bool:
    """Wait until something can be read, or never will be; return whether that is so by then."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    return ready.is_set()


async def dead(pid: int) -> bool:
    """Wait for the death of a killed child, and return whether this was cancelled meanwhile."""
    clock = asyncio.get_running_loop().time
    deadline, cancelled = clock() + DYING_S, False
    end = asyncio.ensure_future(ended(pid))
    while running(os.P_PID, pid, os.WNOWAIT) and (left := deadline - clock()) > 0:
        try:
            if end.done():  # dead, but a debugger that traces it learns it first
                await asyncio.sleep(_POLL_S)
            else:
                await asyncio.wait((end,), timeout=left)
        except asyncio.CancelledError:
            cancelled = True
    end.cancel()
    return cancelled
