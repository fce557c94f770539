"""The guard of a process that runs commands: what it kills, and that it is replaced."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S, until

#: Has four children; the first is watched no longer before the last two begin.
RUNNER = """
import subprocess, sys
from batchd.sandbox.guard import guard

def watched():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL)
    guard().watch(child.pid)
    return child.pid

first = [watched(), watched()]
guard().forget(first[0])
print(guard().name, flush=True)
sys.stdin.readline()
print(*first, watched(), watched(), flush=True)
sys.stdin.read()
"""


def _living(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _guard_of(pid: int, name: str) -> int:
    found: list[int] = []

    def there() -> bool:  # what was forked just now has its own environment once it has begun
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if f"NAME={name}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                    found.append(int(child))
        return bool(found)

    until(there, lambda: f"{pid} has no guard", PATIENCE_S)
    return found[0]


@pytest.mark.parametrize("killed", [False, True])
def test_who_is_watched_dies_with_the_process(killed: bool) -> None:
    """SIGKILL of a process ends all that it watches, those too that it watched before its guard
    was killed and replaced, and none that it has let go.
    """
    command = [sys.executable, "-c", RUNNER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        if killed:
            os.kill(guard := _guard_of(process.pid, name), signal.SIGKILL)
            until(lambda: not _living(guard))
        process.stdin.write("\n")
        loose, *watched = map(int, process.stdout.readline().split())
        try:
            assert all(map(_living, watched))
            process.kill()
            process.wait(PATIENCE_S)
            until(lambda: not any(map(_living, watched)))
            assert _living(loose)
        finally:
            os.kill(loose, signal.SIGKILL)
