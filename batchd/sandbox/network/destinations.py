"""Hosts that the commands of a task may reach, and at which addresses."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_address

from batchd.errors import BatchdError
from batchd.pauses import aside
from batchd.records import policy
from batchd.records.policy import PORTS, Address, Host

#: Of a name's addresses so many are tried.
_MOST_ADDRESSES = 6


class RefusedError(BatchdError):
    """The destination is not allowed."""


class UnreachableError(BatchdError):
    """The destination is allowed, and cannot be reached."""


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """A task's list."""

    hosts: tuple[Host, ...]
    #: Of all hosts, those that may have private addresses.
    private: tuple[Host, ...] = ()

    @classmethod
    def of(cls, names: tuple[str, ...], private: tuple[str, ...]) -> AllowedHosts:
        """Return the list that a task and the policy write. Raises ``ValueError``."""
        return cls(policy.parsed(names), policy.parsed(private))

    def check(self, name: str | Address, port: int) -> bool:
        """Return whether a host may have a private address.

        Raises ``RefusedError`` for one that is not on the list.
        """
        text = str(name)
        held = [host for host in self.hosts if host.holds(text, port)]
        if not held:
            raise RefusedError(f"not on this task's list, which is {self.listed()}")
        return held[0].literal or any(host.holds(text, port) for host in self.private)

    def listed(self) -> str:
        """Return the list for people and models."""
        ports = (
            "" if all(host.port for host in self.hosts) else f" (ports {PORTS[0]} and {PORTS[1]})"
        )
        return f"{policy.listed(self.hosts)}{ports}"


async def looked_up(name: str | Address, port: int) -> list[Address]:
    """Return the addresses that a host has, the best first. Raises ``UnreachableError``."""
    if not isinstance(name, str):
        return [name]

    def look() -> list[Address]:
        answer = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in answer)
        return [ip_address(text) for text in texts]

    try:
        # A thread of its own, as it cannot be stopped: no other lookup waits for it.
        return await aside(look, "batchd-lookup")
    except (OSError, UnicodeError, RuntimeError) as error:
        raise UnreachableError(f"its address is not known: {error}") from error


def permitted(found: list[Address], port: int, *, private: bool) -> list[Address]:
    """Return those of a host's addresses at which it may be reached.

    Raises ``RefusedError`` where there are none.
    """
    reasons = {address: _reason(address, port, private=private) for address in found}
    good = [address for address, why in reasons.items() if not why]
    if not good:
        address, why = next(iter(reasons.items()))
        raise RefusedError(f"it leads to {address}, {why}")
    return good[:_MOST_ADDRESSES]


def _reason(address: Address, port: int, *, private: bool) -> str:
    """Return why an address may not be reached; empty where it may."""
    why = policy.forbidden(address, private=private)
    return "an address of this machine" if not (why or private) and ours(address, port) else why


def ours(address: Address, port: int) -> bool:
    """Return whether an address is this machine's own, public or not:
    then the kernel sets out from it, too.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # IPv4
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), port))  # sends nothing
        except OSError:
            return False
        return ip_address(str(probe.getsockname()[0])) == address
