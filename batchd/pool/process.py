"""One worker process, as the daemon holds it: how it is forked, and how it ends.

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
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from typing import Any

from batchd.pool import server
from batchd.pool.channel import Channel
from batchd.pool.start import child
from batchd.records import Ref

#: What a worker that was asked to end gets before it is killed.
_LEAVE_S = 10.0

#: What ``multiprocessing`` says of a process whose fork server is gone.
_UNKNOWN = 255


class Worker:
    """A worker process."""

    def __init__(self, on_message: Callable[[Worker, Any], None]) -> None:
        now = asyncio.get_running_loop().time()
        self.channel = Channel(lambda message: on_message(self, message), self._lost)
        self.pid = 0
        #: The tasks that it works on, and the attempt of each.
        self.tasks: dict[Ref, int] = {}
        #: Whether it is kept for one task alone, until that is done.
        self.alone = False
        #: Whether it gets no more tasks until it has none, so that one task can have it alone.
        self.clearing = False
        #: Gets no more tasks, and ends when it has none.
        self.retiring = False
        self.tasks_done = 0
        #: Resident memory in bytes.
        self.rss = 0
        #: Whether it has said Hello.
        self.greeted = False
        #: Set once it has, or never will.
        self._decided = asyncio.Event()
        #: When it was last heard of, and last had a task, by the loop's clock.
        self.heard_at = self.idle_since = now
        #: Why it ended, as far as that is known.
        self.cause = ""
        self._process: BaseProcess | None = None
        self._pidfd = -1
        #: How it broke the protocol of the channel.
        self._broken = ""
        self._exited = asyncio.Event()
        #: Set when the channel is closed: all that the worker sent is read.
        self._silent = asyncio.Event()

    async def fork(self, lock: int, agent: str) -> None:
        """Start it. Raises ``OSError`` or ``EOFError`` where the fork server died under our hands."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            await self.channel.attach(ours)
            self._process = await asyncio.to_thread(_launch, theirs, lock, agent)
        self.pid = self._process.pid or 0
        self.heard_at = loop.time()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._exited.set()
        else:
            loop.add_reader(self._pidfd, self._has_exited)
            if self.cause:
                self.kill(self.cause)

    def hello(self) -> None:
        """Note that it has said Hello."""
        self.greeted = True
        self._decided.set()

    def gone(self) -> None:
        """Note that it has ended, or could not be started."""
        self._decided.set()

    async def up(self) -> bool:
        """Return, once that is known, whether it came up."""
        await self._decided.wait()
        return self.greeted

    def kill(self, cause: str) -> None:
        """End it at once; also before it has started."""
        if self._exited.is_set():
            return
        self.cause = self.cause or cause
        if self._pidfd >= 0:
            # It may have ended this instant, and its fork server have buried it: `_has_exited` is on its way.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def ended(self) -> None:
        """Return when it has exited and all that it sent is read."""
        events = [asyncio.ensure_future(e.wait()) for e in (self._exited, self._silent)]
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        if not self._exited.is_set():  # asked to end, or it closed its socket itself
            await asyncio.wait(events, timeout=_LEAVE_S)
            self.kill("it did not end when asked to")
        await asyncio.wait(events[:1])
        if not self._silent.is_set():
            # What it started may hold its socket for longer than it lives, where a disk hangs: all that it sent is here.
            await asyncio.wait(events[1:], timeout=_LEAVE_S)
            self.channel.close()
            await asyncio.wait(events)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        assert self._process is not None
        await asyncio.to_thread(self._process.join, 1.0)
        code = self._process.exitcode
        if code is not None:
            self._process.close()
            self.cause = self.cause or self._broken or _cause(code)

    def leave(self) -> None:
        """Leave it behind, killed but not ended: the end of this process does not wait for it.

        It may itself wait for this process: for a lock of the kernel's, which a thread here holds on a disk that hangs.
        """
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]  # noqa: SLF001 (no other way to it)

    def _has_exited(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.retiring = True
        self._exited.set()

    def _lost(self, cause: str) -> None:
        self._broken = cause
        self.retiring = True
        self._silent.set()


def _launch(sock: socket.socket, lock: int, agent: str) -> BaseProcess:
    """Fork a worker: a few milliseconds, or a second where the fork server has to be started."""
    arguments = (sock, _Descriptor(lock), agent)
    process = server.FORKSERVER.Process(target=child, args=arguments, daemon=True)
    try:
        with server.unharmed():
            process.start()
    except FileNotFoundError:
        # Somebody has taken its socket away, or moved the folder: the next start makes another one, wherever that is now.
        server.end()
        server.move()
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
