"""Makes dangerous system calls under their numbers of x86-64;
prints the number of each one's error.
"""

import ctypes
import json

libc = ctypes.CDLL(None, use_errno=True)


def call(*args: int) -> int:
    """Make a system call; return the number of its error, or 0."""
    ctypes.set_errno(0)
    return libc.syscall(*map(ctypes.c_long, args)) and ctypes.get_errno()


calls = {
    "ptrace": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "keyctl": (250, 0, -3, 1),
    "add_key": (248, 0, 0, 0, 0, -3),
    "userfaultfd": (323, 1),
    "io_uring_setup": (425, 1, 0),
    "io_uring_enter": (426, -1, 0, 0, 0, 0, 0),
    "io_uring_register": (427, -1, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0),
    "fsopen": (430, 0, 0),
    "open_tree": (428, -100, 0, 0),
    "move_mount": (429, -1, 0, -1, 0, 0),
    "mount_setattr": (442, -1, 0, 0, 0, 0),
    "setns": (308, -1, 0),
    "unshare": (272, 0x10000000),
    "unshare0": (272, 0),
    "clone": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone_net": (56, 0x40000000 | 17, 0, 0, 0, 0),
    "clone_high": (56, (1 << 40) | 0x20000000 | 17, 0, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "syslog": (103, 3, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0),
    "pidfd_getfd": (438, -1, 0, 0),
    "fanotify_init": (300, 0, 0),
    "quotactl": (179, 0, 0, 0, 0),
    "acct": (163, 0),
    "clone3": (435, 0, 0),
    "x32": (0x40000000 | 39,),
}
print(json.dumps({name: call(*args) for name, args in calls.items()}))
