"""The system call filter, run by an interpreter of classic BPF:
the only way to try another processor's rules here.
"""

from __future__ import annotations

import errno
import struct

import pytest

from batchd.errors import SandboxUnavailableError
from batchd.sandbox.seccomp import program

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "x86_64": {"read": 0, "ioctl": 16, "socket": 41, "clone": 56, "ptrace": 101, "mount": 165, "unshare": 272, "prctl": 157, "fchmod": 91, "fchmodat": 268, "openat": 257, "fallocate": 285, "shmget": 29, "setsockopt": 54, "setxattr": 188, "sendfile": 40, "splice": 275, "msgget": 68, "semget": 64},
    "aarch64": {"read": 63, "ioctl": 29, "socket": 198, "clone": 220, "ptrace": 117, "mount": 40, "unshare": 97, "prctl": 167, "fchmod": 52, "fchmodat": 53, "openat": 56, "fallocate": 47, "shmget": 194, "setsockopt": 208, "setxattr": 5, "sendfile": 71, "splice": 76, "msgget": 186, "semget": 190},
}  # fmt: skip


def verdict(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return what the filter says to a system call."""
    given = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number, arch, 0, *given)
    lines = list(struct.iter_unpack("=HBBI", code))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = lines[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif operation == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
            at += if_true if holds[operation] else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_what_it_should_and_nothing_else(machine: str) -> None:
    """Each way through it ends in the verdict meant, for both processors that have rules."""
    code, arch, numbers = program(machine), AUDIT[machine], NUMBERS[machine]

    def says(name: str | int, *arguments: int) -> int:
        number = name if isinstance(name, int) else numbers[name]
        return verdict(code, arch, number, *arguments)

    denied, unknown, no_family = (
        ERRNO | number for number in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT)
    )
    assert says("read") == says(9999) == ALLOW
    assert says("ptrace") == says("mount") == says("unshare") == says(425) == denied
    assert says(435) == says(437) == says(0x40000000 | 1) == unknown
    assert verdict(code, 0x40000003, 1) == KILL
    assert says("clone", 17) == says("clone", 0x3D0F00) == ALLOW
    assert says("clone", 0x10000011) == says("clone", 0x20011) == denied
    assert says("ioctl", 0, 0x5401) == ALLOW
    assert says("ioctl", 0, 0x5412) == says("ioctl", 0, 1 << 32 | 0x541C) == denied
    assert says("prctl", 38, 1) == ALLOW
    assert says("prctl", 4, 0) == ERRNO  # it looks as if it was done
    assert {says("socket", family, 1, 0) for family in (1, 2, 10, 16)} == {ALLOW}
    assert {says("socket", family, 1, 0) for family in (0, 17, 38, 40, 44)} == {no_family}
    assert says("socket", 16, 3, 12) == no_family
    assert {says("socket", 2, 1, number) for number in (0, 6, 17)} == {ALLOW}
    assert {says("socket", 10, 1, number) for number in (132, 136, 256, 262)} == {
        ERRNO | errno.EPROTONOSUPPORT
    }
    assert says("fchmod", 3, 0o1777) == says("fchmodat", 3, 0, 0o644) == ALLOW
    assert says("fchmod", 3, 0o4755) == says("fchmodat", 3, 0, 0o6755) == denied
    assert says("fchmod", 3, 0o2775) == says("fchmodat", 3, 0, 0o2755) == ERRNO  # as above
    ours = program(machine, sets_ids=True)
    assert verdict(ours, arch, numbers["fchmod"], 3, 0o6775) == ALLOW
    assert verdict(ours, arch, numbers["openat"], 3, 0, 0o101, 0o4755) == ALLOW
    assert says("openat", 3, 0, 0o101, 0o755) == says("openat", 3, 0, 0, 0o6755) == ALLOW
    assert says("openat", 3, 0, 0o101, 0o4755) == says("openat", 3, 0, 0x410002, 0o2755) == denied
    no_room = ERRNO | errno.EOPNOTSUPP
    assert {says("fallocate", 3, mode, 0, 9) for mode in (3, 8, 0x20)} == {ALLOW}
    kept, taking = (0, 1), (0, 0x04, 0x10, 0x22, 0x40, 0x80, 1 << 32)
    assert {says("fallocate", 3, mode | keep, 0, 9) for mode in taking for keep in kept} == {
        no_room
    }
    assert {says("ioctl", 3, 0x40305800 | number) for number in (40, 42, 57)} == {no_room}
    assert says("ioctl", 3, 1 << 32 | 0x40305828) == says("ioctl", 3, 0x401C5820) == no_room
    assert says("ioctl", 3, 0x4030582B) == ALLOW  # gives back
    assert says(468) == ALLOW
    assert says(469) == unknown
    assert len(code) // 8 < 4096


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_gives_no_memory_that_is_not_counted(machine: str) -> None:
    """Objects of System V, memory by reference, long attributes: to the byte."""
    code, arch, numbers = program(machine), AUDIT[machine], NUMBERS[machine]

    def says(name: str | int, *arguments: int) -> int:
        number = name if isinstance(name, int) else numbers[name]
        return verdict(code, arch, number, *arguments)

    unknown, invalid = ERRNO | errno.ENOSYS, ERRNO | errno.EINVAL
    assert says("msgget") == says("semget", 0, 1) == says(463) == unknown
    assert says("splice") == says("sendfile") == invalid
    assert says("shmget", 0, 0) == says("shmget", 1 << 31, 4096, 0o1600) == ALLOW
    assert says("shmget", 0, 4097) == says("shmget", 0, 1 << 32) == invalid
    assert says("setsockopt", 3, 1, 60) == ERRNO | errno.ENOPROTOOPT
    assert says("setsockopt", 3, 1, 7) == says("setsockopt", 3, 1 << 32 | 1, 7) == ERRNO
    assert says("setsockopt", 3, 1, 8) == says("setsockopt", 3, 6, 60) == ALLOW
    assert says("setsockopt", 3, 6, 7) == ALLOW
    assert says("setxattr", 0, 0, 0, 256) == says("setxattr", 0, 0, 0, 0) == ALLOW
    assert says("setxattr", 0, 0, 0, 257) == ERRNO | errno.EOPNOTSUPP


def test_a_processor_without_rules_is_refused() -> None:
    """No filter is no sandbox."""
    with pytest.raises(SandboxUnavailableError, match="riscv64"):
        program("riscv64")
