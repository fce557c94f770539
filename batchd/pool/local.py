"""The engine of this machine: how a worker is forked, and how it ends.

Its pidfd is the truth about its life: the fork server's own word is not, for when that server
dies, ``multiprocessing`` takes all its children for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from batchd.pool import fork_server
from batchd.pool.fork_server import child
from batchd.pool.pool_worker import PoolWorker

#: What a worker that was asked to end gets before it is killed.
_LEAVE_S = 10.0

#: What ``multiprocessing`` says of a process whose fork server is gone.
_UNKNOWN = 255


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """The engine of this machine: forks workers from a server that has loaded what they need."""

    #: A descriptor of the spool's lock.
    _lock: int
    #: What works on a task.
    _agent: str
    #: For sockets.
    _folder: Path

    def prepare(self) -> None:
        """Settle where the fork server's sockets lie."""
        fork_server.prepare(self._folder)

    def worker(self, received: Callable[[PoolWorker, Any], None]) -> ForkedWorker:
        """Return a worker that is yet to start; ``received`` takes what it says."""
        return ForkedWorker(received, self._lock, self._agent)

    def renew(self) -> None:
        """Kill the fork server: starts that wait for it fail, and the next one makes another."""
        fork_server.end()


class ForkedWorker(PoolWorker):
    """A worker on this machine."""

    def __init__(self, received: Callable[[PoolWorker, Any], None], lock: int, agent: str) -> None:
        super().__init__(received)
        self._lock = lock
        self._agent = agent
        self._process: BaseProcess | None = None
        self._pidfd = -1
        #: Whether it is to be killed as soon as it can be.
        self._killed = False
        #: Set when the process has ended.
        self._exited = asyncio.Event()

    @property
    def label(self) -> str:
        """Its process id."""
        return str(self.pid or "")

    @property
    def over(self) -> bool:
        """Whether its process has ended."""
        return self._exited.is_set()

    async def _begin(self) -> None:
        """Fork it. Raises ``OSError`` or ``EOFError``
        where the fork server died under our hands.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            await self.channel.attach(ours)
            self._process = await asyncio.to_thread(_launch, theirs, self._lock, self._agent)
        self.pid = self._process.pid or 0
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._exited.set()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._has_exited)
            if self._killed:
                self._strike()

    def _strike(self) -> None:
        """End it at once, unless it is over; also before it has started."""
        self._killed = True
        if self._pidfd >= 0 and not self.over:
            # It may have ended this instant, and its fork server have buried it:
            # `_has_exited` is on its way.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def _end(self) -> str:
        """Return how it ended, once it has exited and all that it sent is read."""
        assert self._process is not None, "it was started"
        events = [asyncio.ensure_future(e.wait()) for e in (self._exited, self._silent)]
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        how = ""
        if not self._exited.is_set():  # asked to end, or it closed its socket itself
            await asyncio.wait(events, timeout=_LEAVE_S)
            if not self._exited.is_set():
                how = "it did not end when asked to"
                self._strike()
        await asyncio.wait(events[:1])
        if not self._silent.is_set():
            # What it started may hold its socket for longer than it lives,
            # where a disk hangs: all that it sent is here.
            await asyncio.wait(events[1:], timeout=_LEAVE_S)
            self.channel.close()
            await asyncio.wait(events)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        await asyncio.to_thread(self._process.join, 1.0)
        code = self._process.exitcode
        if code is None:
            return how
        self._process.close()
        return how or _cause(code)

    def leave(self) -> None:
        """Leave it behind, killed but not ended: the end of this process does not wait for it.

        It may itself wait for this process: for a lock of the kernel's,
        which a thread here holds on a disk that hangs.
        """
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]

    def _has_exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exited.set()


def _launch(sock: socket.socket, lock: int, agent: str) -> BaseProcess:
    """Fork a worker: a few milliseconds, or a second where the fork server has to be started."""
    arguments = (sock, _Descriptor(lock), agent)
    process = fork_server.FORKSERVER.Process(target=child, args=arguments, daemon=True)
    try:
        with fork_server.unharmed():
            process.start()
    except FileNotFoundError:
        # Somebody has taken its socket away, or moved the folder:
        # the next start makes another one, wherever that is now.
        fork_server.end()
        fork_server.move()
        raise
    return process


class _Descriptor:
    """A descriptor that travels to a new process with its arguments."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._fd),)


def _received(duplicate: Any) -> int:
    fd: int = duplicate.detach()
    return fd


def _cause(code: int) -> str:
    if code == _UNKNOWN:
        return "how it ended is not known: its fork server, which alone learns it, is gone (or it exited with 255)"
    return f"it exited with {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
