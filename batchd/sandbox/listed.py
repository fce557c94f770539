"""The kernel's list of unix sockets that have a path, in this process's network: asked by netlink, in some 50 µs.

/proc/net/unix tells no more than the name that a socket was given, which may be relative, or of another time; this
tells the device and the inode of its file, too.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
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
_MINOR_BITS = 20
_READ = 1 << 17
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A socket with a file."""

    #: The path by which it was made.
    name: str
    #: ``MAJOR:MINOR`` of the file system, as /proc/self/mountinfo has it.
    device: str
    #: The last 32 bits of the file's inode.
    inode: int
    #: What no other socket has, nor will have.
    number: tuple[int, int, int]


def listed() -> list[Listed]:
    """Return all of them. Raises ``OSError`` where the kernel tells nothing."""
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
        return list(_answers(line))


def _answers(line: socket.socket) -> Iterator[Listed]:
    while True:
        data, _, flags, _ = line.recvmsg(_READ)
        if flags & socket.MSG_TRUNC:
            raise OSError("the kernel's list of sockets does not fit")
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            body, data = data[_HEADER.size : length], data[_aligned(length) :]
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, os.strerror(number))
            yield from _with_file(body)


def _with_file(body: bytes) -> Iterator[Listed]:
    _, _, _, *number = _SOCKET.unpack_from(body)
    attributes = dict(_attributes(body[_SOCKET.size :]))
    if file := attributes.get(_FILE):
        inode, device = _FILE_OF.unpack_from(file)
        yield Listed(
            name=os.fsdecode(attributes.get(_NAME, b"").split(b"\0")[0]),
            device=f"{device >> _MINOR_BITS}:{device & (1 << _MINOR_BITS) - 1}",
            inode=inode,
            number=(number[0], number[1], number[2]),
        )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3
