"""The sender of an order to the daemon."""

from __future__ import annotations

import os
import select
import socket
from dataclasses import dataclass
from typing import Self

from batchd.errors import WithdrawnError


@dataclass(frozen=True, slots=True)
class Requester:
    """The sender of a request, and whether somebody still waits for the answer."""

    uid: int
    pid: int
    #: The connection; None where the order is carried out in the giver's own process.
    connection: socket.socket | None = None
    #: For whom they ask, in their own words, as the web page does for browsers;
    #: empty: for themselves.
    via: str = ""

    @classmethod
    def here(cls) -> Self:
        """Return who gives an order within this process."""
        return cls(os.getuid(), os.getpid())

    def insist(self) -> None:
        """Return if the giver is still there; for any thread. Raises ``WithdrawnError``.

        To be asked last of all before something becomes durable: so an order never outlives its
        giver. Who has only sent all that it has to say still reads.
        """
        if self.connection is None:
            return
        descriptor = self.connection.fileno()
        poll = select.poll()
        if descriptor >= 0:
            poll.register(descriptor, 0)  # a hang-up is reported unasked
        if descriptor < 0 or poll.poll(0):
            raise WithdrawnError
