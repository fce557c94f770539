"""What a test has a daemon of its own process do, without an inbox."""

from __future__ import annotations

import asyncio
import time

from batchd.daemon import Daemon
from batchd.daemon.intake import as_asked, new_batch
from batchd.records import Batch
from batchd.spool import taskfile
from batchd.spool.ulid import ulid


async def submit(daemon: Daemon, name: str, data: bytes) -> Batch:
    """Take up a task file by its name and content. Raises ``TaskFileError``."""
    config = daemon.current.config
    parsed = taskfile.parse(data, name, config)
    batch = as_asked(new_batch(ulid(), name, config.paths.outbox, time.time()), parsed)
    batch = await daemon.batches.add(batch, parsed.tasks)
    await daemon.batches.bring(batch, data)
    return batch


async def batch_done(daemon: Daemon, name: str) -> None:
    """Wait until a batch's ``summary.json`` is written, or a part of the daemon breaks."""

    async def written() -> None:
        while daemon.batches.get(name) is not None:  # noqa: ASYNC110 (the daemon tells nobody)
            await asyncio.sleep(0.005)

    await daemon.loop.first(written())
