"""Types into a terminal, and opens the one that controls it; prints why it cannot."""

import ctypes
import errno
import os

libc = ctypes.CDLL(None, use_errno=True)
master, slave = os.openpty()
ioctl = 16 if os.uname().machine == "x86_64" else 29
for request in (0x5412, 0x541C, (1 << 32) | 0x5412):
    letter = ctypes.c_char(b"x")
    given = (ctypes.c_long(ioctl), ctypes.c_long(slave), ctypes.c_ulong(request))
    ended = libc.syscall(*given, ctypes.byref(letter))
    assert (ended, ctypes.get_errno()) == (-1, errno.EPERM), request
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    print(errno.errorcode[error.errno])
