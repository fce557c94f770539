"""The kernel's list of unix sockets that have a path, in this process's network:
asked by netlink, in some 20 µs.

/proc/net/unix shows no more than the name that a socket was given, which may be relative, or of
another time; this reports the device and the inode of its file, too.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from dataclasses import dataclass

# linux/netlink.h, sock_diag.h and unix_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SHOW_NAME, _SHOW_FILE = 0x1, 0x2
_NAME, _FILE = 0, 1
#: What may be connected to, or sent to, now or soon: bound, and listening.
_STATES = 1 << 7 | 1 << 10
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
#: Family, type and state; the socket's own inode, and its cookie.
_SOCKET = struct.Struct("=BBBxIII")
_ATTRIBUTE = struct.Struct("=HH")
_FILE_OF = struct.Struct("=II")
#: The kernel gives no more at once.
_READ = 1 << 15
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class ListedSocket:
    """A socket with a file."""

    #: The path by which it was made.
    name: str
    #: The kernel's number of the file system.
    device: int
    #: The last 32 bits of the file's inode.
    inode: int
    #: What no other socket has, nor will have.
    number: tuple[int, int, int]


def listed(devices: frozenset[int]) -> list[ListedSocket]:
    """Return those on some file systems. Raises ``OSError`` where the kernel reports nothing."""
    request = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, _STATES, 0, _SHOW_NAME | _SHOW_FILE, 0xFFFFFFFF, 0xFFFFFFFF
    )
    head = _HEADER.pack(
        _HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
    )
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as line:
        line.settimeout(_PATIENCE_S)
        line.send(head + request)
        sockets: list[ListedSocket] = []
        done = False
        while not done:
            data, _, flags, _ = line.recvmsg(_READ)
            if flags & socket.MSG_TRUNC:
                raise OSError("the kernel's list of sockets does not fit")
            found, done = _read(data, devices)
            sockets += found
        return sockets


@functools.lru_cache(maxsize=4)
def _read(data: bytes, devices: frozenset[int]) -> tuple[tuple[ListedSocket, ...], bool]:
    """Return the sockets in a piece of the list, and whether it is the last;
    mostly it is the piece of the time before.
    """
    sockets: list[ListedSocket] = []
    start = 0
    while start < len(data):
        length, kind, *_ = _HEADER.unpack_from(data, start)
        body, end = start + _HEADER.size, start + length
        if kind == _NLMSG_DONE:
            return tuple(sockets), True
        if kind == _NLMSG_ERROR:
            number = -struct.unpack_from("=i", data, body)[0]
            raise OSError(number, os.strerror(number))
        if found := _one(data, body, end, devices):
            sockets.append(found)
        start += _aligned(length)
    return tuple(sockets), False


def _one(data: bytes, start: int, end: int, devices: frozenset[int]) -> ListedSocket | None:
    """Return a socket, if it has a file on one of these.

    Most have not: nothing else is made of those.
    """
    at, name, inode = start + _SOCKET.size, b"", -1
    device = -1
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind == _FILE:
            inode, device = _FILE_OF.unpack_from(data, at + _ATTRIBUTE.size)
            if device not in devices:
                return None
        elif kind == _NAME:
            name = data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    if device < 0:
        return None
    _, _, _, *number = _SOCKET.unpack_from(data, start)
    return ListedSocket(
        name=os.fsdecode(name.split(b"\0")[0]),
        device=device,
        inode=inode,
        number=(number[0], number[1], number[2]),
    )


def _aligned(length: int) -> int:
    return (length + 3) & ~3
