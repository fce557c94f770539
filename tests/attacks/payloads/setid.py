"""Makes programs that are setuid or setgid, by every call that can."""

import ctypes
import os
import shutil

libc = ctypes.CDLL(None)
shutil.copy("/bin/true", "a")
ways = (
    lambda: os.chmod("a", 0o4755),
    lambda: os.chmod("a", 0o2755),
    lambda: os.fchmod(os.open("a", os.O_RDONLY), 0o6755),
    lambda: os.chmod("a", 0o4755, dir_fd=os.open(".", os.O_RDONLY)),
    lambda: os.open("b", os.O_CREAT | os.O_WRONLY, 0o4755),
    lambda: os.mknod("c", 0o104755),
    lambda: os.open(".", os.O_TMPFILE | os.O_RDWR, 0o4755),
    lambda: libc.syscall(452, -100, b"a", 0o4755, 0),
    lambda: libc.creat(b"d", 0o4755),
    lambda: libc.syscall(437, -100, b"e", (ctypes.c_uint64 * 3)(0o101, 0o4755, 0), 24),
)
for way in ways:
    try:
        way()
    except OSError:
        pass
os.mkdir("f", 0o6755)
