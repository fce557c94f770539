"""Makes the daemon's reports in separate processes: never at an agent's cost, and never at a
batch's.
"""

from __future__ import annotations

from batchd.actions import Action
from batchd.config import Config
from batchd.daemon.listeners import Finisher
from batchd.log import get_logger
from batchd.records import Batch
from batchd.report.building import Style
from batchd.report.report_job import ReportJob, job, style
from batchd.report.report_process import ReportProcess

#: A report over so many tasks takes a few milliseconds:
#: it need not wait behind all else, nor behind large ones.
_SMALL_REPORT_TASKS = 20


class ReportMaker(Finisher):
    """Writes ``report.html`` into the folder of each batch that ends.

    What fails is logged, and holds nothing up.
    """

    def __init__(self, *, orders: bool = True) -> None:
        """``orders``: the store outlives the batch,
        so that a report may name ``batchd retry`` and the like.
        """
        self._orders = orders
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
        wanted = self._job(batch, config)
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

    def _job(self, batch: Batch, config: Config) -> ReportJob:
        if self._style is None or self._style[0] is not config:
            self._style = config, style(config, orders=self._orders)
        return job(batch, config, self._style[1])
