"""What people command: each order is durable before it is answered, and leaves one line in the log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from batchd.control import (
    Cancel,
    Pause,
    Priority,
    Prune,
    Request,
    Resume,
    Retry,
    Status,
    Tune,
    coding,
)
from batchd.control.giver import Giver
from batchd.control.messages import A
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import Batches
from batchd.daemon.circuits import Circuits
from batchd.daemon.commands import lines
from batchd.daemon.commands.cancel import Cancelling
from batchd.daemon.commands.ends import Ends
from batchd.daemon.commands.pause import Pausing
from batchd.daemon.commands.priority import priority
from batchd.daemon.commands.prune import prune
from batchd.daemon.commands.retry import Rerun
from batchd.daemon.commands.status import FrontDesk
from batchd.daemon.commands.tune import tune
from batchd.daemon.core import Core
from batchd.daemon.parking import ParkingLot
from batchd.daemon.publisher import Publisher
from batchd.daemon.reloading import Reloader
from batchd.daemon.retiring import Retiring
from batchd.errors import BatchdError
from batchd.log import Action
from batchd.pool.supervisor import Supervisor

#: Carries one kind of request out for its giver, and returns that kind's answer.
_Handler: TypeAlias = Callable[[Any, Giver], Awaitable[Any]]


class Commands:
    """Carries out every request."""

    def __init__(
        self,
        core: Core,
        batches: Batches,
        publisher: Publisher,
        attempts: Attempts,
        lot: ParkingLot,
        *,
        circuits: Circuits,
        pool: Supervisor,
        ends: Ends,
        reloader: Reloader,
        retiring: Retiring,
    ) -> None:
        self._core = core
        self.desk = FrontDesk(core, batches, attempts, pool=pool, retiring=retiring)
        cancelling = Cancelling(core, publisher, attempts, ends)
        pausing = Pausing(core, batches, lot, circuits)
        self.rerun = Rerun(core, batches, cancelling.cancel_held)
        self._handlers: Mapping[type[Request[Any]], _Handler] = {
            Status: self.desk.status,
            Cancel: partial(self._if_ready, cancelling.cancel, urgent=True),
            Pause: partial(self._if_ready, pausing.pause, urgent=True),
            Resume: partial(self._if_ready, pausing.resume, urgent=True),
            Priority: partial(self._if_ready, partial(priority, core), urgent=True),
            Retry: partial(self._if_ready, self.rerun.retry, urgent=False),
            Prune: partial(prune, core),
            Tune: partial(tune, reloader),
        }

    async def carry_out(self, request: Request[A], by: Giver) -> A:
        """Do what is asked, with a line in the log where that is an order. Raises ``BatchdError`` where it is refused."""
        handler: Callable[[Request[A], Giver], Awaitable[A]] = self._handlers[type(request)]
        if not lines.changes(request):
            return await handler(request, by)
        fields = lines.asked(type(request), coding.fields(request), by)
        try:
            # It may have waited a while to be read: for a daemon that was stopped, or had much to do.
            by.insist()
            answer = await handler(request, by)
        except BatchdError as error:
            self._core.log.warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})
            raise
        self._core.log.info(Action.COMMAND_DONE, **fields | lines.answered(answer))
        return answer

    def malformed(
        self, kind: type[Request[Any]], given: Mapping[str, Any], by: Giver, error: BatchdError
    ) -> None:
        """Leave a line about a request that is refused for its fields."""
        fields = lines.asked(kind, given, by)
        self._core.log.warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})

    async def _if_ready(
        self, handler: _Handler, request: Request[Any], by: Giver, *, urgent: bool
    ) -> Any:
        """Do nothing where the store cannot write: the order would wait, and surprise later."""
        await self._core.ready(urgent=urgent)
        by.insist()
        return await handler(request, by)
