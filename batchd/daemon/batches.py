"""Open batches: from the store's promise to the last file in the outbox."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from batchd import results
from batchd.daemon.core import Core
from batchd.daemon.ending import End
from batchd.daemon.lines import TaskLog
from batchd.errors import BatchdError, Problem
from batchd.events import TaskFinished, TaskStarted
from batchd.log import Action
from batchd.records import Batch, Reason, Ref, Status, Task
from batchd.schedule import Queued
from batchd.spool import outbox
from batchd.store import QueuedTask, Restored

T = TypeVar("T")

#: So many tasks before a batch's end, its finishers get ready.
_FEW = 8
#: Tasks that are ended together, and then published: others get their turn in between.
_AT_ONCE = 500


class Write(Protocol):
    """Writes to the store: ``Core.durable``, or ``Core.ordered``."""

    async def __call__(self, write: Callable[[], Awaitable[T]]) -> T:
        """Return what ``write`` does."""


def _wanted() -> None:
    """Let tasks end in any case."""


@dataclass(slots=True, eq=False)
class _Open:
    """A batch whose summary is not written yet."""

    batch: Batch
    #: The ids of tasks without a confirmed result.
    left: set[str]
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
        self._open: dict[str, _Open] = {}
        #: Tasks whose end the daemon makes, and whose files it writes: each is done by one alone.
        self._ending: set[Ref] = set()
        self._written: set[Ref] = set()
        #: By batch: tasks that ended before they began, and whose results are still to be written.
        self._backlog: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Batch | None:
        """Return an open batch."""
        known = self._open.get(name)
        return known.batch if known else None

    def ending(self) -> Iterator[tuple[Batch, int, int]]:
        """Yield each batch of which something has ended and is not published.

        With it, its tasks without a result, 0 where the summary alone is missing; and how many of them wait for
        nothing but to be published.
        """
        queued = self._core.schedule.sizes()
        for name, known in self._open.items():
            left = len(known.left)
            if not left or left > queued[name]:
                yield known.batch, left, left - queued[name]

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
            self._open[batch.name] = _Open(batch, {task.id for task in tasks}, len(tasks))
            core.governor.money.open_batch(batch.name, batch.budget_usd, 0.0)
            for queued in core.store.queued(batch.name):
                core.schedule.add(_queued(queued))
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
            known = self._open[batch.name] = _Open(batch, set())
            errors = [str(problem) for problem in problems]
            core.log.warning(Action.BATCH_REJECTED, batch=batch.name, errors=errors)
            core.listeners.batch_rejected(batch, problems)
            self._look(known)
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
            self._look(known)

    def restore(self, restored: Restored, claimed: set[str]) -> None:
        """Take up what the last daemon left; ``claimed``: the claims whose files are still to be moved."""
        core = self._core
        for batch in restored.batches:
            known = self._open[batch.name] = _Open(batch, set())
            known.moved = batch.claim not in claimed
            spent = core.store.batch_money(batch.name).total if batch.budget_usd else 0.0
            core.governor.money.open_batch(batch.name, batch.budget_usd, spent)
        for queued in restored.queued:
            self._open[queued.ref.batch].left.add(queued.ref.task)
            core.schedule.add(_queued(queued))
        for ref in restored.unpublished:
            self._open[ref.batch].left.add(ref.task)
            core.spawn(self.publish(ref))
        for ref, status in restored.ended:
            if doomed := core.schedule.done(ref, status):
                self._doom(doomed, ref, status)
        for known in self._open.values():
            self._look(known)

    # A task's end

    async def finish(
        self,
        ref: Ref,
        status: Status,
        reason: Reason,
        message: str,
        *,
        attempts: int = 0,
        details: str = "",
    ) -> None:
        """End a task that no worker can end itself, and publish its result.

        ``attempts`` counts also those that left no event. ``details`` are for the log alone.
        """
        if known := self._claim(ref):
            await self._finish(
                known, ref, End(status, reason, message), attempts, self._core.durable
            )
            if details:
                self._core.log.error(
                    Action.TASK_FINISHED,
                    batch=ref.batch,
                    task=ref.task,
                    reason=reason,
                    details=details,
                )
            await self.publish(ref)

    async def finish_all(
        self, refs: Sequence[Ref], end: End, write: Write, check: Callable[[], None] = _wanted
    ) -> None:
        """End tasks that nobody works on, many in a transaction; return once that is durable, before they are published.

        ``write``: how the store is written to; what it raises leaves those that are left as they were. ``check``:
        asked before each transaction, in it: raises ``BatchdError`` where its tasks are not to end.
        """
        groups: dict[str, list[str]] = {}
        for ref in refs:
            groups.setdefault(ref.batch, []).append(ref.task)
        for batch, names in groups.items():
            for start in range(0, len(names), _AT_ONCE):
                some = [n for n in names[start : start + _AT_ONCE] if self._claim(Ref(batch, n))]
                if some:
                    await self._finish_some(self._open[batch], some, end, write, check)

    async def _finish_some(
        self, known: _Open, names: Sequence[str], end: End, write: Write, check: Callable[[], None]
    ) -> None:
        core, batch = self._core, known.batch
        found = {
            task.id: (task.model, end.event(batch, task, (), time.time()))
            for task in core.store.unbegun(batch.name, names)
        }
        events = [(Ref(batch.name, name), event) for name, (_, event) in found.items()]
        begun = [Ref(batch.name, name) for name in names if name not in found]
        try:
            fresh = await write(partial(core.store.finish_all, events, check=check))
            for (ref, event), is_end in zip(events, fresh, strict=True):
                self._ended(ref, event, found[ref.task][0] if is_end else "")
            await asyncio.gather(*(self._finish(known, ref, end, 0, write) for ref in begun))
        except BatchdError:
            self._ending.difference_update(Ref(batch.name, name) for name in names)
            raise
        for ref in begun:
            core.spawn(self.publish(ref))
        begins = batch.name not in self._backlog
        self._backlog.setdefault(batch.name, []).extend(found)
        if begins:
            core.spawn(self._publish_all(known))

    def _claim(self, ref: Ref) -> _Open | None:
        """Return a task's batch, for the one who ends it; None where it has ended, or somebody else is at it."""
        known = self._open.get(ref.batch)
        if known is None or ref.task not in known.left or ref in self._ending:
            return None
        self._ending.add(ref)
        return known

    async def _finish(self, known: _Open, ref: Ref, end: End, attempts: int, write: Write) -> None:
        """Store a task's end, unless it has one."""
        core, task = self._core, self._core.store.task(ref)
        events = core.store.events(ref)
        event = end.event(known.batch, task, events, time.time(), attempts=attempts)
        fresh = await write(partial(core.store.finish, ref, event, attempt=None))
        self._ended(ref, event, task.model if fresh else "")

    def _ended(self, ref: Ref, event: TaskFinished, model: str) -> None:
        """Note a durable end; without ``model`` it is another one, and known."""
        self._core.schedule.remove(ref)
        if model:
            TaskLog(ref, 0, model).event(event)
            self._core.listeners.task_event(ref, event)

    async def publish(self, ref: Ref) -> None:
        """Write a task's files as the store has them, and note it, unless that is done or under way."""
        core, known = self._core, self._open.get(ref.batch)
        if known is None or ref.task not in known.left or ref in self._written:
            return
        self._written.add(ref)
        folder = Path(known.batch.folder)
        events = core.store.events(ref)
        finished = events[-1]
        assert isinstance(finished, TaskFinished)

        def write() -> bool:
            transcript = results.transcript(events) if isinstance(events[0], TaskStarted) else ""
            return outbox.publish_task(folder, ref.task, transcript, finished.result)

        if not await core.on_disk(write, batch=known.batch):
            self._kept(ref)
        await self.confirm(ref, finished)

    async def _publish_all(self, known: _Open) -> None:
        """Publish results of tasks that never began, some at a time: their texts wait in the store."""
        core, name, folder = self._core, known.batch.name, Path(known.batch.folder)
        while names := self._backlog[name][:_AT_ONCE]:
            found = core.store.ends(name, names)
            texts = {ref.task: finished.result for ref, finished in found}
            publish = partial(outbox.publish_results, folder, texts)
            for task in await core.on_disk(publish, batch=known.batch):
                self._kept(Ref(name, task))
            await core.durable(partial(core.store.published_all, name, names))
            del self._backlog[name][:_AT_ONCE]
            for ref, finished in found:
                if ref.task in known.left:
                    self._published(known, ref, finished)
        del self._backlog[name]
        self._look(known)
        core.wake()

    def _kept(self, ref: Ref) -> None:
        """Say that a task's published result is another one than the store's."""
        message = (
            f"{ref.task}.json was there before with other content, and stays; what the store has of it is in "
            f"results.jsonl and `batchd logs {ref}`: was an older store put in place? `batchd restore` compares"
        )
        self._core.log.warning(
            Action.OUTBOX_TROUBLE, batch=ref.batch, task=ref.task, message=message
        )

    async def confirm(self, ref: Ref, finished: TaskFinished) -> None:
        """Note that a task's files are written."""
        core, known = self._core, self._open.get(ref.batch)
        if known is None:
            return  # another was faster, and the batch has ended
        await core.durable(partial(core.store.published, ref))
        if ref.task in known.left:
            self._published(known, ref, finished)
            self._look(known)
            core.wake()

    def _published(self, known: _Open, ref: Ref, finished: TaskFinished) -> None:
        core = self._core
        known.left.remove(ref.task)
        self._ending.discard(ref)
        self._written.discard(ref)
        if len(known.left) == _FEW:
            for finisher in core.finishers:
                core.spawn(finisher.soon(known.tasks, core.config))
        core.listeners.task_finished(ref, finished)
        if doomed := core.schedule.done(ref, finished.status):
            self._doom(doomed, ref, finished.status)

    def _doom(self, refs: Sequence[Ref], ref: Ref, status: Status) -> None:
        """End what comes after a task that did not complete."""
        message = f"it comes after {ref.task}, which ended as {status}"
        end = End(Status.CANCELLED, Reason.DEPENDENCY, message)
        self._core.spawn(self.finish_all(refs, end, self._core.durable))

    # A batch's end

    def _look(self, known: _Open) -> None:
        """See whether a batch can be closed."""
        if known.moved and not known.left and not known.closing:
            known.closing = True
            self._core.spawn(self._close(known))

    async def _close(self, known: _Open) -> None:
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


def _queued(task: QueuedTask) -> Queued:
    """Return what the schedule must know of a stored task."""
    return Queued(
        ref=task.ref,
        priority=task.priority,
        order=task.order,
        directory=task.directory,
        after=task.after,
        provider=task.model.partition("/")[0],
        model=task.model,
        begun=task.attempt > 0,
        suspect=task.crashes > 0,
    )
