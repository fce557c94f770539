"""A ticket: the line that lets one worker in, once.

It names the daemon, and is a secret until it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from batchd.errors import InputError, Problem

#: What the line begins with: which form it has.
_FORM = "batchd-ticket-1"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_MOST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A ticket: where the daemon listens, by which certificate it is known,
    and the token that it admits.
    """

    host: str
    port: int
    #: Of the daemon's certificate: SHA-256 over its DER form, in hexadecimal digits.
    fingerprint: str
    token: str = field(repr=False)

    def __str__(self) -> str:
        return f"{_FORM} {located(self.host, self.port)} {self.fingerprint} {self.token}"


def located(host: str, port: int) -> str:
    """Return ``HOST:PORT``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address(text: str) -> tuple[str, int] | None:
    """Return host and port of ``HOST:PORT``; None: it is not that."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal()):
        return None
    try:
        host.encode("idna")
    except UnicodeError:
        return None
    number = int(port)
    return (host, number) if 0 < number <= _MOST_PORT else None


def parse(text: str) -> Ticket:
    """Return the ticket on a line. Raises ``InputError``."""
    words = text.split()
    place = address(words[1]) if len(words) == len(("form", "address", "pin", "token")) else None
    if place is None or words[0] != _FORM or not _FINGERPRINT.fullmatch(words[2]):
        why = f"not a ticket: it has {len(words)} words" if words else "it is empty"
        raise InputError((Problem("the ticket", why, "take the line that `batchd invite` prints"),))
    return Ticket(host=place[0], port=place[1], fingerprint=words[2], token=words[3])
