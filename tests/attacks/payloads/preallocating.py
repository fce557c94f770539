"""Asks for room on the disk without writing, in every way that there is;
prints what each got, and what works all the same.
"""

import ctypes
import errno
import json
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)
ROOM, PIECE = 256 << 20, 1 << 20
FALLOCATE, IOCTL, FILE_SETATTR, AT_EMPTY_PATH = 285, 16, 469, 0x1000
#: Modes of fallocate that take room; the first bit leaves the file's size alone.
MODES = {"allocate": 0, "zero": 0x10, "unshare": 0x40, "write zeroes": 0x80}
#: The same by ioctl, which file systems had before.
RESERVING = {"RESVSP": 0x40305828, "RESVSP64": 0x4030582A, "ZERO_RANGE": 0x40305839}
FSSETXATTR = 0x401C5820
#: The kernel looks at the low half of some arguments alone.
HIGH = 1 << 32

space = ctypes.create_string_buffer(struct.pack("hh4xqqiI16x", 0, 0, 0, ROOM, 0, 0))
#: What a file system is to set aside for each write to come.
hint = ctypes.create_string_buffer(struct.pack("IIIII8x", 0x800, ROOM, 0, 0, 0))
attributes = ctypes.create_string_buffer(struct.pack("QIIII", 0x800, ROOM, 0, 0, 0))
got: dict[str, int] = {}
refused: dict[str, str] = {}


def call(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | bytes) -> int:
    """Make a system call; return the number of its error, or 0."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return libc.syscall(ctypes.c_long(number), *words) and ctypes.get_errno()


def fresh() -> int:
    """Return a new file, large and empty."""
    file = os.open("file", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.ftruncate(file, ROOM)
    return file


def taken(file: int) -> int:
    """Return what a file takes on the disk, in bytes."""
    return os.fstat(file).st_blocks * 512


def tried(name: str, file: int, number: int) -> None:
    """Note what a call brought."""
    refused[name] = errno.errorcode.get(number, "")
    got[name] = taken(file)
    os.close(file)


for name, mode in MODES.items():
    for bit in (0, 1, HIGH):
        file = fresh()
        tried(f"{name} {bit}", file, call(FALLOCATE, file, mode | bit, 0, ROOM))
for name, request in RESERVING.items():
    for bit in (0, HIGH):
        file = fresh()
        tried(f"{name} {bit}", file, call(IOCTL, file, request | bit, space))
file = fresh()
tried("FSSETXATTR", file, call(IOCTL, file, FSSETXATTR, hint))
file = fresh()
number = call(FILE_SETATTR, file, b"", attributes, len(attributes) - 1, AT_EMPTY_PATH)
tried("file_setattr", file, number)

# Who asks the C library gets what he asks for, by writing.
file = os.open("other", os.O_RDWR | os.O_CREAT, 0o600)
os.posix_fallocate(file, 0, PIECE)
result = {"got": got, "refused": refused, "written": taken(file)}
os.pwrite(file, b"x" * PIECE, 0)
print(json.dumps({**result, "hole": call(FALLOCATE, file, 3, 0, PIECE // 2)}))
