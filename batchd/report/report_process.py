"""A process that makes reports, one at a time:
started when it is needed, kept while more may come, killed when it hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import msgspec

from batchd import children, decoders
from batchd.report.report_job import ReportJob, ReportOutcome

#: How long it is kept for the next report: thousands of small batches may end one after another.
_IDLE_S = 5.0
#: What it is given of the environment.
_VARIABLES = frozenset({"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
_OUTCOME: msgspec.json.Decoder[ReportOutcome] = decoders.decoder(ReportOutcome)


class ReportProcess:
    """Makes reports, each when its turn has come."""

    def __init__(self, *, behind: bool) -> None:
        """``behind``: all else that the machine does goes before."""
        self._behind = behind
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        #: The one before, so that somebody sees its end.
        self._killed: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Start it before it is needed. Where that fails, ``make`` says so."""
        if not self._turn.locked():
            async with self._turn:
                # No process, or no thread that waits for its end.
                with contextlib.suppress(OSError, RuntimeError):
                    self._process = self._process or await _started(behind=self._behind)
                    self._keep()

    async def make(self, wanted: ReportJob, timeout_s: float) -> str:
        """Make a report; return why there is none, empty: there is one.

        ``timeout_s``: once it has begun.
        """
        async with self._turn:
            return await self._made(wanted, timeout_s)

    async def close(self) -> None:
        """End it."""
        async with self._turn:
            await self._end()

    async def _made(self, wanted: ReportJob, timeout_s: float) -> str:
        answered = False
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._ask(wanted)
            answered = True
        except TimeoutError:
            return f"it took longer than {timeout_s:g} s ([report] timeout_s)"
        except (OSError, EOFError, RuntimeError) as error:
            return str(
                error
            )  # a process, or a thread that waits for it, could not be started, or it has died
        finally:
            if answered:
                self._keep()
            else:
                await self._end()
        return outcome.error

    async def _ask(self, wanted: ReportJob) -> ReportOutcome:
        process = self._process = self._process or await _started(behind=self._behind)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(wanted) + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the process that makes it was killed, perhaps for lack of memory")
        return _OUTCOME.decode(line)

    def _keep(self) -> None:
        """Keep it for a while."""
        if self._idle:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._rest)

    def _rest(self) -> None:
        """Let the process go, which has nothing to do."""
        if not self._turn.locked():
            self._kill()

    async def _end(self) -> None:
        """Let it go, whatever it does, and see it gone."""
        if self._idle:
            self._idle.cancel()
        self._kill()
        if self._killed:
            await self._killed.wait()

    def _kill(self) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            self._killed, self._process = self._process, None


async def _started(*, behind: bool) -> asyncio.subprocess.Process:
    environ = {k: v for k, v in os.environ.items() if k in _VARIABLES or k.startswith("PYTHON")}
    return await asyncio.create_subprocess_exec(
        # Its parent by number: in a container, 1 may be the daemon itself.
        *children.module("batchd.report", str(os.getpid()), *(["--behind"] if behind else [])),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environ,
        process_group=0,  # Ctrl-C is for the daemon
    )
