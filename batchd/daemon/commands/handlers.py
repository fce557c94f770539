"""The handlers of all requests:
each order is durable before it is answered, and leaves one line in the log.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from batchd.actions import Action
from batchd.control import (
    Cancel,
    Check,
    ControlRequest,
    Detach,
    Pause,
    Priority,
    Prune,
    Resume,
    Retry,
    Status,
    Submit,
    Tune,
    requests,
)
from batchd.control.requester import Requester
from batchd.control.requests import A
from batchd.daemon.commands.cancel import CancelHandler
from batchd.daemon.commands.check import CheckHandler
from batchd.daemon.commands.pause import PauseHandler
from batchd.daemon.commands.priority import PriorityHandler
from batchd.daemon.commands.prune import PruneHandler
from batchd.daemon.commands.retry import RetryHandler
from batchd.daemon.commands.status import StatusHandler
from batchd.daemon.commands.submit import SubmitHandler
from batchd.daemon.commands.tune import TuneHandler
from batchd.daemon.reloading import shown
from batchd.daemon.writes import Writes
from batchd.errors import BatchdError
from batchd.free_room import STATE, NeededRoom
from batchd.log import detailed, get_logger

#: Carries one kind of request out for its giver, and returns that kind's answer.
_Handler: TypeAlias = Callable[[Any, Requester], Awaitable[Any]]


@dataclass(slots=True, eq=False, repr=False)
class CommandHandlers:
    """Carries out every request."""

    _writes: Writes
    _desk: StatusHandler
    _cancelling: CancelHandler
    _pausing: PauseHandler
    _prioritising: PriorityHandler
    _rerun: RetryHandler
    _pruning: PruneHandler
    _tuning: TuneHandler
    _submitting: SubmitHandler
    _checking: CheckHandler
    _handlers: Mapping[type[ControlRequest[Any]], _Handler] = field(init=False)

    def __post_init__(self) -> None:
        self._handlers = {
            Status: self._desk.status,
            Cancel: partial(self._if_ready, self._cancelling.cancel, needed=None),
            Pause: partial(self._if_ready, self._pausing.pause, needed=None),
            Resume: partial(self._if_ready, self._pausing.resume, needed=None),
            Priority: partial(self._if_ready, self._prioritising.priority, needed=None),
            Retry: partial(self._if_ready, self._rerun.retry, needed=STATE),
            Prune: self._pruning.prune,
            Tune: self._tuning.tune,
            Submit: partial(self._if_ready, self._submitting.submit, needed=STATE),
            Detach: self._submitting.detach,
            Check: self._checking.check,
        }

    async def carry_out(self, request: ControlRequest[A], by: Requester) -> A:
        """Do what is asked, with a line in the log where that is an order.

        Raises ``BatchdError`` where it is refused.
        """
        handler: Callable[[ControlRequest[A], Requester], Awaitable[A]] = self._handlers[
            type(request)
        ]
        if not _changes(request):
            begun = time.monotonic()
            answer = await handler(request, by)
            if detailed():
                who = {"verb": request.verb(), "uid": by.uid, "pid": by.pid}
                took_s = round(time.monotonic() - begun, 3)
                get_logger().debug(Action.QUESTION_ANSWERED, **who, seconds=took_s)
            return answer
        fields = _asked(type(request), requests.fields(request), by)
        try:
            # It may have waited a while to be read:
            # for a daemon that was stopped, or had much to do.
            by.insist()
            answer = await handler(request, by)
        except BatchdError as error:
            get_logger().warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})
            raise
        get_logger().info(Action.COMMAND_DONE, **fields | _answered(answer))
        return answer

    def malformed(
        self,
        kind: type[ControlRequest[Any]],
        given: Mapping[str, Any],
        by: Requester,
        error: BatchdError,
    ) -> None:
        """Leave a line about a request that is refused for its fields."""
        fields = _asked(kind, given, by)
        get_logger().warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})

    async def _if_ready(
        self,
        handler: _Handler,
        request: ControlRequest[Any],
        by: Requester,
        *,
        needed: NeededRoom | None,
    ) -> Any:
        """Do nothing where the store cannot write: the order would wait, and surprise later."""
        await self._writes.ready(needed)
        by.insist()
        return await handler(request, by)


#: Items of a list that a line shows.
_SHOWN = 20


def _changes(request: ControlRequest[Any]) -> bool:
    """Return whether it is an order; else it is only a question, and leaves no line."""
    if isinstance(request, Tune):
        return bool(request.changes or request.reset)
    return not isinstance(request, Status | Check)


def _asked(
    kind: type[ControlRequest[Any]], given: Mapping[str, Any], by: Requester
) -> dict[str, Any]:
    """Return who asks, and for what. ``given``: the fields of the request, as JSON has them."""
    fields = {name: value for name, value in given.items() if name != "claim"}
    if wanted := fields.get("changes"):
        fields["changes"] = shown(wanted) if isinstance(wanted, dict) else "…"
    fields = {k: [*v][:_SHOWN] if isinstance(v, list | tuple) else v for k, v in fields.items()}
    who = {"verb": kind.verb(), "uid": by.uid, "pid": by.pid, "via": by.via}
    return {k: v for k, v in {**who, **fields}.items() if v or k in {"uid", "pid"}}


def _answered(answer: object) -> dict[str, Any]:
    """Return the figures and names of an answer."""
    fields = requests.fields(answer)
    figures: dict[str, Any] = {k: v for k, v in fields.items() if isinstance(v, int)}
    if batches := fields.get("batches"):
        figures["batches"] = [*batches][:_SHOWN]
    if ended := fields.get("ended"):
        figures["ended"] = [each["target"] for each in ended][:_SHOWN]
    return figures
