"""The ends of tasks: what no worker ends is ended here, and every result that no worker wrote is written."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from batchd import results
from batchd.daemon.batches import Batches, Open
from batchd.daemon.core import Core
from batchd.daemon.ending import Ending
from batchd.daemon.lines import TaskLog
from batchd.errors import BatchdError
from batchd.events import TaskFinished, TaskStarted
from batchd.lifecycle import effects, inputs
from batchd.log import Action
from batchd.records import Ref
from batchd.spool import outbox
from batchd.store import Restored

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


class Publisher:
    """Sees to it that each task has one end, and its files."""

    def __init__(self, core: Core, batches: Batches) -> None:
        self._core = core
        self._batches = batches
        #: Tasks whose end the daemon makes, and whose files it writes: each is done by one alone.
        self._ending: set[Ref] = set()
        self._written: set[Ref] = set()
        #: By batch: tasks that ended before they began, and whose results are still to be written.
        self._backlog: dict[str, list[str]] = {}
        #: Orders that end many tasks right now, and the batches whose results begin to be written after them.
        self._orders = 0
        self._after: list[Open] = []

    @property
    def ending(self) -> AbstractSet[Ref]:
        """The tasks whose end the daemon makes, until it is published."""
        return self._ending

    def restore(self, restored: Restored) -> None:
        """Publish what the last daemon left, and end what comes after what has failed; ``Batches`` has it by now."""
        for ref in restored.unpublished:
            self._core.spawn(self.publish(ref))
        for ref, status in restored.ended:
            self._doom(self._core.lifecycle.take(inputs.Published(ref, status)))

    async def finish(self, effect: effects.End) -> None:
        """End a task that no worker can end itself, and publish its result."""
        ref, end = effect.ref, Ending(effect.status, effect.reason, effect.message)
        if known := self._claim(ref, end):
            await self._finish(known, ref, end, effect.attempts, self._core.durable)
            if effect.details:
                self._core.log.error(
                    Action.TASK_FINISHED,
                    batch=ref.batch,
                    task=ref.task,
                    reason=end.reason,
                    details=effect.details,
                )
            await self.publish(ref)

    @contextlib.contextmanager
    def ending_many(self) -> Iterator[None]:
        """Write no results of what ``finish_all`` ends meanwhile: who gave an order waits for the ends alone."""
        self._orders += 1
        try:
            yield
        finally:
            self._orders -= 1
            if not self._orders:
                for known in self._after:
                    self._core.spawn(self._publish_all(known))
                self._after.clear()

    async def finish_all(
        self, refs: Sequence[Ref], end: Ending, write: Write, check: Callable[[], None] = _wanted
    ) -> None:
        """End tasks that no worker has, many in a transaction; return once that is durable, before they are published.

        ``write``: how the store is written to; what it raises leaves those that are left as they were. ``check``:
        asked before each transaction, in it: raises ``BatchdError`` where its tasks are not to end.
        """
        # The ends of some are made while those before them are written, which takes another thread as long.
        under_way: list[asyncio.Task[None]] = []
        try:
            for known, some in self._claimed(refs, end):
                ending = self._finish_some(known, some, end, write, check)
                under_way.append(asyncio.get_running_loop().create_task(ending))
                if len(under_way) > 1:
                    await under_way.pop(0)
            while under_way:
                await under_way.pop(0)
        except BatchdError:
            await asyncio.gather(*under_way, return_exceptions=True)
            raise
        except asyncio.CancelledError:
            for task in under_way:
                task.cancel()
            raise

    def _claimed(self, refs: Sequence[Ref], end: Ending) -> Iterator[tuple[Open, list[Ref]]]:
        """Yield tasks that can be ended, some at a time, each time of one batch."""
        groups: dict[str, list[Ref]] = {}
        for ref in refs:
            groups.setdefault(ref.batch, []).append(ref)
        for batch, group in groups.items():
            for start in range(0, len(group), _AT_ONCE):
                some = [ref for ref in group[start : start + _AT_ONCE] if self._claim(ref, end)]
                if some and (known := self._batches.open(batch)):
                    yield known, some

    async def _finish_some(
        self, known: Open, refs: Sequence[Ref], end: Ending, write: Write, check: Callable[[], None]
    ) -> None:
        core, batch, now = self._core, known.batch, time.time()
        left = {ref.task: ref for ref in refs}
        try:
            fresh = {task.id: task for task in core.store.unbegun(batch.name, [*left])}
            ends = [(left[name], end.event(batch, task, (), now)) for name, task in fresh.items()]
            stored = await write(partial(core.store.finish_all, ends, check=check))
            for (ref, event), is_end in zip(ends, stored, strict=True):
                self._ended(ref, event, fresh[ref.task].model if is_end else "")
                del left[ref.task]
            # What is durable by now is published, whatever becomes of those that have begun.
            self._publish_soon(known, list(fresh))
            begun = [*left.values()]
            work = (self._finish(known, ref, end, 0, write) for ref in begun)
            outcomes = await asyncio.gather(*work, return_exceptions=True)
            for ref, outcome in zip(begun, outcomes, strict=True):
                if outcome is None:
                    del left[ref.task]
                    core.spawn(self.publish(ref))
            for outcome in outcomes:
                if outcome is not None:
                    raise outcome
        except BatchdError:
            self._ending.difference_update(left.values())
            for ref in left.values():
                core.note(inputs.EndRefused(ref))
            raise

    def _publish_soon(self, known: Open, names: Sequence[str]) -> None:
        name = known.batch.name
        begins = name not in self._backlog
        self._backlog.setdefault(name, []).extend(names)
        if begins and self._orders:
            self._after.append(known)
        elif begins:
            self._core.spawn(self._publish_all(known))

    def _claim(self, ref: Ref, end: Ending) -> Open | None:
        """Return a task's batch, for the one who ends it; None where it has ended, or somebody else is at it."""
        known = self._batches.open(ref.batch)
        if known is None or ref.task not in known.left or ref in self._ending:
            return None
        self._ending.add(ref)
        self._core.note(inputs.GiveUp(effects.End(ref, end.status, end.reason, end.message)))
        return known

    async def _finish(
        self, known: Open, ref: Ref, end: Ending, attempts: int, write: Write
    ) -> None:
        """Store a task's end, unless it has one."""
        core, task = self._core, self._core.store.task(ref)
        events = core.store.events(ref)
        event = end.event(known.batch, task, events, time.time(), attempts=attempts)
        fresh = await write(partial(core.store.finish, ref, event, attempt=None))
        self._ended(ref, event, task.model if fresh else "")

    def _ended(self, ref: Ref, event: TaskFinished, model: str) -> None:
        """Note a durable end; without ``model`` it is another one, and known."""
        self._core.note(inputs.Ended(ref, event.status))
        if model:
            TaskLog(ref, 0, model).event(event)
            self._core.listeners.task_event(ref, event)

    async def publish(self, ref: Ref) -> None:
        """Write a task's files as the store has them, and note it, unless that is done or under way."""
        core, known = self._core, self._batches.open(ref.batch)
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

    async def _publish_all(self, known: Open) -> None:
        """Publish results of tasks that never began, some at a time: their texts wait in the store."""
        core, name, folder = self._core, known.batch.name, Path(known.batch.folder)
        while names := self._backlog[name][:_AT_ONCE]:
            found = core.store.ends(name, names)
            texts = {ref.task: finished.result for ref, finished in found}
            publish = partial(outbox.publish_results, folder, texts)
            for task in await core.on_disk(publish, batch=known.batch):
                self._kept(Ref(name, task))
            await core.durable(partial(core.store.published_all, name, names))
            del self._backlog[name][: len(names)]  # others may have come meanwhile
            for ref, finished in found:
                if ref.task in known.left:
                    self._published(known, ref, finished)
        del self._backlog[name]
        self._batches.look(known)
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
        core, known = self._core, self._batches.open(ref.batch)
        if known is None:
            return  # another was faster, and the batch has ended
        await core.durable(partial(core.store.published, ref))
        if ref.task in known.left:
            self._published(known, ref, finished)
            self._batches.look(known)
            core.wake()

    def _published(self, known: Open, ref: Ref, finished: TaskFinished) -> None:
        core = self._core
        known.left.remove(ref.task)
        self._ending.discard(ref)
        self._written.discard(ref)
        if len(known.left) == _FEW:
            for finisher in core.finishers:
                core.spawn(finisher.soon(known.tasks, core.config))
        core.listeners.task_finished(ref, finished)
        self._doom(core.lifecycle.take(inputs.Published(ref, finished.status)))

    def _doom(self, doomed: Sequence[effects.Effect]) -> None:
        """End what comes after a task that did not complete: all of it for one reason."""
        ends = [effect for effect in doomed if isinstance(effect, effects.End)]
        if ends:
            end = Ending(ends[0].status, ends[0].reason, ends[0].message)
            refs = [each.ref for each in ends]
            self._core.spawn(self.finish_all(refs, end, self._core.durable))
