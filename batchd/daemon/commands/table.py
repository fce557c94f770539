"""What people command: each verb is durable before it is answered, and leaves one line in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, wraps
from typing import Any

from batchd.control.giver import Giver
from batchd.control.server import Handler, giver
from batchd.daemon.batches import Batches
from batchd.daemon.commands import prune, targets
from batchd.daemon.commands.ends import Ends
from batchd.daemon.commands.lines import logged
from batchd.daemon.commands.pause import Pausing
from batchd.daemon.commands.retry import Rerun
from batchd.daemon.commands.status import Standing
from batchd.daemon.core import Core
from batchd.daemon.dispatch import Dispatcher
from batchd.daemon.ending import End
from batchd.daemon.parking import ParkingLot
from batchd.daemon.publisher import Publisher
from batchd.daemon.reloading import Reloader
from batchd.daemon.retiring import Retiring
from batchd.daemon.starting import CANCELLED
from batchd.errors import BatchdError, NotPossibleError, UsageError
from batchd.records import Reason, Ref, Status

#: Tasks that are cancelled in one transaction.
_CHUNK = 500
#: A priority is a number of 32 bits, as in a task file.
_INT32 = 1 << 31


class Commands:
    """Answers every verb."""

    def __init__(
        self,
        core: Core,
        batches: Batches,
        publisher: Publisher,
        dispatcher: Dispatcher,
        lot: ParkingLot,
        *,
        ends: Ends,
        reloader: Reloader,
        retiring: Retiring,
    ) -> None:
        self._core = core
        self._publisher = publisher
        self._dispatcher = dispatcher
        self._ends = ends
        self._reloader = reloader
        self.standing = Standing(core, batches, dispatcher, lot, retiring)
        self._pausing = Pausing(core, batches, lot)
        self.rerun = Rerun(core, batches, lot, self._cancel_held)

    def table(self) -> Mapping[str, Handler]:
        """Return what answers each verb, with its line in the log."""
        urgent = {
            "cancel": self._cancel,
            "pause": self._pausing.pause,
            "resume": self._pausing.resume,
            "priority": self._priority,
        }
        verbs = {
            "status": self.standing.status,
            **{verb: self._if_ready(handler, urgent=True) for verb, handler in urgent.items()},
            "retry": self._if_ready(self.rerun.retry, urgent=False),
            "prune": self._prune,
            "tune": self._tune,
        }
        return logged(verbs, self._core.log)

    def _if_ready(self, handler: Handler, *, urgent: bool) -> Handler:
        """Return a handler that does nothing where the store cannot write: its order would wait, and surprise later."""

        @wraps(handler)
        async def order(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
            await self._core.ready(urgent=urgent)
            giver(arguments).insist()
            return await handler(arguments)

        return order

    async def _cancel(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """End batches or tasks; answer when their ends are durable."""
        message = arguments.get("message", "")
        if not isinstance(message, str):
            raise UsageError("a message is text")
        found = targets.find(self._core.store, targets.given(arguments))
        refs = [ref for target in found for ref in targets.unfinished(target)]
        del found  # of 100,000 tasks it takes more than all that follows
        wait = self._ends.of(refs)
        try:
            await self._end(refs, message, giver(arguments))
        except BatchdError:
            self._ends.forget(wait)
            raise
        await wait.over.wait()
        # Those left out ended by themselves, before the order reached them.
        return {"cancelled": list(wait.ended.values()).count(Status.CANCELLED)}

    async def _cancel_held(self, refs: Sequence[Ref], message: str) -> None:
        """Cancel tasks that run again elsewhere: that order is durable by now, whether its giver is still there or not."""
        await self._end(refs, message, None)

    async def _end(self, refs: Sequence[Ref], message: str, by: Giver | None) -> None:
        """End tasks: those at work at their next durable point, the others now, most of them together.

        Once the first are durable the order is, also where its giver leaves. Raises ``WithdrawnError`` before that, and
        ``NotPossibleError`` with what was done where the store takes no more.
        """
        core, active = self._core, {each.ref for each in self._dispatcher.active}
        idle = [ref for ref in refs if ref not in active]
        for ref in idle:
            core.schedule.park(ref)  # nothing of it starts any more
        end = End(Status.CANCELLED, Reason.USER, message or CANCELLED)
        finish, done = self._publisher.finish_all, 0
        try:
            with self._publisher.ending_many():
                for start in range(0, max(1, len(idle)), _CHUNK):
                    check = {"check": by.insist} if by and not start else {}
                    await finish(idle[start : start + _CHUNK], end, core.ordered, **check)
                    done = start + _CHUNK
                    for ref in () if start else refs:
                        if ref in active:
                            self._dispatcher.cancel(ref, message)
        except NotPossibleError as error:
            if not done:
                raise
            raise NotPossibleError(
                f"the first {done:,} tasks are cancelled, no others: {error}"
            ) from None
        finally:
            for ref in idle[done:]:
                core.schedule.unpark(ref)

    async def _priority(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give tasks that have not ended another priority."""
        core, priority = self._core, arguments.get("priority")
        if not isinstance(priority, int) or not -_INT32 <= priority < _INT32:
            raise UsageError("a priority is a whole number; higher goes first")
        found = targets.find(core.store, targets.given(arguments))
        refs: list[Ref] = [ref for target in found for ref in targets.unfinished(target)]
        check = giver(arguments).insist
        await core.ordered(partial(core.store.prioritise, refs, priority, check=check))
        for ref in refs:
            core.schedule.prioritise(ref, priority)
        core.wake()
        return {"tasks": len(refs)}

    async def _prune(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Drop what finished batches have left."""
        return await prune.prune(self._core, arguments)

    async def _tune(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Change the configuration of the running daemon, or tell what is changed."""
        return await self._reloader.tune(arguments)
