"""Open batches: from the store's promise to the last file in the outbox."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from batchd import results
from batchd.daemon.core import Core
from batchd.errors import Problem
from batchd.lifecycle import Facts, inputs
from batchd.log import Action
from batchd.records import Batch, Status, Task
from batchd.spool import outbox
from batchd.store import QueuedTask, Restored


@dataclass(slots=True, eq=False)
class Open:
    """A batch whose summary is not written yet."""

    batch: Batch
    #: How many tasks it has; 0 where an earlier daemon took it up.
    tasks: int = 0
    #: Whether the dropped file lies in its folder.
    moved: bool = False
    #: Whether its last files are being written.
    closing: bool = False
    #: Set when they are; made when somebody waits for it, for there may be 100,000 batches.
    done: asyncio.Event | None = None


class Batches:
    """Takes batches up, and sees to it that each task and each batch has its files."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: dict[str, Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Batch | None:
        """Return an open batch."""
        known = self._open.get(name)
        return known.batch if known else None

    def open(self, name: str) -> Open | None:
        """Return what is known of an open batch."""
        return self._open.get(name)

    def ending(self) -> Iterator[tuple[Batch, int, int]]:
        """Yield each batch of which something has ended and is not published.

        With it, its tasks without a result, 0 where the summary alone is missing; and how many of them wait for
        nothing but to be published.
        """
        lifecycle = self._core.lifecycle
        entries = lifecycle.entries.values() if lifecycle.ending else ()
        ended = collections.Counter(entry.ref.batch for entry in entries if not entry.phase.open)
        for name, known in self._open.items():
            left = len(lifecycle.of(name))
            if not left or ended[name]:
                yield known.batch, left, ended[name]

    async def done(self, name: str) -> None:
        """Wait until a batch's summary is written."""
        if known := self._open.get(name):
            known.done = known.done or asyncio.Event()
            await known.done.wait()

    # Taking up

    async def add(self, batch: Batch, tasks: Sequence[Task]) -> Batch:
        """Store a batch and queue its tasks; return it with its final name. Then call ``moved``."""
        write = partial(self._core.store.add_batch, tasks=tasks)
        return self.opened(await self._stored(batch, write), tasks)

    def opened(self, batch: Batch, tasks: Sequence[Task]) -> Batch:
        """Queue the tasks of a batch that is stored, and return it. Then call ``moved``."""
        core = self._core
        if batch.name not in self._open:
            self._open[batch.name] = Open(batch, len(tasks))
            core.governor.money.open_batch(batch.name, batch.budget_usd, 0.0)
            for queued in core.store.queued(batch.name):
                self._queue(queued)
            core.log.info(
                Action.BATCH_RECEIVED, batch=batch.name, tasks=len(tasks), request=batch.request
            )
            core.listeners.batch_received(batch, tasks)
            core.wake()
        return batch

    async def reject(self, batch: Batch, problems: Sequence[Problem]) -> Batch:
        """Store a refused file; return its batch with its final name. Then call ``moved``."""
        core = self._core
        batch = await self._stored(batch, partial(core.store.reject, problems=problems))
        if batch.name not in self._open:
            self._open[batch.name] = Open(batch)
            errors = [str(problem) for problem in problems]
            core.log.warning(Action.BATCH_REJECTED, batch=batch.name, errors=errors)
            core.listeners.batch_rejected(batch, problems)
            self.look(batch.name)
        return batch

    async def _stored(self, batch: Batch, write: Callable[[Batch], Awaitable[Batch]]) -> Batch:
        """Store a batch once the outbox takes its folder, which reserves its name.

        Until then it is no outbox's: it goes to the one that is configured when that works.
        """
        core = self._core

        def here() -> Batch:
            return replace(batch, outbox=core.config.paths.outbox)

        async def stored() -> Batch:
            found = here()
            await core.reach(found.outbox)  # the store's one thread looks into it, for all batches
            return await core.durable(partial(write, found))

        return await core.patiently(stored, Action.OUTBOX_TROUBLE, here)

    @property
    def outboxes(self) -> set[str]:
        """The outboxes of open batches."""
        return {known.batch.outbox for known in self._open.values()}

    def moved(self, name: str) -> None:
        """Say that a batch's file lies in its folder, so that its summary may be the last file."""
        if known := self._open.get(name):
            known.moved = True
            self.look(name)

    def restore(self, restored: Restored, claimed: set[str]) -> None:
        """Take up what the last daemon left; ``claimed``: the claims whose files are still to be moved."""
        core = self._core
        for batch in restored.batches:
            known = self._open[batch.name] = Open(batch)
            known.moved = batch.claim not in claimed
            spent = core.store.batch_money(batch.name).total if batch.budget_usd else 0.0
            core.governor.money.open_batch(batch.name, batch.budget_usd, spent)
        for queued in restored.queued:
            self._queue(queued)
        for ref in restored.unpublished:
            core.note(inputs.Unpublished(ref))
        for name in self._open:
            self.look(name)

    def _queue(self, task: QueuedTask) -> None:
        self._core.note(inputs.Accepted(_facts(task)))

    # A batch's end

    def look(self, name: str) -> None:
        """See whether a batch can be closed."""
        known = self._open[name]
        if known.moved and not known.closing and not self._core.lifecycle.of(name):
            known.closing = True
            self._core.spawn(self._close(known))

    async def _close(self, known: Open) -> None:
        """Write a batch's last files, the summary last of all."""
        core, batch = self._core, known.batch
        folder, now = Path(batch.folder), time.time()
        problems = core.store.problems(batch.name)
        sums = results.Sums()
        if not await core.on_disk(partial(outbox.has_request, batch), batch=batch):
            message = (
                f"{folder} was taken away before its summary; results.jsonl in the new one has all"
            )
            core.log.warning(Action.OUTBOX_TROUBLE, batch=batch.name, message=message)
        there = await core.on_disk(partial(outbox.summary, batch), batch=batch)
        if not problems:
            sums = await core.on_disk(
                partial(_write_results, core, batch, there is None), batch=batch
            )
        if there is None and not problems:
            for finisher in core.finishers:
                await finisher.finish(batch, len(sums), core.config)

        def write() -> str:
            if there is not None:
                return there  # it was written before a crash, and somebody may have read it
            if problems:
                summary = results.rejected(batch, problems, now)
            else:
                summary = sums.summary(batch, now)
            outbox.publish(folder / "summary.json", summary.encode(), replace=True)
            return summary

        summary = await core.on_disk(write, batch=batch)
        await core.durable(partial(core.store.batch_published, batch.name))
        del self._open[batch.name]
        core.governor.money.close_batch(batch.name)
        if not problems:
            core.log.info(Action.BATCH_FINISHED, batch=batch.name, tasks=len(sums))
            core.listeners.batch_finished(batch, summary)
        if known.done:
            known.done.set()


def _write_results(core: Core, batch: Batch, replace: bool) -> results.Sums:
    """Write the results of a batch into one file, one at a time, for all may be more than the memory holds; return their sums.

    ``replace`` False: they lie there, and only the sums are wanted.
    """
    sums = results.Sums()

    def lines() -> Iterator[bytes]:
        with core.store.reading() as reader:
            for _, text in reader.results(batch.name):
                sums.add(text)
                yield results.line(text).encode()

    if replace:
        outbox.publish_lines(Path(batch.folder, "results.jsonl"), lines())
    else:
        collections.deque(lines(), maxlen=0)
    return sums


def _facts(task: QueuedTask) -> Facts:
    """Return what a stored task's turn hangs on."""
    return Facts(
        ref=task.ref,
        priority=task.priority,
        order=task.order,
        directory=task.directory,
        after=task.after,
        model=task.model,
        begun=task.attempt > 0,
        suspect=task.crashes > 0,
        given_back=task.status is Status.PARKED,
    )
