"""Hosts that the commands of a task may reach, and at which addresses."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass
from ipaddress import ip_address

from batchd.errors import BatchdError
from batchd.records import addresses, hosts
from batchd.records.addresses import Address
from batchd.records.hosts import PORTS, Host

#: Lookups of one command at a time: each has a thread, which cannot be stopped.
_LOOKUPS = 8
_LOOKUP_S = 20.0
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
        return cls(hosts.parsed(names), hosts.parsed(private))

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
        return f"{hosts.listed(self.hosts)}{ports}"


class Resolver:
    """The resolver of names for one command."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_LOOKUPS)

    async def addresses(self, name: str | Address, port: int, *, private: bool) -> list[Address]:
        """Return the addresses at which a host may be reached, the best first.

        Raises ``RefusedError`` where it has only such as may
        not be reached, and ``UnreachableError``.
        """
        found = [name] if not isinstance(name, str) else await self._asked(name, port)
        reasons = {address: _reason(address, port, private=private) for address in found}
        good = [address for address, why in reasons.items() if not why]
        if not good:
            address, why = next(iter(reasons.items()))
            raise RefusedError(f"it leads to {address}, {why}")
        return good[:_MOST_ADDRESSES]

    async def _asked(self, name: str, port: int) -> list[Address]:
        try:
            async with asyncio.timeout(_LOOKUP_S):
                await self._free.acquire()
                answer = await self._looked_up(name, port)
        except TimeoutError:
            raise UnreachableError("no answer about its address in time") from None
        if isinstance(answer, Exception) or not answer:
            raise UnreachableError(f"its address is not known: {answer or 'no answer'}")
        return answer

    def _looked_up(self, name: str, port: int) -> asyncio.Future[list[Address] | Exception]:
        """Return what the system says;
        a thread of its own is never missed by others, and ends by itself.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Address] | Exception] = loop.create_future()

        def settle(answer: list[Address] | Exception) -> None:
            self._free.release()
            if not future.done():
                future.set_result(answer)

        def look() -> None:
            answer: list[Address] | Exception
            try:
                answer = _system(name, port)
            except (OSError, UnicodeError) as error:
                answer = error
            try:
                loop.call_soon_threadsafe(settle, answer)
            except RuntimeError:
                return  # the loop is closed: no caller waits any more

        try:
            threading.Thread(target=look, name="batchd-lookup", daemon=True).start()
        except RuntimeError as error:
            settle(OSError(str(error)))
        return future


def _reason(address: Address, port: int, *, private: bool) -> str:
    """Return why an address may not be reached; empty where it may."""
    why = addresses.forbidden(address, private=private)
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


def _system(name: str, port: int) -> list[Address]:
    answer = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in answer)
    return [ip_address(text) for text in texts]
