"""Open batches: from the store's promise to the last file in the outbox."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batchd import results
from batchd.daemon.core import Core
from batchd.daemon.lines import TaskLog
from batchd.errors import Problem
from batchd.events import Resumed, TaskFinished, TaskStarted
from batchd.log import Action
from batchd.records import Batch, ErrorInfo, Reason, Ref, Status, Task
from batchd.schedule import Queued
from batchd.spool import outbox
from batchd.store import QueuedTask, Restored
from batchd.taskstate import fold

#: So many tasks before a batch's end, its finishers get ready.
_FEW = 8
#: Tasks that are ended together: their commits are shared.
_AT_ONCE = 256


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

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Batch | None:
        """Return an open batch."""
        known = self._open.get(name)
        return known.batch if known else None

    async def done(self, name: str) -> None:
        """Wait until a batch's summary is written."""
        if known := self._open.get(name):
            known.done = known.done or asyncio.Event()
            await known.done.wait()

    # Taking up

    async def add(self, batch: Batch, tasks: Sequence[Task]) -> Batch:
        """Store a batch and queue its tasks; return it with its final name. Then call ``moved``."""
        core = self._core
        batch = await self._stored(partial(core.store.add_batch, batch, tasks))
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
        batch = await self._stored(partial(core.store.reject, batch, problems))
        if batch.name not in self._open:
            known = self._open[batch.name] = _Open(batch, set())
            errors = [str(problem) for problem in problems]
            core.log.warning(Action.BATCH_REJECTED, batch=batch.name, errors=errors)
            core.listeners.batch_rejected(batch, problems)
            self._look(known)
        return batch

    async def _stored(self, write: Callable[[], Awaitable[Batch]]) -> Batch:
        """Store a batch once the outbox takes its folder, which reserves its name."""
        core = self._core
        return await core.patiently(lambda: core.durable(write), Action.OUTBOX_TROUBLE)

    def moved(self, name: str) -> None:
        """Say that a batch's file lies in its folder, so that its summary may be the last file."""
        if known := self._open.get(name):
            known.moved = True
            self._look(known)

    def restore(self, restored: Restored, claimed: set[str]) -> None:
        """Take up what the last daemon left; ``claimed``: the claims whose files are still to be moved."""
        core = self._core
        core.governor.money.open_day(core.store.day_money(time.time()).total)
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
            self._cancel_dependants(ref, status)
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
        core, batch, now = self._core, self.get(ref.batch), time.time()
        if batch is None or ref.task not in self._open[ref.batch].left:
            return  # somebody else has ended it meanwhile
        task, events = core.store.task(ref), core.store.events(ref)
        state = fold(task.first_prompt, events)
        started = any(isinstance(e, TaskStarted) for e in events)
        text = results.result(
            batch,
            task,
            state,
            status=status,
            reason=reason,
            error=ErrorInfo(type=reason, message=message, retries=state.retries),
            queued_at=batch.received_at,
            finished_at=now,
            attempts=max(attempts, started + sum(isinstance(e, Resumed) for e in events)),
            files=None,
        )
        event = TaskFinished(at=now, status=status, reason=reason, result=text)
        if await core.durable(partial(core.store.finish, ref, event, attempt=None)):
            TaskLog(ref, 0, task.model).event(event)
            core.listeners.task_event(ref, event)
        if details:
            core.log.error(
                Action.TASK_FINISHED, batch=ref.batch, task=ref.task, reason=reason, details=details
            )
        await self.publish(ref)

    async def publish(self, ref: Ref) -> None:
        """Write a task's files as the store has them, and note it."""
        core, batch = self._core, self.get(ref.batch)
        if batch is None:
            return
        folder = Path(batch.folder)
        events = core.store.events(ref)
        finished = events[-1]
        assert isinstance(finished, TaskFinished)

        def write() -> bool:
            transcript = results.transcript(events) if isinstance(events[0], TaskStarted) else ""
            return outbox.publish_task(folder, ref.task, transcript, finished.result)

        if not await core.on_disk(write):
            message = (
                f"{folder / ref.task}.json was there before with other content, and stays; what the store has of it is "
                f"in results.jsonl and `batchd logs {ref}`: was an older store put in place? `batchd restore` compares"
            )
            core.log.warning(Action.OUTBOX_TROUBLE, batch=ref.batch, task=ref.task, message=message)
        await self.confirm(ref, finished)

    async def confirm(self, ref: Ref, finished: TaskFinished) -> None:
        """Note that a task's files are written."""
        core, known = self._core, self._open[ref.batch]
        await core.durable(partial(core.store.published, ref))
        if ref.task not in known.left:
            return
        known.left.remove(ref.task)
        if len(known.left) == _FEW:
            for finisher in core.finishers:
                core.spawn(finisher.soon(known.tasks, core.config))
        core.listeners.task_finished(ref, finished)
        self._cancel_dependants(ref, finished.status)
        self._look(known)
        core.wake()

    def _cancel_dependants(self, ref: Ref, status: Status) -> None:
        if doomed := self._core.schedule.done(ref, status):
            message = f"it comes after {ref.task}, which ended as {status}"
            self._core.spawn(self._cancel_all(doomed, message))

    async def _cancel_all(self, refs: Sequence[Ref], message: str) -> None:
        """End tasks, some at a time, so that others get their turn: there may be 100,000."""
        for start in range(0, len(refs), _AT_ONCE):
            some = refs[start : start + _AT_ONCE]
            end = partial(
                self.finish, status=Status.CANCELLED, reason=Reason.DEPENDENCY, message=message
            )
            await asyncio.gather(*map(end, some))

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
        if not outbox.has_request(batch):
            message = (
                f"{folder} was taken away before its summary; results.jsonl in the new one has all"
            )
            core.log.warning(Action.OUTBOX_TROUBLE, batch=batch.name, message=message)
        there = await core.on_disk(partial(outbox.summary, batch))
        if not problems:
            sums = await core.on_disk(partial(_write_results, core, batch, there is None))
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

        summary = await core.on_disk(write)
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
        begun=task.attempt > 0,
        suspect=task.crashes > 0,
    )
