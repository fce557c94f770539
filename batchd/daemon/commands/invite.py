"""``invite``: workers on other machines get tickets."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from batchd.control import Invite, Invited
from batchd.control.giver import Giver
from batchd.daemon.current import Current
from batchd.errors import NotPossibleError, UsageError
from batchd.pool.joining.identity import Identity
from batchd.pool.joining.invitations import Invitations
from batchd.pool.joining.ticket import Ticket, address

#: What a ticket may last, in minutes, and how many one order may ask for.
_MOST_MINUTES, _MOST_TICKETS = 1440, 1000
#: What is listened on where all addresses are meant: a name of this machine is dialled then.
_EVERY = {"0.0.0.0", "::"}  # noqa: S104 (it is compared with)


@dataclass(slots=True, eq=False, repr=False)
class Inviting:
    """Makes tickets."""

    _current: Current
    _invitations: Invitations
    #: Who the daemon is to other machines; None: it does not listen for them.
    _identity: Identity | None

    async def invite(self, request: Invite, _by: Giver) -> Invited:
        """Return tickets, each good once from these addresses. Raises ``NotPossibleError``, ``UsageError``."""
        pool, identity = self._current.config.pool, self._identity
        if identity is None:
            why = "this daemon does not listen for workers of other machines"
            raise NotPossibleError(f"{why}: set [pool] listen to HOST:PORT, and restart it")
        if not 0 < request.minutes <= _MOST_MINUTES:
            raise UsageError(f"minutes is {request.minutes:g}: it is from 0 to {_MOST_MINUTES}")
        if not 0 < request.count <= _MOST_TICKETS:
            raise UsageError(f"count is {request.count}: it is from 1 to {_MOST_TICKETS}")
        if not request.addresses:
            raise UsageError("name the machine that the worker is to run on")
        place = address(pool.advertise or pool.listen)
        assert place is not None, "the configuration was checked"
        host, port = place
        if host in _EVERY:
            host = await asyncio.to_thread(socket.gethostname)
        tickets = [
            Ticket(
                host=host,
                port=port,
                fingerprint=identity.fingerprint,
                token=self._invitations.invite(request.addresses, request.minutes),
            )
            for _ in range(request.count)
        ]
        return Invited(tickets=tuple(map(str, tickets)))
