"""Invitations: which tokens let a worker in, from where, and until when.

They end with the daemon.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from batchd.errors import UsageError
from batchd.pool import lease

Network: TypeAlias = IPv4Network | IPv6Network
#: So many may be out.
_MAX_INVITATIONS = 10_000
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Invitation:
    """One token."""

    networks: tuple[Network, ...]
    #: By ``lease.now``.
    until: float
    #: Whose it is; 0: a user's, who asked for it.
    badge: int


class Invitations:
    """The tokens that are good. Only their digests are kept."""

    def __init__(self) -> None:
        self._out: dict[str, _Invitation] = {}
        #: What was used: its process may come with it again, or its keeper.
        self._used: dict[str, None] = {}

    def invite(self, addresses: tuple[str, ...], minutes: float, badge: int = 0) -> str:
        """Return a token that is good once, from these addresses or networks, for so long.

        Raises ``UsageError``.

        ``badge``: of whom it is; 0: of a user. Users' alone are counted.
        """
        networks = tuple(_network(each) for each in addresses)
        now = lease.now()
        if len(self._out) >= _MAX_INVITATIONS:
            self._out = {key: each for key, each in self._out.items() if each.until > now}
        if len(self._out) >= _MAX_INVITATIONS and not badge:
            raise UsageError(
                f"{_MAX_INVITATIONS:,} tickets are valid already: wait until some are used or expire"
            )
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._out[digest(token)] = _Invitation(networks, now + 60 * minutes, badge)
        return token

    def problem(self, token: str, address: str) -> str:
        """Return why a token is not good at an address; empty: it is."""
        key = digest(token)
        found = self._out.get(key)
        if found is None and key in self._used:
            return (
                "its ticket was used before: each is good once. Make another with `batchd invite`"
            )
        if found is None or found.until <= lease.now():
            return "its ticket is not known here: it is too old, or an earlier daemon's. Make another with `batchd invite`"
        came_from = plain(address)
        if any(came_from in network for network in found.networks):
            return ""
        names = ", ".join(map(str, found.networks))
        return f"its ticket is for {names}, and it comes from {came_from}. Make one with `batchd invite {came_from}`"

    def take(self, token: str) -> int:
        """Use up a token that is good, and return its badge."""
        key = digest(token)
        badge = self._out.pop(key).badge
        self._used[key] = None
        if len(self._used) > _MAX_INVITATIONS:
            del self._used[next(iter(self._used))]
        return badge


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise UsageError(
            f"{text!r} is neither an IP address nor a network like 10.0.0.0/24"
        ) from None


def plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address, an IPv4 one as such where a socket for both has it."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def digest(secret: str) -> str:
    """Return what stands for a secret in memory, and on the wire until it is shown."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
