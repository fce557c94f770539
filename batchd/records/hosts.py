"""Lists of hosts: how they are written, what they cover, and who may ask for which."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from batchd.records.addresses import Address, forbidden

#: What ``network`` says: nothing, everything, or these hosts.
Network: TypeAlias = bool | tuple[str, ...]

#: The ports of an entry that names none.
PORTS = (80, 443)
_MOST_PORT = 65_535
_MOST_HOSTS = 500
_LONGEST_NAME = 253
#: Of a name with a port, in letters beyond ASCII too.
_LONGEST_TEXT = 300
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
#: What one program reads as a name, "0x7f.1" or "2130706433", another reads as an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Host:
    """An entry of a list: a name, all names below one, or an address; with a port or without."""

    #: In lower case, without a dot at its end; an address as its own text.
    name: str
    port: int | None = None
    #: Whether it stands for the names below ``name``, and not for that itself.
    below: bool = False
    #: Whether it is an address, not a name.
    literal: bool = False

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{'*.' if self.below else ''}{name}{f':{self.port}' if self.port else ''}"

    def holds(self, name: str, port: int) -> bool:
        """Return whether a request to this host and port is meant."""
        return self._names(name) and (port == self.port if self.port else port in PORTS)

    def covers(self, other: Host) -> bool:
        """Return whether it allows all that ``other`` does."""
        ports = (other.port,) if other.port else PORTS
        if other.literal != self.literal or not all(
            port == self.port if self.port else port in PORTS for port in ports
        ):
            return False
        if other.below:
            return self.below and (other.name == self.name or self._names(other.name))
        return self._names(other.name)

    def _names(self, name: str) -> bool:
        return name.endswith(f".{self.name}") if self.below else name == self.name


def parse(text: str) -> Host:
    """Return the entry that ``text`` writes. Raises ``ValueError``, with what is wrong."""
    if "/" in text or "@" in text:
        raise ValueError(
            f"{text[:_LONGEST_TEXT]!r} is not a host: write its name alone, as in api.example.com"
        )
    below = text.startswith("*.")
    name, port = authority(text[2:] if below else text, international=True)
    if not isinstance(name, str):
        if below:
            raise ValueError(f"{text!r} is not a host: an address has nothing below it")
        if why := forbidden(name, private=True):
            raise ValueError(f"{text!r} cannot be allowed: it is {why}")
        return Host(str(name), port, literal=True)
    return Host(name, port, below)


def authority(text: str, *, international: bool = False) -> tuple[str | Address, int | None]:
    """Return host and port of ``HOST[:PORT]``;
    ``international``: the name may have letters beyond ASCII.

    Raises ``ValueError``, with what is wrong.
    """
    match = _AUTHORITY.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if match is None:
        text = text[:_LONGEST_TEXT]
        raise ValueError(f"{text!r} is neither HOST nor HOST:PORT")
    name, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port <= _MOST_PORT:
        raise ValueError(f"{text!r}: there is no port {port}")
    if name.startswith("["):
        return _address_6(name[1:-1], text), port
    return _name(name, text, international=international), port


def _address_6(inner: str, text: str) -> IPv6Address:
    try:
        if "%" not in inner:
            return IPv6Address(inner)
    except ValueError:
        pass
    raise ValueError(f"{text!r} holds no IPv6 address")


def _name(name: str, text: str, *, international: bool) -> str | IPv4Address:
    if international and not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            raise ValueError(f"{text!r} is not a host name") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) <= _LONGEST_NAME and all(map(_LABEL.fullmatch, labels)):
        if not _NUMBER.fullmatch(labels[-1]):
            return name
        try:
            found = ip_address(name)
        except ValueError:
            found = None
        if isinstance(found, IPv4Address):
            return found
    raise ValueError(f"{text!r} is not a host name")


def means(host: str, names: Collection[str]) -> bool:
    """Return whether a request's Host field means a server of these names.

    A page elsewhere can have its own name lead here (DNS rebinding), but no address.
    """
    try:
        name, _ = authority(host)
    except ValueError:
        return False
    return not isinstance(name, str) or name in names


def parsed(texts: Iterable[str]) -> tuple[Host, ...]:
    """Return the entries of a list, each once. Raises ``ValueError`` with all that is wrong."""
    hosts: dict[Host, None] = {}
    wrong = []
    for text in texts:
        try:
            hosts[parse(text)] = None
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong[:5]))
    if len(hosts) > _MOST_HOSTS:
        raise ValueError(f"a list holds at most {_MOST_HOSTS} hosts")
    return tuple(hosts)


def listed(hosts: Iterable[object], most: int = 12) -> str:
    """Return hosts in one line: the first ones, and how many more there are."""
    names = list(map(str, hosts))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refusal(asked: Network, ceiling: Network) -> str:
    """Return why a task may not have the network that it asks for; empty where it may.

    An address must stand in the operator's list, letter for letter: ``true`` allows names only.
    """
    if not asked:
        return ""
    if not ceiling:
        return "[sandbox] network does not allow it"
    if isinstance(asked, bool):
        if isinstance(ceiling, bool):
            return ""
        return f"[sandbox] network allows only lists of hosts, out of {listed(ceiling)}"
    wanted = parsed(asked)
    if isinstance(ceiling, bool):
        beyond = [host for host in wanted if host.literal]
        why = f"{listed(beyond)}: an address must stand in a list of [sandbox] network itself"
    else:
        allowed = parsed(ceiling)
        beyond = [host for host in wanted if not any(a.covers(host) for a in allowed)]
        why = f"[sandbox] network does not allow {listed(beyond)}; it allows {listed(ceiling)}"
    return why if beyond else ""
