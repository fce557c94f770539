"""Fills files in memory that no process has mapped."""

import os
import time

held = [os.memfd_create("x") for _ in range(4)]
for f in held:
    os.write(f, bytes(100 << 20))
time.sleep(60)
