"""Grows a tree that ordinary ways of removing one stumble over; its links lead to the argument."""

import os
import sys

victim = sys.argv[1]
os.mkdir("locked")
with open("locked/x", "w"):
    pass
os.chmod("locked", 0)
for target, name in (("/", "root"), ("..", "up"), (victim, "out")):
    os.symlink(target, name)
os.mkfifo("fifo")
for odd in (b"line\nbreak", b"\xff\xfe", b"-rf", b" ", b"\x1b[2J", b"n" * 255, b"*"):
    with open(odd, "wb"):
        pass
here = os.open(".", os.O_RDONLY)
for _ in range(3000):
    os.mkdir("d", dir_fd=here)
    below = os.open("d", os.O_RDONLY, dir_fd=here)
    os.close(here)
    here = below
os.makedirs("many")
for n in range(2000):
    os.symlink(victim, f"many/{n}")
