"""Task files parsed apart from the loop, in one process that is killed with what it works on."""

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

from batchd import __version__, decoders, processes
from batchd.config import Config, trust
from batchd.errors import BatchdError, NotPossibleError, Problem, TaskFileError
from batchd.pool import code
from batchd.pool.supervisor import RESTART
from batchd.records import Task
from batchd.silent_paths import SilentPathError
from batchd.spool.parse_job import HEAD, ParsedPart, ParseJob
from batchd.spool.taskfile import Parsed

#: How long a file's first turn is where others wait (seconds); each further one is twice as long.
_TURN_S = 2.0
#: How long the process is kept for the next file.
_IDLE_S = 20.0
#: How long a file may take in all while none waits:
#: it computes for ``max_parse_s`` at most, so it waits for a disk that hangs.
_HANGS_S = 600.0
#: What the process gets to end once it is killed.
_END_S = 10.0
#: Unexplained deaths in the middle of one file before the file is refused.
_DEATHS = 2
#: What the process is given of the environment, and its jobs: where no task may work.
_VARIABLES = frozenset({"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "HOME"})
_PLACES = {*trust.VARIABLES, *trust.DATA}
_PART: msgspec.json.Decoder[ParsedPart] = decoders.decoder(ParsedPart)


class BrokenParserError(BatchdError):
    """A bug of the parser; the message is its traceback."""


class Parser:
    """Parses task files, one after the other; one that takes longer than its turn goes behind all
    that wait.
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._turns = asyncio.Lock()
        self._waiting = 0
        #: Of the file that is being read: its limit, and when its turn ends where others wait.
        self._limit: asyncio.Timeout | None = None
        self._turn_ends = 0.0

    async def parse(self, path: Path, name: str, config: Config) -> Parsed:
        """Return the tasks of a file.

        Raises ``TaskFileError``, also where that would take too long or too much memory;
        ``OSError`` where the system refuses what it needs, or reading it hangs,
        ``SilentPathError`` where a path of it does not answer,
        ``NotPossibleError`` after an upgrade in place, and ``BrokenParserError``.
        """
        # No key of a provider's leaves this process.
        environ = {name: config.environ[name] for name in _PLACES & config.environ.keys()}
        job = ParseJob(path=str(path), name=name, config=replace(config, environ=environ))
        turn_s, deaths = _TURN_S, 0
        while turn_s <= 2 * config.spool.max_parse_s:
            try:
                if (parsed := await self._turn(job, turn_s)) is not None:
                    return parsed
                turn_s *= 2
            except EOFError as error:
                deaths += 1
                if deaths == _DEATHS:
                    why = f"the process that reads it dies ({error}), perhaps for lack of memory"
                    raise _refusal(name, why) from error
        raise OSError(errno.ETIMEDOUT, "reading it hangs", job.path)

    async def close(self) -> None:
        """End the process."""
        if self._idle:
            self._idle.cancel()
        await self._end()

    async def _turn(self, job: ParseJob, turn_s: float) -> Parsed | None:
        """Let the process parse a file in its turn; None: the turn is over, and others wait.

        Raises ``EOFError`` where the process dies, and what ``parse`` raises.
        """
        loop = asyncio.get_running_loop()
        self._waiting += 1
        if self._limit:
            self._limit.reschedule(max(loop.time(), self._turn_ends))
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            if self._idle:
                self._idle.cancel()
            async with asyncio.timeout(_HANGS_S) as limit:
                process = await self._ready(job.path)
                # What it takes to start is not the file's.
                self._turn_ends = loop.time() + turn_s
                if self._waiting:
                    limit.reschedule(self._turn_ends)
                self._limit = limit
                try:
                    return await _asked(process, job)
                finally:
                    self._limit = None
        except (TaskFileError, SilentPathError):
            raise
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError) and limit.expired():
                if self._waiting:
                    return None
                raise OSError(errno.ETIMEDOUT, "reading it hangs", job.path) from error
            raise
        finally:
            self._idle = loop.call_later(_IDLE_S, self._let_go)
            self._turns.release()

    async def _ready(self, path: str) -> asyncio.subprocess.Process:
        """Return the process, once it takes a file.

        Raises ``OSError``, and ``NotPossibleError`` where it would not understand what it is asked.
        """
        if self._process is not None and self._process.returncode is None:
            return self._process
        if await asyncio.to_thread(code.exchanged):
            raise NotPossibleError(
                f"the program that reads task files has another version than this daemon, batchd {__version__}: {RESTART}"
            )
        environ = {k: v for k, v in os.environ.items() if k in _VARIABLES or k.startswith("PYTHON")}
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                *processes.module("batchd.spool", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environ,
                process_group=0,  # Ctrl-C is for the daemon
            )
        except RuntimeError as error:  # no thread that waits for its end could be started
            raise BlockingIOError(errno.EAGAIN, str(error), path) from error
        assert process.stdout is not None
        await process.stdout.readexactly(HEAD)
        return process

    def _let_go(self) -> None:
        """Have a process end that has nothing to do: it ends with its input."""
        if self._process and self._process.stdin and not self._turns.locked():
            self._process.stdin.close()
            self._process = None

    async def _end(self) -> None:
        """End the process, whatever it does, and see it gone;
        one in a system call that nothing ends, on a disk that hangs, is left.
        """
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await process.wait()


async def _asked(process: asyncio.subprocess.Process, job: ParseJob) -> Parsed:
    """Have a process parse a file.

    Raises ``EOFError`` where it dies, and what ``Parser.parse`` raises.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    tasks: list[Task] = []
    try:
        body = pickle.dumps(job)
        process.stdin.write(len(body).to_bytes(HEAD) + body)
        await process.stdin.drain()
        while True:
            head = await process.stdout.readexactly(HEAD)
            part = _PART.decode(await process.stdout.readexactly(int.from_bytes(head)))
            # Where much is there already, others have their turn all the same.
            await asyncio.sleep(0)
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
    except (EOFError, ConnectionError):
        code = await process.wait()
        if code == -signal.SIGXCPU:
            allowed = f"[spool] max_parse_s allows {job.config.spool.max_parse_s:g} s"
            hint = "split it, or make it simpler"
            raise _refusal(job.name, f"reading it takes too long: {allowed}", hint) from None
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
        raise EOFError(how) from None


def _refusal(name: str, message: str, hint: str = "") -> TaskFileError:
    return TaskFileError((Problem("", message, hint),), name)
