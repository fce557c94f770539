"""The worker's way to the daemon:
a connection to the one that its ticket names, and to no other.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import random
import socket
import ssl
import time

from batchd import __version__, wire
from batchd.errors import NotPossibleError
from batchd.pauses import doubled
from batchd.pool import code
from batchd.pool.channel import Channel
from batchd.pool.joining.ticket import Ticket, located
from batchd.records import Has

#: How long one try takes, how long it is tried, and the pauses between, in seconds.
_DIAL_S, _PATIENCE_S = 10.0, 30.0
_FIRST_S, _LAST_S = 0.1, 5.0
_REPORT_S = 5.0


async def join(ticket: Ticket, node: str, has: Has, parting: str, channel: Channel) -> None:
    """Connect, and show the ticket.

    ``parting``: the digest of the keeper's word. Raises ``NotPossibleError``.

    Nothing is sent to what is another's.
    A daemon that does not answer, or has many at its gate, is dialled again.
    """
    place, tries, until = located(ticket.host, ticket.port), 0, time.monotonic() + _PATIENCE_S
    while True:
        try:
            transport = await _connected(ticket)
        except (OSError, ValueError) as error:
            tries += 1
            if time.monotonic() < until and isinstance(error, OSError):
                await asyncio.sleep(doubled(_FIRST_S, _LAST_S, tries) * random.uniform(0.5, 1.0))  # noqa: S311 (it spreads tries)
                continue
            why = str(error) or f"no answer within {_DIAL_S:.0f} s"
            fix = "check that the daemon runs, and that [pool] advertise can be reached from here"
            raise NotPossibleError(f"{place} cannot be reached: {why}; {fix}") from error
        break
    certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if not _is_daemon(certificate, ticket):
        transport.abort()
        found = _fingerprint(certificate)
        why = (
            f"what answers at {place} is not the daemon of this ticket: its fingerprint is {found}"
        )
        raise NotPossibleError(f"{why}; make another ticket with `batchd invite`")
    transport.set_protocol(channel)
    channel.connection_made(transport)
    if transport.is_closing():
        channel.connection_lost(None)
    channel.send(
        wire.Join(
            token=ticket.token,
            version=__version__,
            code=code.content(),
            python=code.python(),
            node=node,
            pid=os.getpid(),
            parting=parting,
            gpus=has.gpus,
            labels=has.labels,
        )
    )


async def _connected(ticket: Ticket) -> asyncio.Transport:
    """Return an encrypted connection over which nothing is sent yet.

    Raises ``OSError``, ``ValueError``.
    """
    async with asyncio.timeout(_DIAL_S):
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, ticket.host, ticket.port, ssl=_context(), server_hostname=""
        )
    return transport


def report_end(ticket: Ticket, parting: str, *, died: bool) -> None:
    """Let the daemon of a ticket know that the worker with this word has ended.

    Raises ``OSError``.
    """
    place = ticket.host, ticket.port
    with (
        socket.create_connection(place, _REPORT_S) as plain,
        _context().wrap_socket(plain) as secure,
    ):
        if _is_daemon(secure.getpeercert(binary_form=True), ticket):
            secure.sendall(wire.pack(wire.WorkerEnded(parting, died)))
            secure.recv(1)  # until it has read it


def _is_daemon(certificate: bytes | None, ticket: Ticket) -> bool:
    """Whether a certificate is that of the daemon that a ticket names."""
    return hmac.compare_digest(_fingerprint(certificate), ticket.fingerprint)


def _fingerprint(certificate: bytes | None) -> str:
    return hashlib.sha256(certificate or b"").hexdigest()


def _context() -> ssl.SSLContext:
    """Return how to connect: the certificate is no authority's,
    and held against the ticket before anything is sent.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
