"""Goes where a path cannot follow, and writes there:
deeper than any path is long, or below odd names.
"""

import os
import sys
import time

if sys.argv[1] == "deep":
    for _ in range(1500):
        os.mkdir("dddd")
        os.chdir("dddd")
else:  # a name that is no text, and that breaks a line
    os.mkdir(b"\xff\n")
    os.chdir(b"\xff\n")
for i in range(100):
    with open(f"f{i}", "wb") as file:
        file.write(bytes(2 << 20))
    time.sleep(0.03)
time.sleep(60)
