"""A process that holds keys is closed to every other process of its own user, agents' commands among them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from attacking import HERE

KEY = "sk-sealed-key-4711"
#: Holds a key in its environment and in its memory, as a daemon does.
HOLDER = """
import os, sys, time
held = os.environ["MY_API_KEY"] + "-in-memory"
if sys.argv[1] == "sealed":
    from batchd import sealing
    sealing.seal()
    sealing.forget([])
    assert "MY_API_KEY" not in os.environ
print("ready", flush=True)
time.sleep(60)
"""
#: Looks for it wherever a process of the same user may look.
LOOKER = """
import os, re, sys
pid, key = sys.argv[1], sys.argv[2].encode()
def look(name, work):
    try:
        print(name, key in work())
    except OSError as error:
        print(name, error.strerror)
def memory():
    maps = open(f"/proc/{pid}/maps").read()
    with open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for low, high in re.findall(r"^(\\w+)-(\\w+) rw", maps, re.M):
            mem.seek(int(low, 16))
            if key in mem.read(int(high, 16) - int(low, 16)):
                return key
    return b""
look("environ", lambda: open(f"/proc/{pid}/environ", "rb").read())
look("memory", memory)
look("descriptors", lambda: b"".join(map(os.fsencode, os.listdir(f"/proc/{pid}/fd"))))
"""


def _found(who: Sequence[str], how: str) -> Sequence[str]:
    """Return what a process of the same user finds out about one that holds a key."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    holder = [*who, sys.executable, "-c", HOLDER, how]
    with subprocess.Popen(holder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            command = [*who, sys.executable, "-c", LOOKER, str(process.pid), KEY]
            looked = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            process.kill()
    return looked.stdout.splitlines()


@pytest.mark.stopped_by("sealing")
def test_nobody_of_the_same_user_looks_into_a_sealed_process(somebody: list[str]) -> None:
    """Its environment, memory and descriptors are closed; those of one that is not sealed are not."""
    assert _found(somebody, "sealed") == [
        *("environ Permission denied", "memory Permission denied", "descriptors Permission denied")
    ]
    assert _found(somebody, "open")[0] == "environ True", "this test would not see a leak"


@pytest.mark.stopped_by("forgetting")
def test_even_root_finds_no_key_in_the_environment(who: list[str]) -> None:
    """Where the variable stood there are zeros: nothing that reads /proc later has it."""
    environment = {"MY_API_KEY": KEY, "PYTHONPATH": str(HERE)}
    code = (
        "from batchd import sealing\nsealing.forget([])\nprint(open('/proc/self/environ').read())"
    )
    command = [*who, sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert KEY not in done.stdout
    assert "MY_API_KEY=\0" in done.stdout
