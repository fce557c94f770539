"""Reports that a process apart makes, one at a time:
started when it is needed, kept while more may come, killed when it hangs.
"""

from __future__ import annotations

import asyncio

import msgspec

from batchd.children import ChildBugError, ChildDiedError, Children
from batchd.config import Config
from batchd.daemon.listeners import Finisher
from batchd.log import Action, get_logger
from batchd.records import Batch
from batchd.web.batch_page import compared
from batchd.web.report import BEHIND, ReportJob, Style

#: The report's name in its batch's folder.
NAME = "report.html"
_MB = 1_000_000
#: How long it is kept for the next report: thousands of small batches may end one after another.
_IDLE_S = 5.0
#: A report over so many tasks takes a few milliseconds:
#: it need not wait behind all else, nor behind large ones.
_SMALL_REPORT_TASKS = 20


def style(config: Config) -> Style:
    """Return how reports are made under a configuration."""
    quota = int(config.report.transcripts_mb * _MB)
    return Style(quota=quota, compare=compared(config))


class ReportProcess:
    """Makes reports, each when its turn has come."""

    def __init__(self, *options: str) -> None:
        """``options``: of ``report``."""
        self._children = Children("batchd.web.report", *options, keep_s=_IDLE_S)
        self._turn = asyncio.Lock()

    async def make(self, wanted: ReportJob, timeout_s: float) -> str:
        """Make a report; return why there is none, empty: there is one.

        ``timeout_s``: once it has begun.
        """
        async with self._turn:
            try:
                why = await self._children.ask(msgspec.json.encode(wanted), timeout_s)
            except TimeoutError:
                return f"it took longer than {timeout_s:g} s ([report] timeout_s)"
            except ChildDiedError:
                return "the process that makes it was killed, perhaps for lack of memory"
            except (OSError, ChildBugError) as error:
                return str(error)
        return why.decode()

    async def close(self) -> None:
        """End it."""
        async with self._turn:
            await self._children.close()


class ReportMaker(Finisher):
    """Writes ``report.html`` into the folder of each batch that ends.

    What fails is logged, and holds nothing up.
    """

    def __init__(self) -> None:
        self._small, self._large = ReportProcess(), ReportProcess(BEHIND)
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
