"""The maker of tickets: for users who ask for some,
and for the workers that batchd starts itself.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from batchd.pool.joining.invitations import Invitations
from batchd.pool.joining.ticket import Ticket

#: What is listened on where all addresses are meant: this machine's name is dialled then.
_EVERY = {"0.0.0.0", "::"}  # noqa: S104 (it is compared with)


@dataclass(frozen=True, slots=True)
class TicketMaker:
    """The maker of one daemon's tickets."""

    invitations: Invitations
    #: Host and port of ``[pool] advertise``, or ``listen``.
    place: tuple[str, int]
    fingerprint: str

    @property
    def dialled(self) -> tuple[str, int]:
        """Host and port that a worker dials."""
        host, port = self.place
        return socket.gethostname() if host in _EVERY else host, port

    def make(self, addresses: tuple[str, ...], minutes: float, badge: int = 0) -> Ticket:
        """Return a ticket that is good once, from these addresses or networks, for so long.

        Raises ``UsageError``.
        """
        host, port = self.dialled
        return Ticket(
            host=host,
            port=port,
            fingerprint=self.fingerprint,
            token=self.invitations.invite(addresses, minutes, badge),
        )
