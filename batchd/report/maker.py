"""Has the daemon's reports made in a process apart: one at a time, behind everything else, and never at a batch's cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import msgspec

from batchd.config import Config
from batchd.daemon.finisher import Finisher
from batchd.log import Action, get_logger
from batchd.records import Batch
from batchd.report.job import Job, Outcome, job

#: How long the process is kept for the next batch: thousands of small ones may end one after another.
_IDLE_S = 5.0
#: What it is given of the environment.
_VARIABLES = frozenset({"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
_OUTCOME: msgspec.json.Decoder[Outcome] = msgspec.json.Decoder(Outcome)


class ReportMaker(Finisher):
    """Writes ``report.html`` into the folder of each batch that ends. What fails is logged, and holds nothing up."""

    def __init__(self, *, orders: bool = True) -> None:
        """``orders``: the store outlives the batch, so that a report may tell of ``batchd retry`` and the like."""
        self._orders = orders
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        #: The one before, so that somebody sees its end.
        self._killed: asyncio.subprocess.Process | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def soon(self, config: Config) -> None:
        """Start the process, which takes longer than most reports do. Where that fails, ``finish`` tells."""
        if config.report.enabled and not self._turn.locked():
            async with self._turn:
                with contextlib.suppress(OSError):
                    self._process = self._process or await _started()
                    self._keep()

    async def finish(self, batch: Batch, config: Config) -> None:
        """Make a batch's report, when its turn has come."""
        if not config.report.enabled:
            return
        async with self._turn:
            error = await self._made(batch, config)
        if error:
            get_logger().warning(
                Action.REPORT_TROUBLE,
                batch=batch.name,
                message=f"there is no report: {error}; `batchd report {batch.name}` makes it anew",
            )

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _made(self, batch: Batch, config: Config) -> str:
        """Return why there is no report; empty: there is one."""
        answered = False
        try:
            async with asyncio.timeout(config.report.timeout_s):
                outcome = await self._ask(job(batch, config, orders=self._orders))
            answered = True
        except TimeoutError:
            return f"it took longer than {config.report.timeout_s:g} s ([report] timeout_s)"
        except (OSError, EOFError) as error:
            return str(error)
        finally:
            if answered:
                self._keep()
            else:
                await self._end()
        return outcome.error

    async def _ask(self, wanted: Job) -> Outcome:
        process = self._process = self._process or await _started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(wanted) + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the process that makes it was killed; of memory perhaps")
        return _OUTCOME.decode(line)

    def _keep(self) -> None:
        """Keep the process for a while."""
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


async def _started() -> asyncio.subprocess.Process:
    environ = {k: v for k, v in os.environ.items() if k in _VARIABLES or k.startswith("PYTHON")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # nothing is imported from the directory that the daemon happens to be in
        "-m",
        "batchd.report",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environ,
        process_group=0,  # Ctrl-C is for the daemon
    )
