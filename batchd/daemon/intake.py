"""From a claimed file to queued tasks, or to a refusal with all its reasons."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import replace
from pathlib import Path

from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.errors import TaskFileError
from batchd.records import Batch
from batchd.spool import outbox, taskfile
from batchd.spool.inbox import Claim, Inbox

#: Files that are taken up at a time: their syncs of the disk are shared.
_AT_ONCE = 64
#: A larger file is parsed in a thread.
_LARGE = 64 << 10
#: The endings that a request keeps: a dropped file may be called anything.
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,16}")


class Intake:
    """Takes up what the inbox claims."""

    def __init__(self, core: Core, batches: Batches, inbox: Inbox) -> None:
        self._core = core
        self._batches = batches
        self._inbox = inbox
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Take up claims until the inbox stops."""
        async for claim in self._inbox.claims():
            await self._free.acquire()
            self._core.spawn(self._take(claim))

    async def _take(self, claim: Claim) -> None:
        try:
            batch = self._core.store.claimed(claim.ulid) or await self._store(claim)
            await self._core.on_disk(lambda: _move(claim.path, batch))
            self._batches.moved(batch.name)
        finally:
            self._free.release()

    async def _store(self, claim: Claim) -> Batch:
        config = self._core.config
        batch = new_batch(claim.ulid, claim.name, config.paths.outbox, claim.received_at)
        try:
            data = taskfile.read(claim.path, config.spool.max_file_bytes)
            if len(data) > _LARGE:
                parsed = await asyncio.to_thread(taskfile.parse, data, claim.name, config)
            else:
                parsed = taskfile.parse(data, claim.name, config)
        except TaskFileError as error:
            return await self._batches.reject(batch, error.problems)
        return await self._batches.add(with_budget(batch, parsed), parsed.tasks)


def _move(claimed: Path, batch: Batch) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody took it away: the store has its tasks
        outbox.publish_request(claimed, batch)


def new_batch(claim: str, filename: str, folder: str, received_at: float) -> Batch:
    """Return the batch that a dropped file becomes, before the store has the last word on its name."""
    ending = Path(filename).suffix
    return Batch(
        name=outbox.batch_name(filename),
        claim=claim,
        outbox=folder,
        request=f"request{ending if _ENDING.fullmatch(ending) else ''}",
        received_at=received_at,
    )


def with_budget(batch: Batch, parsed: taskfile.Parsed) -> Batch:
    """Return the batch with what its file says of its budget."""
    return replace(batch, budget_usd=parsed.budget_usd)
