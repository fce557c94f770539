"""Finishers: what others than the daemon put into a batch's folder before its summary."""

from __future__ import annotations

from batchd.config import Config
from batchd.records import Batch


class Finisher:
    """A finisher: subclass it and hand it to the daemon.

    The summary waits for it: be bounded, and never fail.
    """

    async def soon(self, tasks: int, config: Config) -> None:
        """Get ready: of a batch of so many tasks, few have not ended."""

    async def finish(self, batch: Batch, tasks: int, config: Config) -> None:
        """Write what is to lie beside the results of a batch; all its tasks, so many, have ended.

        May be called again for the same batch after a crash,
        and is cancelled where the daemon ends.
        """

    async def close(self) -> None:
        """The daemon ends: let go of everything."""
