"""The helper that makes a socket in another process's network,
and hands it out: a program of its own.

To enter a user namespace a process must have one thread, so no worker can do it itself. Run by its
path with ``python -I -S``: it imports nothing of ours. Arguments: a process that lives in the
network, the network's number, and the port on its loopback at which the socket is to listen.
Standard output is a Unix socket.
"""

from __future__ import annotations

# The bare module: ``socket`` takes longer to import than all the rest.
import _socket
import array
import ctypes
import fcntl
import os
import sys

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_NS_GET_USERNS = 0xB701
_IP_FREEBIND = 15
_BACKLOG = 128


def main() -> None:
    """Enter, make a socket, hand it out, end."""
    process, number, port = map(int, sys.argv[1:])
    network = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    # The process may be gone, and another one have its number by now.
    if os.fstat(network).st_ino != number:
        raise SystemExit("it is another network")
    if os.geteuid() != 0:
        # Its owner: the user namespace in which it may be entered.
        _enter(fcntl.ioctl(network, _NS_GET_USERNS), _CLONE_NEWUSER)
    _enter(network, _CLONE_NEWNET)
    made = _listening(port)
    rights = array.array("i", [made.fileno()])
    out = _socket.socket(fileno=1)
    out.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    out.detach()


def _listening(port: int) -> _socket.socket:
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    # bwrap may not have set loopback up yet.
    listener.setsockopt(_socket.IPPROTO_IP, _IP_FREEBIND, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(_BACKLOG)
    return listener


def _enter(namespace: int, kind: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, kind) != 0:
        raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    main()
