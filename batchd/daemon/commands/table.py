"""What people command: each order is durable before it is answered, and leaves one line in the log."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from batchd.control import (
    Cancel,
    Check,
    Detach,
    Invite,
    Pause,
    Priority,
    Prune,
    Request,
    Resume,
    Retry,
    Status,
    Submit,
    Tune,
    coding,
    members,
)
from batchd.control.giver import Giver
from batchd.control.messages import A
from batchd.daemon.commands import lines
from batchd.daemon.commands.cancel import Cancelling
from batchd.daemon.commands.check import Checking
from batchd.daemon.commands.invite import Inviting
from batchd.daemon.commands.pause import Pausing
from batchd.daemon.commands.priority import Prioritising
from batchd.daemon.commands.prune import Pruning
from batchd.daemon.commands.retry import Rerun
from batchd.daemon.commands.status import FrontDesk
from batchd.daemon.commands.submit import Submitting
from batchd.daemon.commands.tune import Tuning
from batchd.daemon.writes import Writes
from batchd.errors import BatchdError, ForbiddenError
from batchd.log import Action, detailed, get_logger

#: Carries one kind of request out for its giver, and returns that kind's answer.
_Handler: TypeAlias = Callable[[Any, Giver], Awaitable[Any]]


@dataclass(slots=True, eq=False, repr=False)
class Commands:
    """Carries out every request."""

    _writes: Writes
    _desk: FrontDesk
    _cancelling: Cancelling
    _pausing: Pausing
    _prioritising: Prioritising
    _rerun: Rerun
    _pruning: Pruning
    _tuning: Tuning
    _submitting: Submitting
    _checking: Checking
    _inviting: Inviting
    _state: Path
    #: Who of the group has tried which order.
    _tried: set[tuple[int, str]] = field(default_factory=set)
    _handlers: Mapping[type[Request[Any]], _Handler] = field(init=False)

    def __post_init__(self) -> None:
        self._handlers = {
            Status: self._desk.status,
            Cancel: partial(self._if_ready, self._cancelling.cancel, urgent=True),
            Pause: partial(self._if_ready, self._pausing.pause, urgent=True),
            Resume: partial(self._if_ready, self._pausing.resume, urgent=True),
            Priority: partial(self._if_ready, self._prioritising.priority, urgent=True),
            Retry: partial(self._if_ready, self._rerun.retry, urgent=False),
            Prune: self._pruning.prune,
            Tune: self._tuning.tune,
            Submit: partial(self._if_ready, self._submitting.submit, urgent=False),
            Detach: self._submitting.detach,
            Check: self._checking.check,
            Invite: self._inviting.invite,
        }

    async def carry_out(self, request: Request[A], by: Giver) -> A:
        """Do what is asked, with a line in the log where that is an order. Raises ``BatchdError`` where it is refused."""
        if by.member and (
            coding.verb(type(request)) not in members.VERBS or lines.changes(request)
        ):
            raise self._forbidden(type(request), by)
        handler: Callable[[Request[A], Giver], Awaitable[A]] = self._handlers[type(request)]
        if not lines.changes(request):
            begun = time.monotonic()
            answer = await handler(request, by)
            if detailed():
                who = {"verb": coding.verb(type(request)), "uid": by.uid, "pid": by.pid}
                took_s = round(time.monotonic() - begun, 3)
                get_logger().debug(Action.QUESTION_ANSWERED, **who, seconds=took_s)
            return answer
        fields = lines.asked(type(request), coding.fields(request), by)
        try:
            # It may have waited a while to be read: for a daemon that was stopped, or had much to do.
            by.insist()
            answer = await handler(request, by)
        except BatchdError as error:
            get_logger().warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})
            raise
        get_logger().info(Action.COMMAND_DONE, **fields | lines.answered(answer))
        return answer

    def malformed(
        self, kind: type[Request[Any]], given: Mapping[str, Any], by: Giver, error: BatchdError
    ) -> None:
        """Leave a line about a request that is refused for its fields."""
        if by.member:
            return  # they could fill the log
        fields = lines.asked(kind, given, by)
        get_logger().warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})

    def _forbidden(self, kind: type[Request[Any]], by: Giver) -> ForbiddenError:
        """Return that members of the group give no such order; the log says once who tried."""
        verb = coding.verb(kind)
        error = members.forbidden("check --live" if kind is Check else verb, self._state)
        if (by.uid, verb) not in self._tried:
            self._tried.add((by.uid, verb))
            fields = lines.asked(kind, {}, by)
            get_logger().warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})
        return error

    async def _if_ready(
        self, handler: _Handler, request: Request[Any], by: Giver, *, urgent: bool
    ) -> Any:
        """Do nothing where the store cannot write: the order would wait, and surprise later."""
        await self._writes.ready(urgent=urgent)
        by.insist()
        return await handler(request, by)
