"""Children: processes of ours that do jobs, any of which may take for ever, or all memory. What one
works on is killed with it.

A child runs the ``main`` of one of our modules, which ends with ``processes.serve``. It gets one
job at a time, is kept a while for the next one, and ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable

from batchd import processes
from batchd.errors import BatchdError

#: What a child gets to end once it is killed.
_END_S = 10.0
#: What each is given of the environment: no key of a provider's.
_VARIABLES = ("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


class ChildDiedError(BatchdError):
    """A child died at its job."""

    def __init__(self, code: int) -> None:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
        super().__init__(how)
        #: As ``subprocess`` has it: of a signal, its negative number.
        self.code = code


class ChildBugError(BatchdError):
    """A bug of what a child does; the message is the error in short."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


class Child:
    """A child at one job."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        #: What ends it when it has had no job for a while; None: it has one.
        self.rest: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether it is not known to have ended."""
        return self._process.returncode is None

    async def send(self, job: bytes) -> None:
        """Give it a job."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # that it has died, the answer says
            self._process.stdin.write(processes.HEAD.pack(False, len(job)) + job)
            await self._process.stdin.drain()

    async def answer(self) -> bytes:
        """Return the next thing that it says.

        Raises ``ChildDiedError`` and ``ChildBugError``.
        """
        said = self._process.stdout
        assert said is not None
        try:
            bug, length = processes.HEAD.unpack(await said.readexactly(processes.HEAD.size))
            body = await said.readexactly(length)
        except (EOFError, ConnectionError):
            raise ChildDiedError(await self._process.wait()) from None
        if bug:
            message, trace = json.loads(body)
            raise ChildBugError(message, trace)
        return body

    def kill(self) -> None:
        """Kill it, whatever it does, with all that it started."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and see it gone;
        one in a system call that nothing ends, on a disk that hangs, is left.
        """
        if self.rest:
            self.rest.cancel()
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._process.wait()


class Children:
    """The children that run one module: those that have done a job are kept for the next."""

    def __init__(
        self, module: str, *arguments: str, keep_s: float = 0.0, variables: Iterable[str] = ()
    ) -> None:
        """``keep_s``: for how long. ``variables``: what they get of the environment besides."""
        self._module, self._arguments = module, arguments
        self._keep_s = keep_s
        self._variables = (*_VARIABLES, *variables)
        self._all: list[Child] = []

    def resting(self) -> Child | None:
        """Return one that has no job."""
        self._all = [child for child in self._all if child.alive]
        now = asyncio.get_running_loop().time()
        return next((each for each in self._all if each.rest and each.rest.when() > now), None)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[Child]:
        """Lend one for a job, which is over with the block: one that an error leaves is ended.

        Raises ``OSError``, and ``ChildDiedError`` where it does not come up.
        """
        child = self.resting() or await self._started()
        try:
            if child.rest:
                child.rest.cancel()
                child.rest = None
            else:
                await child.answer()  # it is ready
            yield child
        except BaseException:
            await child.end()
            raise
        child.rest = asyncio.get_running_loop().call_later(self._keep_s, child.kill)

    async def ask(self, job: bytes, timeout_s: float) -> bytes:
        """Return the answer to a job that has one.

        Raises as ``one`` and ``Child.answer`` do, and ``TimeoutError``.
        """
        async with asyncio.timeout(timeout_s), self.one() as child:
            await child.send(job)
            return await child.answer()

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(child.end() for child in self._all))

    async def _started(self) -> Child:
        try:
            process = await asyncio.create_subprocess_exec(
                # Its parent by number: in a container, 1 may be the daemon itself.
                *processes.module(self._module, str(os.getpid()), *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={name: os.environ[name] for name in self._variables if name in os.environ},
                process_group=0,  # Ctrl-C is for us
            )
        except RuntimeError as error:  # no thread that waits for its end could be started
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        self._all.append(child := Child(process))
        return child
