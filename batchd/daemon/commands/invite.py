"""``invite``: workers on other machines get tickets."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.control import Invite, Invited
from batchd.control.requester import Requester
from batchd.errors import NotPossibleError, UsageError
from batchd.pool.joining.ticket_maker import TicketMaker

#: What a ticket may last, in minutes, and how many one order may ask for.
_MOST_MINUTES, _MOST_TICKETS = 1440, 1000


@dataclass(slots=True, eq=False, repr=False)
class InviteHandler:
    """The handler of ``Invite``: makes tickets."""

    #: None: the daemon does not listen for them.
    _tickets: TicketMaker | None

    async def invite(self, request: Invite, _by: Requester) -> Invited:
        """Return tickets, each good once from these addresses.

        Raises ``NotPossibleError``, ``UsageError``.
        """
        if self._tickets is None:
            why = "this daemon does not listen for workers of other machines"
            raise NotPossibleError(f"{why}: set [pool] listen to HOST:PORT, and restart it")
        if not 0 < request.minutes <= _MOST_MINUTES:
            raise UsageError(
                f"minutes is {request.minutes:g}: it must be above 0, and {_MOST_MINUTES} at most"
            )
        if not 0 < request.count <= _MOST_TICKETS:
            raise UsageError(f"count is {request.count}: it must be from 1 to {_MOST_TICKETS}")
        if not request.addresses:
            raise UsageError("no machine is named: name the one that the worker runs on")
        made = [
            self._tickets.make(request.addresses, request.minutes) for _ in range(request.count)
        ]
        return Invited(tickets=tuple(map(str, made)))
