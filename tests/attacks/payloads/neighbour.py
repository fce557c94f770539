"""Gets at another task that works beside it, below the folder that its argument names;
prints what it got.
"""

import glob
import json
import os
import sys

ground = sys.argv[1]


def read(path: str) -> str:
    """Return what is in a file."""
    with open(path, "rb") as file:
        return file.read().decode()


def spoil(path: str) -> None:
    """Write into its answer."""
    with open(f"{path}/answer.txt", "w") as file:
        file.write("spoilt")


got = []
for root in ["", "/proc/1/root", *glob.glob("/proc/[0-9]*/root")]:
    for path in (f"{root}{ground}/other", f"{root}/task/../other", f"{root}/other"):
        for way in (os.listdir, spoil, lambda p: os.mkdir(f"{p}/mine"), lambda p: os.chmod(p, 0)):
            try:
                got.append((path, str(way(path))))
            except OSError:
                pass
shared = os.listdir("/dev/shm") + os.listdir("/tmp")
words = [read(path) for path in glob.glob("/proc/[0-9]*/cmdline")]
print(json.dumps([got, shared, [w for w in words if "answer.txt" in w and "spoilt" not in w]]))
