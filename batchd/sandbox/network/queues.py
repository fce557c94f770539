"""Queues of the sockets of a network, as the kernel reports them by sock_diag:
see linux/sock_diag.h and its neighbours.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DIAG = 20  # SOCK_DIAG_BY_FAMILY
_DUMP = 0x301  # NLM_F_REQUEST and NLM_F_DUMP
_ERROR, _DONE = 2, 3
_ALL = 0xFFFFFFFF
_AF_NETLINK = 16
_HEADER = struct.Struct("=IHHII")
_MEMORY = struct.Struct("=9I")
_MAX_REPLY_BYTES = 1 << 18
#: What one socket takes with nothing in it, all that belongs to it included;
#: a little less than one of TCP.
_SOCKET = 3 << 10
#: The least that a message takes in a queue, however little is in it.
_MIN_MESSAGE_BYTES = 768
#: What one Unix socket sends ahead, as a multiple of ``net.core.wmem_default``: a last datagram may
#: pass it, and has its size rounded up. 2.54 were measured.
#: The filter of system calls sees to it that no socket has more.
_AHEAD = 3
#: Datagrams that wait at one socket (``net.unix.max_dgram_qlen``, and one).
_DATAGRAMS = 11
_LISTENING = 10


@dataclass(frozen=True, slots=True)
class _Kind:
    """A question, and how to read an answer:
    where the attributes begin, and which one reports memory.
    """

    question: bytes
    attributes: int
    memory: int
    waiting: int = -1


def _inet(family: int, protocol: int) -> _Kind:
    extension = 1 << 6  # INET_DIAG_SKMEMINFO
    question = struct.pack("=BBBxI48x", family, protocol, extension, _ALL)
    return _Kind(question, attributes=72, memory=7)


_UNIX = _Kind(
    struct.pack("=BxxxIIIII", socket.AF_UNIX, _ALL, 0, 0x30, _ALL, _ALL),
    attributes=16,
    memory=5,
    waiting=4,
)
#: Netlink sockets hold answers that were not read.
_NETLINK = _Kind(
    struct.pack("=BBxxIIII", _AF_NETLINK, 255, 0, 0x01, _ALL, _ALL), attributes=28, memory=0
)
_KINDS = (
    _UNIX,
    _NETLINK,
    *(
        _inet(family, protocol)
        for family in (socket.AF_INET, socket.AF_INET6)
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
    ),
)


def at_most(sockstat: str) -> int:
    """Return what the sockets of a network hold at the most,
    by its ``/proc/PID/net/sockstat``, in bytes.
    """
    count = used(sockstat)
    # Of TCP and UDP the kernel says what it has for all networks together.
    pages = sum(
        int(line.rpartition(" mem ")[2]) for line in sockstat.splitlines() if " mem " in line
    )
    return count * (_SOCKET + 2 * _widest()) + pages * os.sysconf("SC_PAGE_SIZE") if count else 0


def used(sockstat: str) -> int:
    """Return how many sockets there are in a network;
    closed ones, of whose messages some wait to be read, too.
    """
    return int(sockstat.partition("sockets: used ")[2].split("\n", 1)[0])


def _widest() -> int:
    """Return how much one socket of whatever kind may hold in one direction, in bytes."""
    return 2 * _setting("wmem_max")


def _setting(name: str) -> int:
    return int(Path("/proc/sys/net/core", name).read_text())


def held(diag: socket.socket, count: int) -> int:
    """Return what the sockets of a network hold, in bytes; ``count``: so many there are.

    Raises ``OSError``.
    """
    total, unowned, gone, limit = count * _SOCKET, 0, count, _AHEAD * _setting("wmem_default")
    for kind in _KINDS:
        for answer in _answers(diag, kind):
            found = dict(_attributes(answer, kind.attributes))
            # Connections that are over, or not yet there, are listed as well,
            # and are no sockets: they have no memory.
            gone -= kind.memory in found
            total += _memory(found.get(kind.memory, b""))
            if kind is _UNIX:
                waiting, connections = _waiting(answer, found.get(kind.waiting, b""), limit)
                unowned += waiting
                gone -= connections
    # A message belongs to who sent it, and one that is closed is not reported:
    # what waits at others may be its own.
    return total + min(unowned, max(0, gone) * limit)


def _memory(values: bytes) -> int:
    """Return what a socket holds, by its SK_MEMINFO; nothing where it has none."""
    if len(values) < _MEMORY.size:
        return 0
    received, _, sent, _, ahead, queued, options, behind, _ = _MEMORY.unpack_from(values)
    return int(received + max(sent, queued) + ahead + options + behind)


def _waiting(answer: bytes, attribute: bytes, limit: int) -> tuple[int, int]:
    """Return what waits at a Unix socket at the most, in bytes,
    and how many connections do: these are not reported either.
    """
    _, kind, state = answer[:3]
    number = int(struct.unpack_from("=I", attribute)[0]) if attribute else 0
    if kind == socket.SOCK_DGRAM:  # of its datagrams only the first is reported
        return _DATAGRAMS * limit, 0
    if state == _LISTENING:
        return number * limit, number
    return min(_MIN_MESSAGE_BYTES * number, limit), 0


def _answers(diag: socket.socket, kind: _Kind) -> Iterator[bytes]:
    """Ask, and yield the answers; none where this kernel knows nothing of such sockets."""
    size = _HEADER.size + len(kind.question)
    diag.send(_HEADER.pack(size, _DIAG, _DUMP, 0, 0) + kind.question)
    while True:
        data = diag.recv(_MAX_REPLY_BYTES)
        place = 0
        while place < len(data):
            length, message, *_ = _HEADER.unpack_from(data, place)
            if message in {_ERROR, _DONE}:
                return
            yield data[place + _HEADER.size : place + length]
            place += (length + 3) & ~3


def _attributes(answer: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    while place + 4 <= len(answer):
        length, number = struct.unpack_from("=HH", answer, place)
        if length < 4:  # its own head
            return
        yield number, answer[place + 4 : place + length]
        place += (length + 3) & ~3
