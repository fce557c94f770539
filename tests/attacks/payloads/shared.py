"""Shares its memory with forks, and maps a large file in all of them,
for the seconds of its argument.
"""

import mmap
import os
import sys
import time

taken = bytearray(150 << 20)
with open("big", "wb") as file:
    for _ in range(200):
        file.write(bytes(1 << 20))
mapped = mmap.mmap(os.open("big", os.O_RDONLY), 0, prot=mmap.PROT_READ)
for _ in range(5):
    if not os.fork():
        break
for i in range(0, len(mapped), 4096):
    mapped[i]
time.sleep(float(sys.argv[1]))
