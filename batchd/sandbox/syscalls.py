"""The numbers of system calls that the filter looks at, which differ between processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Refused with EPERM: number on x86-64, number on arm64 (None: not there).
DENIED: Mapping[str, tuple[int, int | None]] = {
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
#: Refused with ENOSYS, as where System V's are not built in: queues and sets of semaphores that
#: belong to no process. How much memory they take no one could see.
ABSENT: Mapping[str, tuple[int, int]] = {"semget": (64, 190), "msgget": (68, 186)}
#: Refused with EINVAL, as for files that cannot do it, and programs copy: a pipe or a socket then
#: has memory by reference, which stays when its file or its process is gone,
#: up to two megabytes for each byte that counts.
BY_REFERENCE: Mapping[str, tuple[int, int]] = {
    "sendfile": (40, 71),
    "splice": (275, 76),
    "tee": (276, 77),
    "vmsplice": (278, 75),
}
#: Calls that give a file an attribute.
ATTRIBUTES: Mapping[str, tuple[int, int]] = {
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
}


#: Calls that have rules of their own, by their arguments.
LOOKED_INTO: Mapping[str, tuple[int, int]] = {
    "clone": (56, 220),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "prctl": (157, 167),
    "fallocate": (285, 47),
    "shmget": (29, 194),
    "setsockopt": (54, 208),
}


class Arch(NamedTuple):
    """What differs between processors."""

    #: What the kernel calls it in ``seccomp_data``.
    audit: int
    #: The place of its number in each pair.
    column: int


#: The numbers of aarch64 are the kernel's tables', never run.
ARCHS: Mapping[str, Arch] = {"x86_64": Arch(0xC000003E, 0), "aarch64": Arch(0xC00000B7, 1)}


def clone_number(machine: str) -> int:
    """Return the number of ``clone`` on a processor that has rules."""
    return LOOKED_INTO["clone"][ARCHS[machine].column]
