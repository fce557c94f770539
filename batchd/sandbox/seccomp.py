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
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from batchd.errors import SandboxUnavailableError

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

#: Calls by name, each with its number on x86-64 and on arm64; None: it is not there.
_Calls: TypeAlias = Mapping[str, tuple[int | None, int | None]]

_CLONE = (56, 220)
#: Refused with ENOSYS, so that programs fall back on calls that can be looked into:
#: what counts lies behind a pointer.
_OPAQUE: _Calls = {
    "clone3": (435, 435),
    "openat2": (437, 437),
    "file_setattr": (469, 469),
    "setxattrat": (463, 463),
}
#: Refused with ENOSYS, as where System V's are not built in: queues and sets of semaphores that
#: belong to no process. How much memory they take no one could see.
_ABSENT: _Calls = {"semget": (64, 190), "msgget": (68, 186)}
#: Refused with EINVAL, as for files that cannot do it, and programs copy: a pipe or a socket then
#: has memory by reference, which stays when its file or its process is gone,
#: up to two megabytes for each byte that counts.
_BY_REFERENCE: _Calls = {
    "sendfile": (40, 71),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
}
#: Calls that give a file an attribute.
_ATTRIBUTES: _Calls = {"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)}
#: Refused with EPERM.
_DENIED: _Calls = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "perf_event_open": (298, 241),
    # programs and rings in the kernel
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # keyrings have no namespace
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "unshare": (272, 97),
    "setns": (308, 268),
    # files by handle, and events of whole file systems
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "lookup_dcookie": (212, 18),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
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


class Arch(NamedTuple):
    """What differs between processors."""

    #: What the kernel calls it in ``seccomp_data``.
    audit: int
    #: The place of its number in each pair.
    column: int


#: The numbers of aarch64 are the kernel's tables', never run.
ARCHS: Mapping[str, Arch] = {"x86_64": Arch(0xC000003E, 0), "aarch64": Arch(0xC00000B7, 1)}
#: Of these, those that the tests have run on.
TESTED = frozenset({"x86_64"})

#: One instruction: code, jump if true, jump if false, k.
_Line = tuple[int, int, int, int]


def clone_number(machine: str) -> int:
    """Return the number of ``clone`` on a processor that has rules."""
    return _CLONE[ARCHS[machine].column]


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
    code = [
        _load(_ARCH),
        (_JEQ, 1, 0, arch.audit),
        # 32-bit calls would pass under other numbers.
        _give(_KILL_PROCESS),
        _load(_NR),
        (_JGE, 0, 1, _X32_BIT),
        _refuse(errno.ENOSYS),
    ]
    for calls, answer in _rules(sets_ids=sets_ids):
        for numbers in calls.values():
            if (number := numbers[arch.column]) is not None:
                code += _on(number, answer)
    code.append(_give(_ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def _rules(*, sets_ids: bool) -> Iterator[tuple[_Calls, list[_Line]]]:
    """Yield calls that are looked into or refused, with what is answered to each of them."""
    yield {"clone": _CLONE}, _clone()
    yield {"ioctl": (16, 29)}, _ioctl()
    yield {"socket": (41, 198), "socketpair": (53, 199)}, _socket()
    yield {"prctl": (157, 167)}, _prctl()
    yield {"fallocate": (285, 47)}, _fallocate()
    yield {"shmget": (29, 194)}, _shmget()
    yield {"setsockopt": (54, 208)}, _setsockopt()
    yield _OPAQUE, [_refuse(errno.ENOSYS)]
    if not sets_ids:
        yield {"chmod": (90, None), "fchmod": (91, 52)}, _change(1)
        yield {"fchmodat": (268, 53), "fchmodat2": (452, 452)}, _change(2)
        yield {"creat": (85, None), "mknod": (133, None)}, _mode(1)
        yield {"mknodat": (259, 33)}, _mode(2)
        yield {"open": (2, None)}, _opening(2)
        yield {"openat": (257, 56)}, _opening(3)
    yield _ABSENT, [_refuse(errno.ENOSYS)]
    yield _BY_REFERENCE, [_refuse(errno.EINVAL)]
    yield _ATTRIBUTES, _attribute()
    yield _DENIED, [_refuse(errno.EPERM)]


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
