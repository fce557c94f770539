"""Looks for a key wherever a process of the same user may look. Arguments: the process, the key."""

import os
import re
import sys
from collections.abc import Callable

pid, key = sys.argv[1], sys.argv[2].encode()


def look(name: str, work: Callable[[], bytes]) -> None:
    """Print whether the key is there, or why that cannot be seen."""
    try:
        print(name, key in work())
    except OSError as error:
        print(name, error.strerror)


def environ() -> bytes:
    """Return its environment."""
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()


def memory() -> bytes:
    """Return the key where it stands in its memory."""
    with open(f"/proc/{pid}/maps") as file:
        maps = file.read()
    with open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for low, high in re.findall(r"^(\w+)-(\w+) rw", maps, re.MULTILINE):
            mem.seek(int(low, 16))
            if key in mem.read(int(high, 16) - int(low, 16)):
                return key
    return b""


def descriptors() -> bytes:
    """Return the names of its descriptors."""
    return b"".join(map(os.fsencode, os.listdir(f"/proc/{pid}/fd")))


look("environ", environ)
look("memory", memory)
look("descriptors", descriptors)
