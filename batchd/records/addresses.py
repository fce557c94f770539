"""Addresses that a name may stand for: what a name's answer may not lead a command to.

Written out here rather than asked of ``ipaddress``,
whose own lists differ between versions of Python.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

#: Of this machine and of networks like its own: for hosts that the operator named as private.
_PRIVATE_4 = tuple(
    map(
        IPv4Network,
        ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    )
)
_PRIVATE_6 = tuple(map(IPv6Network, ("::1/128", "fc00::/7")))
#: Never reached: no host, everybody, neighbours, examples, the future.
_NEVER_4 = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
            *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        ),
    )
)
#: Where clouds give a machine its secrets, beside 169.254.169.254.
_METADATA = frozenset(
    {
        *map(IPv4Address, ("100.100.100.200", "168.63.129.16")),
        IPv6Address("fd00:ec2::254"),
        IPv6Address("fd20:ce::254"),
    }
)
#: Of IPv6 only this is handed out to the world …
_GLOBAL_6 = IPv6Network("2000::/3")
#: … and these parts of it are tunnels and examples.
_NEVER_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
#: IPv4 in IPv6's clothes, as networks without IPv4 write it: the last 32 bits.
_TRANSLATED = IPv6Network("64:ff9b::/96")


def forbidden(address: Address, *, private: bool) -> str:
    """Return why commands may not reach an address; empty where they may.

    ``private``: its host was named by the operator as one that may have a private address.
    """
    if isinstance(address, IPv6Address):
        if address in _TRANSLATED:
            return forbidden(IPv4Address(address.packed[-4:]), private=private)
        if address.ipv4_mapped is not None:
            return "an IPv4 address written as IPv6"
    if address in _METADATA:
        return "a cloud's metadata address"
    if isinstance(address, IPv4Address):
        inside = any(address in network for network in _PRIVATE_4)
        never = any(address in network for network in _NEVER_4)
    else:
        inside = any(address in network for network in _PRIVATE_6)
        never = address not in _GLOBAL_6 or any(address in network for network in _NEVER_6)
    if inside:
        return "" if private else "a private address"
    return "an address of no public host" if never else ""
