"""Works in memory and files of its own, until a file called ``end`` is there."""

import os
import time

with open("/dev/shm/mine", "wb") as memory, open("answer.txt", "w") as answer:
    memory.write(b"x" * 4096)
    answer.write("mine")
for name in ("/tmp/up", "up"):
    with open(name, "w"):
        pass
while not os.path.exists("end"):
    time.sleep(0.02)
os.unlink("end")
