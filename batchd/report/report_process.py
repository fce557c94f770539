"""A process that makes reports, one at a time:
started when it is needed, kept while more may come, killed when it hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass

import msgspec

from batchd import decoders, processes
from batchd.actions import Action
from batchd.config import Config
from batchd.daemon.listeners import Finisher
from batchd.log import get_logger
from batchd.records import Batch, Price
from batchd.report.building import Style

#: The report's name in its batch's folder.
NAME = "report.html"
_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportJob:
    """One report, on one batch."""

    #: The path of the store.
    store: str
    batch: str
    #: The path of the report.
    target: str
    style: Style


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOutcome:
    """What became of it."""

    #: Its size.
    bytes: int = 0
    #: Why there is none; empty: there is one.
    error: str = ""


def job(batch: Batch, config: Config, style: Style) -> ReportJob:
    """Return the job to report on a batch in its own folder."""
    return ReportJob(
        store=f"{config.paths.state}/batchd.db",
        batch=batch.name,
        target=f"{batch.folder}/{NAME}",
        style=style,
    )


def style(config: Config) -> Style:
    """Return how reports are made under a configuration."""
    return Style(
        quota=int(config.report.transcripts_mb * _MB),
        compare=tuple(_priced(config)),
    )


def _priced(config: Config) -> list[tuple[str, Price | None]]:
    from batchd.pricing import Prices  # who does the jobs starts without

    prices = Prices(config.models)
    known = ((name, config.providers.get(name.partition("/")[0])) for name in config.cost.compare)
    return [(name, prices.price(name, p.base_url if p else "")) for name, p in known]


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
                process = self._process = self._process or await _started(behind=self._behind)
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(msgspec.json.encode(wanted) + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
                if not line.endswith(b"\n"):
                    raise EOFError(
                        "the process that makes it was killed, perhaps for lack of memory"
                    )
                outcome = _OUTCOME.decode(line)
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
        *processes.module("batchd.report", str(os.getpid()), *(["--behind"] if behind else [])),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environ,
        process_group=0,  # Ctrl-C is for the daemon
    )


#: A report over so many tasks takes a few milliseconds:
#: it need not wait behind all else, nor behind large ones.
_SMALL_REPORT_TASKS = 20


class ReportMaker(Finisher):
    """Writes ``report.html`` into the folder of each batch that ends.

    What fails is logged, and holds nothing up.
    """

    def __init__(self) -> None:
        self._small = ReportProcess(behind=False)
        self._large = ReportProcess(behind=True)
        #: The last configuration, and how reports are made under it: prices are looked up once.
        self._style: tuple[Config, Style] | None = None

    async def soon(self, tasks: int, config: Config) -> None:
        """Start the process, which takes longer than most reports do."""
        if config.report.enabled:
            await self._process(tasks).start()

    async def finish(self, batch: Batch, tasks: int, config: Config) -> None:
        """Make a batch's report, when its turn has come."""
        if not config.report.enabled:
            return
        if self._style is None or self._style[0] is not config:
            self._style = config, style(config)
        wanted = job(batch, config, self._style[1])
        if error := await self._process(tasks).make(wanted, config.report.timeout_s):
            get_logger().warning(
                Action.REPORT_TROUBLE,
                batch=batch.name,
                message=f"there is no report: {error}; `batchd report {batch.name}` makes it again",
            )

    async def close(self) -> None:
        """End the processes."""
        await self._small.close()
        await self._large.close()

    def _process(self, tasks: int) -> ReportProcess:
        return self._small if tasks <= _SMALL_REPORT_TASKS else self._large
