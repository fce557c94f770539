"""The ends of tasks: what no worker ends is ended here,
and every result that no worker wrote is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from batchd import results
from batchd.daemon import main_loop, task_log
from batchd.daemon.batches import OpenBatch, OpenBatches
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.writes import DaemonStore
from batchd.errors import BatchdError
from batchd.events import Event, Resumed, TaskFinished, TaskStarted
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.effects import End
from batchd.log import Action, get_logger
from batchd.records import Batch, ErrorInfo, Ref, Task
from batchd.spool import outbox
from batchd.store import lookups, operations
from batchd.store.operations import wanted
from batchd.store.rows import StoredWork
from batchd.store.task_transaction import TaskTransaction
from batchd.taskstate import fold

P = ParamSpec("P")
T = TypeVar("T")

#: Tasks that are ended together, and then published: others get their turn in between.
_AT_ONCE = 500


class Write(Protocol):
    """Carries out an operation of the store: ``DaemonStore.write``, or ``order``."""

    async def __call__(
        self,
        work: Callable[Concatenate[TaskTransaction, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Return what ``work`` does."""


@dataclass(slots=True, eq=False, repr=False)
class Publisher:
    """Ends tasks, each once, and writes their files."""

    _lifecycle: Lifecycle
    _store: DaemonStore
    _outboxes: Outboxes
    _batches: OpenBatches
    #: By batch: tasks that ended before they began, and whose results are still to be written.
    _backlog: dict[str, list[str]] = field(default_factory=dict)
    #: Orders that end many tasks right now, and the batches
    #: whose results begin to be written after them.
    _orders: int = 0
    _after: list[Batch] = field(default_factory=list)

    def restore(self, restored: StoredWork) -> None:
        """Publish what the last daemon left, and end what comes after what has failed;
        ``OpenBatches`` has it by now.
        """
        for ref in restored.unpublished:
            main_loop.spawn(self.publish(ref))
        # What comes after one that is still here waits for its files.
        here = self._lifecycle.entries
        for ref, status in restored.ended:
            if ref not in here:
                self._follow(inputs.Published(ref, status))

    async def finish(self, end: End) -> None:
        """End a task that no worker can end itself, and publish its result."""
        events = await self._finish(end, self._store.write)
        if end.details:
            ref = end.ref
            get_logger().error(
                Action.TASK_FINISHED,
                batch=ref.batch,
                task=ref.task,
                reason=end.reason,
                details=end.details,
            )
        await self.publish(end.ref, events)

    @contextlib.contextmanager
    def ending_many(self) -> Iterator[None]:
        """Write no results of what ``finish_all`` ends meanwhile:
        who gave an order waits for the ends alone.
        """
        self._orders += 1
        try:
            yield
        finally:
            self._orders -= 1
            if not self._orders:
                for batch in self._after:
                    main_loop.spawn(self._publish_all(batch))
                self._after.clear()

    def give_up(self, ends: Iterable[End]) -> Coroutine[Any, Any, None]:
        """Take that tasks end which no worker has; to await what this returns ends them."""
        effects = [e for end in ends for e in self._lifecycle.take(inputs.GiveUp(end))]
        ending = [effect for effect in effects if isinstance(effect, End)]
        return self.finish_all(ending, self._store.write)

    async def finish_all(
        self,
        ends: Sequence[End],
        write: Write,
        *,
        check: Callable[[], None] = wanted,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """End tasks that no worker has, many in a transaction;
        return once that is durable, before they are published.

        ``ends`` come batch by batch, each of a task that is ending. ``write``: how the store is
        written to; of what it raises, those that are left learn that their end is refused.
        ``check``: asked before the first transaction, in it: raises ``BatchdError`` where nothing
        is to end. ``begun``: called once the first are durable.
        """
        try:
            for number, some in enumerate(_grouped(ends)):
                await self._finish_some(some, write, wanted if number else check)
                if not number:
                    begun()
        except BatchdError:
            for end in ends:
                if not self._lifecycle.ended(end.ref):
                    self._follow(inputs.EndRefused(end.ref))
            raise

    async def _finish_some(
        self, ends: Sequence[End], write: Write, check: Callable[[], None]
    ) -> None:
        """End tasks of one batch:
        those that never began in one transaction, the others each in its own.
        """
        batch, now = self._open(ends[0].ref).batch, time.time()
        left = {end.ref.task: end for end in ends}
        tasks = {task.id: task for task in self._store.read(lookups.unbegun, batch.name, [*left])}
        fresh = [left.pop(name) for name in tasks]
        events = [(end.ref, _end_event(end, batch, tasks[end.ref.task], (), now)) for end in fresh]
        stored = await write(operations.finish_all, events, check=check)
        for (ref, event), is_end in zip(events, stored, strict=True):
            self._ended(ref, event, fresh=is_end)
        # What is durable by now is published, whatever becomes of those that have begun.
        self._publish_soon(batch, [*tasks])
        work = (self._finish(end, write) for end in left.values())
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for end, outcome in zip(left.values(), outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                main_loop.spawn(self.publish(end.ref, outcome))
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _publish_soon(self, batch: Batch, names: Sequence[str]) -> None:
        if not names:
            return  # the batch may be over before an order is
        begins = batch.name not in self._backlog
        self._backlog.setdefault(batch.name, []).extend(names)
        if begins and self._orders:
            self._after.append(batch)
        elif begins:
            main_loop.spawn(self._publish_all(batch))

    def _open(self, ref: Ref) -> OpenBatch:
        """Return a task's batch, which is open as long as a task of it is not published."""
        known = self._batches.open(ref.batch)
        assert known is not None, "it has a task that is not published"
        return known

    async def _finish(self, end: End, write: Write) -> Sequence[Event]:
        """Store a task's end, unless it has one; return all of its events."""
        ref, batch = end.ref, self._open(end.ref).batch
        task, events = (
            self._store.read(lookups.find_task, ref),
            self._store.read(lookups.events, ref),
        )
        event = _end_event(end, batch, task, events, time.time())
        fresh = await write(TaskTransaction.finish, ref, event, attempt=None)
        self._ended(ref, event, fresh=fresh)
        return (*events, event) if fresh else self._store.read(lookups.events, ref)

    def _ended(self, ref: Ref, event: TaskFinished, *, fresh: bool) -> None:
        """Note a durable end; if it is not ``fresh``, it is another one, and known."""
        self._lifecycle.take(inputs.Ended(ref, event.status))  # who ends it publishes it
        if fresh:
            task_log.write(ref, event)
            main_loop.tell(lambda listener: listener.task_event(ref, event))

    async def publish(self, ref: Ref, events: Sequence[Event] = ()) -> None:
        """Write a task's files, and note it. ``events``: all of its own, where they are at hand."""
        batch = self._open(ref).batch
        folder = Path(batch.folder)
        events = events or self._store.read(lookups.events, ref)
        finished = events[-1]
        assert isinstance(finished, TaskFinished)

        def write() -> bool:
            transcript = results.transcript(events) if isinstance(events[0], TaskStarted) else ""
            return outbox.publish_task(folder, ref.task, transcript, finished.result)

        if not await self._outboxes.on_disk(write, batch):
            self._kept(ref)
        await self.confirm(ref, finished)

    async def _publish_all(self, batch: Batch) -> None:
        """Publish results of tasks that never began, some at a time:
        their texts wait in the store.
        """
        name, folder = batch.name, Path(batch.folder)
        while names := self._backlog[name][:_AT_ONCE]:
            found = self._store.read(lookups.ends, name, names)
            texts = {ref.task: finished.result for ref, finished in found}
            publish = partial(outbox.publish_results, folder, texts)
            for task in await self._outboxes.on_disk(publish, batch):
                self._kept(Ref(name, task))
            await self._store.write(operations.published_all, name, names)
            del self._backlog[name][: len(names)]  # others may have come meanwhile
            for ref, finished in found:
                self._published(ref, finished)
        del self._backlog[name]
        self._batches.look(name)
        main_loop.wake()

    def _kept(self, ref: Ref) -> None:
        """Say that a task's published result is another one than the store's."""
        message = (
            f"{ref.task}.json is there already with other content, and stays; the store's own "
            f"result is in results.jsonl and `batchd logs {ref}`. If an older store was put in "
            "place, compare by `batchd restore`"
        )
        get_logger().warning(Action.OUTBOX_TROUBLE, batch=ref.batch, task=ref.task, message=message)

    async def confirm(self, ref: Ref, finished: TaskFinished) -> None:
        """Note that a task's files are written."""
        await self._store.write(operations.published, ref)
        self._published(ref, finished)
        self._batches.look(ref.batch)
        main_loop.wake()

    def _published(self, ref: Ref, finished: TaskFinished) -> None:
        self._follow(inputs.Published(ref, finished.status))
        main_loop.tell(lambda listener: listener.task_finished(ref, finished))

    def _follow(self, given: inputs.Published | inputs.EndRefused) -> None:
        """End what comes after a task that did not complete."""
        ends = [e for e in self._lifecycle.take(given) if isinstance(e, End)]
        if ends:
            main_loop.spawn(self.finish_all(ends, self._store.write))


def _grouped(ends: Iterable[End]) -> Iterator[Sequence[End]]:
    """Yield ends of one batch, some at a time."""
    for _, group in itertools.groupby(ends, key=lambda end: end.ref.batch):
        while some := list(itertools.islice(group, _AT_ONCE)):
            yield some


def _end_event(
    end: End, batch: Batch, task: Task, events: Sequence[Event], at: float
) -> TaskFinished:
    """Return the last event of a task that has had these: it has the text of the result."""
    state = fold(task.first_prompt, events)
    tries = sum(isinstance(e, Resumed) for e in events)
    tries += any(isinstance(e, TaskStarted) for e in events)
    text = results.result(
        batch,
        task,
        state,
        status=end.status,
        reason=end.reason,
        error=ErrorInfo(type=end.reason, message=end.message, retries=state.retries),
        queued_at=batch.received_at,
        finished_at=at,
        attempts=max(end.attempts, tries),
        files=None,
    )
    return TaskFinished(at=at, status=end.status, reason=end.reason, result=text)
