"""Reports that processes apart make, two at a time:
started when they are needed, kept while more may come, killed when they hang.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec

from batchd.children import ChildBugError, ChildDiedError, Children
from batchd.config import Config
from batchd.daemon.listeners import Finisher
from batchd.log import Action, get_logger
from batchd.pricing import compared
from batchd.records import Batch
from batchd.sandbox import patiently
from batchd.web.report import ReportJob, Style

#: The report's name in its batch's folder.
NAME = "report.html"
_MB = 1_000_000
#: How long one is kept for the next report: thousands of small batches may end one after another.
_IDLE_S = 5.0
#: A report over so many tasks takes a few milliseconds.
_SMALL_REPORT_TASKS = 20


def style(config: Config) -> Style:
    """Return how reports are made under a configuration."""
    quota = int(config.report.transcripts_mb * _MB)
    return Style(quota=quota, compare=compared(config))


class ReportMaker(Finisher):
    """Writes ``report.html`` into the folder of each batch that ends.

    What fails is logged, and holds nothing up.
    """

    def __init__(self) -> None:
        self._children = Children("batchd.web.report", keep_s=_IDLE_S)
        #: Two at a time, of which one is large: small ones need not wait for it.
        self._turns, self._large = asyncio.Semaphore(2), asyncio.Lock()
        #: The last configuration, and how reports are made under it: prices are looked up once.
        self._style: tuple[Config, Style] | None = None

    async def finish(self, batch: Batch, tasks: int, config: Config) -> None:
        """Make a batch's report, when its turn has come."""
        if not config.report.enabled:
            return
        if self._style is None or self._style[0] is not config:
            self._style = config, style(config)
        wanted = ReportJob(
            store=f"{config.paths.state}/batchd.db",
            batch=batch.name,
            target=f"{batch.folder}/{NAME}",
            style=self._style[1],
        )
        job, limit_s = msgspec.json.encode(wanted), config.report.timeout_s
        large = self._large if tasks > _SMALL_REPORT_TASKS else contextlib.nullcontext()
        async with large, self._turns:
            try:
                # The machine may have no process to give at the moment when a batch ends.
                error = (await patiently(lambda: self._children.ask(job, limit_s))).decode()
            except TimeoutError:
                error = f"it took longer than {limit_s:g} s ([report] timeout_s)"
            except ChildDiedError:
                error = "the process that makes it was killed, perhaps for lack of memory"
            except (OSError, ChildBugError) as failure:
                error = str(failure)
        if error:
            get_logger().warning(
                Action.REPORT_TROUBLE,
                batch=batch.name,
                message=f"there is no report: {error}; `batchd report {batch.name}` makes it again",
            )

    async def close(self) -> None:
        """End the processes, once their reports are made."""
        async with self._turns, self._turns:
            await self._children.close()
