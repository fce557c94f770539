"""``cancel``: batches or tasks end now, or at their next durable point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from batchd.control import Cancel, Cancelled
from batchd.control.requester import Requester
from batchd.daemon.attempts.attempts import Attempts
from batchd.daemon.commands import targets
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.listeners import Listener
from batchd.daemon.writes import DaemonStore
from batchd.errors import BatchdError, NotPossibleError, UsageError
from batchd.events import CancelRequested, Event, TaskFinished
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.inputs import End
from batchd.records import Ref, TaskStatus
from batchd.store.operations import wanted


@dataclass(slots=True, eq=False)
class EndWait:
    """A wait for some tasks that are to end."""

    left: set[Ref]
    #: Those of them whose end is durable, and how they ended.
    ended: dict[Ref, TaskStatus] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class EndWaiters(Listener):
    """Requests that wait for tasks to end."""

    def __init__(self) -> None:
        self._durable: list[EndWait] = []

    def task_event(self, ref: Ref, event: Event) -> None:
        """Note a durable end."""
        if isinstance(event, TaskFinished):
            _note(self._durable, ref, event.status)

    def of(self, refs: Iterable[Ref]) -> EndWait:
        """Begin to wait for ends of tasks, before they are asked to end, until they are durable."""
        wait = EndWait(set(refs))
        if wait.left:
            self._durable.append(wait)
        else:
            wait.over.set()
        return wait

    def forget(self, wait: EndWait) -> None:
        """Wait no longer."""
        if wait in self._durable:
            self._durable.remove(wait)


def _note(waits: list[EndWait], ref: Ref, status: TaskStatus) -> None:
    for wait in [w for w in waits if ref in w.left]:
        wait.left.remove(ref)
        wait.ended[ref] = status
        if not wait.left:
            waits.remove(wait)
            wait.over.set()


@dataclass(slots=True, eq=False, repr=False)
class CancelHandler:
    """The handler of ``Cancel``: ends what people name, and waits until that is durable."""

    _lifecycle: Lifecycle
    _store: DaemonStore
    _publisher: Publisher
    _attempts: Attempts
    _ends: EndWaiters

    async def cancel(self, request: Cancel, by: Requester) -> Cancelled:
        """End batches or tasks, as far as they have not ended; answer when their ends are durable.

        Raises ``UsageError`` where all have ended, and not all as cancelled.
        """
        found = targets.find(self._store, targets.given(request.target), refused=True)
        refs = [ref for target in found for ref in targets.left(target)]
        over = tuple(each for target in found for each in targets.over(target))
        del found  # of 100,000 tasks it takes more than all that follows
        if not refs and not all(map(targets.cancelled, over)):
            raise UsageError("; ".join(map(targets.why, over)))
        if not refs:
            return Cancelled(cancelled=0, ended=over)
        for ref in refs:
            if not self._lifecycle.knows(ref):
                raise targets.left_over(ref.batch)
        wait = self._ends.of(refs)
        try:
            await self._end(refs, request.message, by)
        except BatchdError:
            self._ends.forget(wait)
            raise
        await wait.over.wait()
        # Those left out ended by themselves, before the order reached them.
        count = list(wait.ended.values()).count(TaskStatus.CANCELLED)
        return Cancelled(cancelled=count, ended=over)

    async def cancel_held(self, refs: Sequence[Ref], message: str) -> None:
        """Cancel tasks that run again elsewhere:
        that order is durable by now, whether its giver is still there or not.
        """
        await self._end(refs, message, None)

    async def _end(self, refs: Sequence[Ref], message: str, by: Requester | None) -> None:
        """End tasks: those at work at their next durable point,
        the others now, most of them together.

        Once the first are durable the order is, also where its giver leaves. Raises
        ``WithdrawnError`` before that, and ``NotPossibleError``
        with what was done where the store takes no more.
        """
        active = {each.ref for each in self._attempts.active}
        wish = CancelRequested(at=time.time(), message=message)
        # All at once: nothing of them starts any more.
        orders = (inputs.CancelOrdered(ref, wish) for ref in refs if ref not in active)
        effects = [effect for each in orders for effect in self._lifecycle.take(each)]
        ends = [effect for effect in effects if isinstance(effect, End)]

        def stop() -> None:
            for ref in refs:
                if ref in active:
                    self._attempts.cancel(ref, message)

        if not ends:
            stop()
            return
        check = by.insist if by else wanted
        try:
            with self._publisher.ending_many():
                await self._publisher.finish_all(ends, self._store.order, check=check, begun=stop)
        except NotPossibleError as error:
            done = sum(not self._lifecycle.open(end.ref) for end in ends)
            if not done:
                raise
            raise NotPossibleError(f"{done:,} tasks are cancelled, no others: {error}") from None
