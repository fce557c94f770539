"""One child process and all that it starts: how it is leashed, killed and waited for.

Nothing that a command started may live on: not after a time limit, not after the command's own
end, not when the worker itself is killed at any moment. bwrap's ``--die-with-parent`` covers most
of it, but neither bwrap's first milliseconds (it asks for that signal late) nor the time from its
own end to the death of the last process inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator

from batchd.errors import SandboxError

_PR_SET_CHILD_SUBREAPER = 36
_F_SETSIG = 10
#: How long the death of a killed process may take (seconds); only a stuck file system needs it.
_DYING_S = 10.0
_POLL_S = 0.001
_INNER = re.compile(rb'"child-pid": (\d+)')


@functools.cache
def prepare_process() -> None:
    """Make this process one that can run hundreds of sandboxes at once.

    It becomes the parent of what a dead bwrap leaves behind, since only a parent can wait for a death
    safely; and it takes as many descriptors as it may, where 1,024 is the custom.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Leash:
    """Kills its wearer the moment this process is gone, whatever killed it.

    When the last write end of the pipe closes, the kernel sends SIGKILL to the owner of the read end. That
    end must stay open on the other side: bwrap's ``--sync-fd`` keeps it for as long as the sandbox lives.
    """

    def __init__(self) -> None:
        #: For the wearer.
        self.end, self._held = os.pipe()

    def put_on(self, owner: int) -> None:
        """Bind a process or, by a negative number, a process group, in place of the one before."""
        fcntl.fcntl(self.end, fcntl.F_SETOWN, owner)
        fcntl.fcntl(self.end, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self.end, fcntl.F_SETFL, fcntl.fcntl(self.end, fcntl.F_GETFL) | os.O_ASYNC)

    def close(self) -> None:
        """Close both ends, once the wearer is dead."""
        os.close(self.end)
        os.close(self._held)


class Child:
    """A running child, the leader of its own process group; to be ended in any case."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        status: int | None = None,
        leash: Leash | None = None,
    ) -> None:
        self._process = process
        self._status = status
        self._reports = status is not None
        self._leash = leash
        self._report = b""
        #: The first process inside the sandbox, as the outside numbers it.
        self._inner: int | None = None

    @property
    def reached(self) -> bool:
        """Whether the command itself was started; false where its sandbox could not be set up."""
        return not self._reports or b'"exit-code"' in self._report or self._process.returncode < 0

    @property
    def exit_code(self) -> int:
        """The exit code as a shell tells it: 128 and the signal for one that was killed."""
        code: int = self._process.returncode
        return 128 - code if code < 0 else code

    async def wait(self) -> None:
        """Return when the command has ended; what it started may still run."""
        loop = asyncio.get_running_loop()
        if self._status is not None:
            loop.add_reader(self._status, self._on_status)
        try:
            with _watched(self._process.pid) as ended:
                await ended
        finally:
            if self._status is not None:
                loop.remove_reader(self._status)

    async def end(self) -> None:
        """Kill whatever still runs, and return when all of it is dead; a cancellation waits that long.

        Raises ``SandboxError`` for a process that does not die.
        """
        try:
            self._kill()
            cancelled = await _dead(self._process.pid)
            if self._process.poll() is None:
                raise SandboxError("a command cannot be killed: it hangs in the kernel")
            self._read_status()
            if self._inner is None:
                await self._reap_group()
            elif _alive(os.P_PID, self._inner):
                # Our child now, and not waited for: the number is still its own.
                os.kill(self._inner, signal.SIGKILL)
                cancelled = await _dead(self._inner) or cancelled
                _alive(os.P_PID, self._inner)
        finally:
            self.close()
        if cancelled:
            raise asyncio.CancelledError

    def end_now(self) -> None:
        """Wait for a short command's own end, without a loop."""
        try:
            self._process.wait(_DYING_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._read_status()
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        if self._status is not None:
            os.close(self._status)
            self._status = None
        if self._leash is not None:
            self._leash.close()
            self._leash = None

    def _kill(self) -> None:
        # Not waited for yet, so the number is still its own. bwrap's inner process leaves this
        # group only after its number was reported.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _on_status(self) -> None:
        self._read_status()
        if self._status is not None:
            asyncio.get_running_loop().remove_reader(self._status)
        if self._leash is not None and self._inner is not None:
            self._leash.put_on(self._inner)

    def _read_status(self) -> None:
        """Take in what bwrap has said so far: first its inner process, at the end the exit code."""
        if self._status is None:
            return
        with contextlib.suppress(BlockingIOError):
            self._report += os.read(self._status, 4096)
        if found := _INNER.search(self._report):
            self._inner = int(found[1])

    async def _reap_group(self) -> None:
        """Reap the inner process of a bwrap that was killed before it could report it."""
        if self._status is None:
            return
        deadline = time.monotonic() + _DYING_S
        while _alive(os.P_PGID, self._process.pid) and time.monotonic() < deadline:  # noqa: ASYNC110 (a group has no pidfd to wait for)
            await asyncio.sleep(_POLL_S)


def _alive(kind: int, number: int, options: int = 0) -> bool:
    """Return whether a child of this process, or of its group, still runs; one that does not is reaped."""
    try:
        return os.waitid(kind, number, os.WEXITED | os.WNOHANG | options) is None
    except ChildProcessError:
        return False


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[asyncio.Future[None]]:
    """Give a future that is done when a child, which was not waited for, has ended."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    ended = loop.create_future()
    loop.add_reader(descriptor, _settle, ended)
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def _dead(pid: int) -> bool:
    """Wait for the death of a killed child, and return whether this was cancelled meanwhile."""
    if not _alive(os.P_PID, pid, os.WNOWAIT):
        return False
    clock = asyncio.get_running_loop().time
    deadline = clock() + _DYING_S
    cancelled = False
    with _watched(pid) as ended:
        while not ended.done() and (left := deadline - clock()) > 0:
            try:
                await asyncio.wait((ended,), timeout=left)
            except asyncio.CancelledError:
                cancelled = True
    return cancelled
