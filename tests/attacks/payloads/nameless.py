"""Ten files without a name, of ten megabytes each:
deleted, and held open, mapped, or by a process that forbids to be looked at.
"""

import ctypes
import os
import sys
import time

how = sys.argv[1]
libc = ctypes.CDLL(None)
libc.mmap.argtypes = [ctypes.c_long] * 6
if how == "not dumpable":
    libc.prctl(4, 0)
for _ in range(10):
    f = os.open("f", os.O_RDWR | os.O_CREAT)
    os.unlink("f")
    os.write(f, bytes(10 << 20))
    if how == "mapped":
        libc.mmap(0, 10 << 20, 1, 1, f, 0)
        os.close(f)
time.sleep(60)
