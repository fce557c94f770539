"""The system call filter: a small assembler for classic BPF, and the rules.

Namespaces already hide most of the machine. The filter takes away what they do not cover: kernel
interfaces with a history of holes, the ways to make new namespaces (as root there is no
``--disable-userns``), and those few that reach past a namespace (keyrings, terminals, VSOCK). It
also keeps setuid and setgid programs from being made: out in the task's directory they would lend
every user its owner's rights. And room on the disk is given only by writing, which takes time: what
is measured twice a second has a chance then.
Nor is memory given out that belongs to no process, or is not seen from outside.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Callable, Iterable, Mapping

from batchd.errors import SandboxUnavailableError
from batchd.sandbox.syscalls import ABSENT, ARCHS, ATTRIBUTES, BY_REFERENCE, DENIED, LOOKED_INTO

# Classic BPF, see linux/bpf_common.h.
_LOAD = 0x20  # A = 32 bits of struct seccomp_data, at offset k
_JEQ = 0x15
_JGE = 0x35
_JSET = 0x45
_RETURN = 0x06

# What a filter returns, see linux/seccomp.h.
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_KILL_PROCESS = 0x80000000

# Offsets in struct seccomp_data; arguments are 64 bits each, and the low half comes first.
_NR = 0
_ARCH = 4
_ARGS = 16

_CLONE_NEW = (
    0x7E020000  # NEWUSER, NEWPID, NEWNET, NEWIPC, NEWUTS, NEWCGROUP, NEWNS (NEWTIME needs clone3)
)
_TIOCSTI = 0x5412  # types into the terminal that started the daemon
_TIOCLINUX = 0x541C  # pastes on a Linux console
_PR_SET_DUMPABLE = 4
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE = 0  # getaddrinfo needs it; the other netlink families are a large surface
#: Those of the internet families: none (the usual one), ICMP,
#: TCP, UDP, ICMPv6. Others have queues of their own.
_PROTOCOLS = (0, 1, 6, 17, 58)
_SOL_SOCKET, _SO_SNDBUF, _SO_ZEROCOPY = 1, 7, 60
#: The longest attribute of a file, as programs set them (bytes).
#: Lists of who may do what are kept in memory, and not counted.
_MOST_ATTRIBUTE = 256
#: A segment that no process has attached is not seen by any look.
#: There can be 4,096 of them; databases have one, of this size.
_MOST_SEGMENT = 4096
_X32_BIT = 0x40000000

#: Refused with ENOSYS, so that programs fall back on calls that can be looked into:
#: what counts lies behind a pointer.
_OPAQUE = {"clone3": 435, "openat2": 437, "file_setattr": 469, "setxattrat": 463}
#: Calls that give a file another mode: number on x86-64,
#: number on arm64, and which argument is the mode.
_CHANGES: Mapping[str, tuple[int | None, int | None, int]] = {
    "chmod": (90, None, 1),
    "fchmod": (91, 52, 1),
    "fchmodat": (268, 53, 2),
    "fchmodat2": (452, 452, 2),
}
#: The same for those that make it.
_MAKES: Mapping[str, tuple[int | None, int | None, int]] = {
    "creat": (85, None, 1),
    "mknod": (133, None, 1),
    "mknodat": (259, 33, 2),
}
#: The same for such as have a mode only with certain flags, which are the argument before it.
_OPENS: Mapping[str, tuple[int | None, int | None, int]] = {
    "open": (2, None, 2),
    "openat": (257, 56, 3),
}
#: Requests that set room aside (what XFS had before there was ``fallocate``, and all file systems
#: have since), or that have each write set more aside, and count for another project's quota.
_RESERVING = {
    "FS_IOC_RESVSP": 0x40305828,
    "FS_IOC_RESVSP64": 0x4030582A,
    "FS_IOC_ZERO_RANGE": 0x40305839,
    "FS_IOC_FSSETXATTR": 0x401C5820,
}
#: What ``fallocate`` may do: give room back, and move what is there. Any other mode may take some.
_HARMLESS = (0x03, 0x08, 0x20)  # PUNCH_HOLE with KEEP_SIZE, COLLAPSE_RANGE, INSERT_RANGE
_SETUID, _SETGID = 0o4000, 0o2000  # S_ISUID and S_ISGID
_CREATES = (
    0x400040  # O_CREAT and O_TMPFILE: without them the mode is whatever stood in the register
)


#: Of these, those that the tests have run on.
TESTED = frozenset({"x86_64"})

#: One instruction: code, jump if true, jump if false, k.
_Line = tuple[int, int, int, int]


@functools.cache
def program(machine: str, *, sets_ids: bool = False) -> bytes:
    """Return the filter for a processor as ``platform.machine()`` names it,
    in the form that the kernel reads.

    ``sets_ids``: files may be made setuid and setgid.
    Raises ``SandboxUnavailableError`` for one without rules.
    """
    arch = ARCHS.get(machine)
    if arch is None:
        raise SandboxUnavailableError(
            f"there is no system call filter for {machine} processors yet (only for {', '.join(ARCHS)})"
        )
    denied = [number for pair in DENIED.values() if (number := pair[arch.column]) is not None]
    code = [
        _load(_ARCH),
        (_JEQ, 1, 0, arch.audit),
        # 32-bit calls would pass under other numbers.
        _give(_KILL_PROCESS),
        _load(_NR),
        (_JGE, 0, 1, _X32_BIT),
        _refuse(errno.ENOSYS),
    ]
    for name, rule in _RULES.items():
        code += _on(LOOKED_INTO[name][arch.column], rule())
    for number in _OPAQUE.values():
        code += _on(number, [_refuse(errno.ENOSYS)])
    modes = () if sets_ids else ((_CHANGES, _change), (_MAKES, _mode), (_OPENS, _opening))
    for calls, of_mode in modes:
        for *numbers, argument in calls.values():
            if (number := numbers[arch.column]) is not None:
                code += _on(number, of_mode(argument))
    for refused, answer in (
        (ABSENT, [_refuse(errno.ENOSYS)]),
        (BY_REFERENCE, [_refuse(errno.EINVAL)]),
        (ATTRIBUTES, _attribute()),
    ):
        for pair in refused.values():
            code += _on(pair[arch.column], answer)
    for number in denied:
        code += _on(number, [_refuse(errno.EPERM)])
    code.append(_give(_ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def _load(offset: int) -> _Line:
    return (_LOAD, 0, 0, offset)


def _give(verdict: int) -> _Line:
    return (_RETURN, 0, 0, verdict)


def _refuse(number: int) -> _Line:
    return _give(_ERRNO | number)


def _on(value: int, body: Iterable[_Line]) -> list[_Line]:
    """Return ``body`` for where A is ``value``; every way through it must end in a verdict."""
    lines = list(body)
    return [(_JEQ, 0, len(lines), value), *lines]


def _clone() -> list[_Line]:
    return [
        _load(_ARGS),
        (_JSET, 0, 1, _CLONE_NEW),
        _refuse(errno.EPERM),
        _give(_ALLOW),
    ]


def _mode(argument: int, setgid: int = errno.EPERM) -> list[_Line]:
    return [
        _load(_ARGS + 8 * argument),
        (_JSET, 0, 1, _SETUID),
        _refuse(errno.EPERM),
        (_JSET, 0, 1, _SETGID),
        _refuse(setgid),
        _give(_ALLOW),
    ]


def _change(argument: int) -> list[_Line]:
    # Folders that are setgid are everyday, and lend no one a right; but here nothing shows whether
    # it is a folder. Git asks for it where a repository is shared, and gets an answer that it can
    # go on with: nothing is changed.
    return _mode(argument, setgid=0)


def _opening(argument: int) -> list[_Line]:
    return [
        _load(_ARGS + 8 * (argument - 1)),
        (_JSET, 1, 0, _CREATES),
        _give(_ALLOW),
        *_mode(argument),
    ]


def _prctl() -> list[_Line]:
    # Who is watched may not hide. Agents of keys do it as a matter of course,
    # and get the answer that they have.
    return [_load(_ARGS), *_on(_PR_SET_DUMPABLE, [_refuse(0)]), _give(_ALLOW)]


def _ioctl() -> list[_Line]:
    # The kernel looks at the low half of the request only, and so must we.
    return [
        _load(_ARGS + 8),
        *_on(_TIOCSTI, [_refuse(errno.EPERM)]),
        *_on(_TIOCLINUX, [_refuse(errno.EPERM)]),
        *(line for request in _RESERVING.values() for line in _on(request, _no_room())),
        _give(_ALLOW),
    ]


def _fallocate() -> list[_Line]:
    harmless = [line for mode in _HARMLESS for line in _on(mode, [_give(_ALLOW)])]
    return [_load(_ARGS + 8), *harmless, *_no_room()]


def _no_room() -> list[_Line]:
    # As of a file system that cannot do it: programs then write, or do without.
    # The C library's posix_fallocate does.
    return [_refuse(errno.EOPNOTSUPP)]


def _socket() -> list[_Line]:
    allowed = [line for number in _PROTOCOLS for line in _on(number, [_give(_ALLOW)])]
    internet = [_load(_ARGS + 16), *allowed, _refuse(errno.EPROTONOSUPPORT)]
    common = [line for family in (_AF_INET, _AF_INET6) for line in _on(family, internet)]
    route = [_load(_ARGS + 16), *_on(_NETLINK_ROUTE, [_give(_ALLOW)]), _refuse(errno.EAFNOSUPPORT)]
    return [
        _load(_ARGS),
        *_on(_AF_UNIX, [_give(_ALLOW)]),
        *common,
        *_on(_AF_NETLINK, route),
        _refuse(errno.EAFNOSUPPORT),
    ]


def _setsockopt() -> list[_Line]:
    zerocopy = _on(_SO_ZEROCOPY, [_refuse(errno.ENOPROTOOPT)])
    # A wish, which the kernel may cut as it likes.
    # Without it, little can wait from a socket that is closed, which the kernel does not list.
    wider = _on(_SO_SNDBUF, [_refuse(0)])
    return [
        _load(_ARGS + 8),
        *_on(_SOL_SOCKET, [_load(_ARGS + 16), *zerocopy, *wider, _give(_ALLOW)]),
        _give(_ALLOW),
    ]


def _attribute() -> list[_Line]:
    return [
        _load(_ARGS + 24),
        (_JGE, 0, 1, _MOST_ATTRIBUTE + 1),
        _refuse(errno.EOPNOTSUPP),
        _give(_ALLOW),
    ]


def _shmget() -> list[_Line]:
    too_large = _refuse(errno.EINVAL)
    return [
        _load(_ARGS + 12),
        (_JEQ, 1, 0, 0),
        too_large,
        _load(_ARGS + 8),
        (_JGE, 0, 1, _MOST_SEGMENT + 1),
        too_large,
        _give(_ALLOW),
    ]


_RULES: Mapping[str, Callable[[], list[_Line]]] = {
    "clone": _clone,
    "ioctl": _ioctl,
    "socket": _socket,
    "socketpair": _socket,
    "prctl": _prctl,
    "fallocate": _fallocate,
    "shmget": _shmget,
    "setsockopt": _setsockopt,
}
