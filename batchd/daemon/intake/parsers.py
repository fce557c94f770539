"""Task files parsed apart from the loop:
in processes that are killed with what they work on, several at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import msgspec

from batchd import __version__, children, decoders
from batchd.config import Config, trust
from batchd.errors import BatchdError, NotPossibleError, Problem, TaskFileError
from batchd.pool import code
from batchd.pool.supervisor import RESTART
from batchd.records import Task
from batchd.silent_paths import SilentPathError
from batchd.spool.parse_job import HEAD, ParsedPart, ParseJob
from batchd.spool.taskfile import Parsed

#: A larger file is a large one: those have their own processes, so that they hold up no others.
_LARGE_FILE_BYTES = 1 << 20
#: Processes of each kind, started when they are needed.
_COUNT = 2
#: How long one is kept for the next file.
_IDLE_S = 20.0
#: How long one may take in all:
#: it computes for ``max_parse_s`` at most, so it waits for a disk that hangs.
_HANGS_S = 600.0
#: What one gets to end once it is killed.
_END_S = 10.0
#: Unexplained deaths in the middle of one file before the file is refused.
_DEATHS = 2
#: What a process is given of the environment.
_VARIABLES = frozenset({"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "HOME"})
_PART: msgspec.json.Decoder[ParsedPart] = decoders.decoder(ParsedPart)


class BrokenParserError(BatchdError):
    """A bug of the parser; the message is its traceback."""


class Parsers:
    """Parses task files, each in a process, as soon as one is free."""

    def __init__(self) -> None:
        self._small, self._large = _Processes(), _Processes()

    async def parse(self, path: Path, name: str, config: Config) -> Parsed:
        """Return the tasks of a file.

        Raises ``TaskFileError``, also where that would take too long or too much memory;
        ``OSError`` where the system refuses what it needs,
        ``SilentPathError`` where a path of it does not answer,
        ``NotPossibleError`` after an upgrade in place, and ``BrokenParserError``.
        """
        try:
            size = (await asyncio.to_thread(path.lstat)).st_size
        except OSError:
            size = 0  # reading it shows why
        processes = self._large if size > _LARGE_FILE_BYTES else self._small
        # No key of a provider's leaves this process, but where no task may work.
        environ = {name: config.environ[name] for name in trust.VARIABLES if name in config.environ}
        job = ParseJob(path=str(path), name=name, config=replace(config, environ=environ))
        for _ in range(_DEATHS):
            try:
                return await processes.parse(job)
            except EOFError as error:
                why = str(error)
        raise _refusal(name, f"the process that reads it dies ({why}), perhaps for lack of memory")

    async def close(self) -> None:
        """End all processes."""
        await self._small.close()
        await self._large.close()


class _Processes:
    """Some processes that do the same."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_COUNT)
        self._idle: list[_Process] = []
        #: Those that were killed, until their end was seen.
        self._killed: list[_Process] = []

    async def parse(self, job: ParseJob) -> Parsed:
        """Let a free process parse a file.

        Raises ``EOFError`` where it died, and what ``Parsers.parse`` raises.
        """
        async with self._free:
            process = self._idle.pop() if self._idle else _Process()
            try:
                parsed = await process.parse(job)
            except (TaskFileError, SilentPathError):
                self._rest(process)
                raise
            except BaseException:
                await process.end()
                raise
            self._rest(process)
            return parsed

    async def close(self) -> None:
        """End those that have nothing to do; the others end with what waits for them."""
        ending = self._idle + self._killed
        self._idle, self._killed = [], []
        for process in ending:
            await process.end()

    def _rest(self, process: _Process) -> None:
        if process.alive:
            self._idle.append(process)
            process.idle = asyncio.get_running_loop().call_later(_IDLE_S, self._let_go, process)

    def _let_go(self, process: _Process) -> None:
        if process in self._idle:
            self._idle.remove(process)
            process.kill()
            self._killed = [*(each for each in self._killed if each.alive), process]


class _Process:
    """One process."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self.idle: asyncio.TimerHandle | None = None

    @property
    def alive(self) -> bool:
        """Whether it takes another file."""
        return self._process is not None and self._process.returncode is None

    async def parse(self, job: ParseJob) -> Parsed:
        """Parse a file. Raises what ``_Processes.parse`` raises; then it is to be ended."""
        if self.idle:
            self.idle.cancel()
        try:
            async with asyncio.timeout(_HANGS_S):
                return await self._ask(job)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "reading it hangs", job.path) from None
        except (EOFError, ConnectionError):
            assert self._process is not None
            code = await self._process.wait()
            if code == -signal.SIGXCPU:
                allowed = f"[spool] max_parse_s allows {job.config.spool.max_parse_s:g} s"
                raise _refusal(
                    job.name,
                    f"reading it takes too long: {allowed}",
                    "split it, or make it simpler",
                ) from None
            raise EOFError(_cause(code)) from None

    async def _ask(self, job: ParseJob) -> Parsed:
        try:
            process = self._process = self._process or await _started()
        except RuntimeError as error:  # no thread that waits for its end could be started
            raise BlockingIOError(errno.EAGAIN, str(error), job.path) from error
        assert process.stdin is not None
        body = pickle.dumps(job)
        process.stdin.write(len(body).to_bytes(HEAD) + body)
        await process.stdin.drain()
        tasks: list[Task] = []
        while True:
            part = await self._part()
            if part.problems:
                raise TaskFileError(part.problems)
            if part.silent:
                raise SilentPathError(part.silent)
            if part.refused:
                raise OSError(*part.refused, job.path)
            if part.bug:
                raise BrokenParserError(part.bug)
            tasks += part.tasks
            if part.last:
                return Parsed(tuple(tasks), part.budget_usd, part.parallel, part.after_batches)

    async def _part(self) -> ParsedPart:
        assert self._process is not None
        assert self._process.stdout is not None
        head = await self._process.stdout.readexactly(HEAD)
        body = await self._process.stdout.readexactly(int.from_bytes(head))
        await asyncio.sleep(0)  # where much is there already, others have their turn all the same
        return _PART.decode(body)

    async def end(self) -> None:
        """End it, whatever it does, and see it gone;
        one in a system call that nothing ends, on a disk that hangs, is left.
        """
        self.kill()
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await self._process.wait()

    def kill(self) -> None:
        """Kill it, without waiting for its end."""
        if self.idle:
            self.idle.cancel()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


async def _started() -> asyncio.subprocess.Process:
    """Start one. Raises ``OSError``, and ``NotPossibleError``
    where it would not understand what it is asked.
    """
    if await asyncio.to_thread(code.exchanged):
        raise NotPossibleError(
            f"the program that reads task files has another version than this daemon, batchd {__version__}: {RESTART}"
        )
    environ = {k: v for k, v in os.environ.items() if k in _VARIABLES or k.startswith("PYTHON")}
    return await asyncio.create_subprocess_exec(
        *children.module("batchd.spool", str(os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environ,
        process_group=0,  # Ctrl-C is for the daemon
    )


def _refusal(name: str, message: str, hint: str = "") -> TaskFileError:
    return TaskFileError((Problem("", message, hint),), name)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
