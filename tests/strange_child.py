"""A child of ``batchd.children`` that does as it is asked: hangs, dies, fails, or answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from batchd import processes


def main() -> int:
    """Do what comes."""
    processes.end_with(sys.argv[1])
    return processes.serve(_answers)


def _answers(job: bytes) -> Iterator[bytes]:
    if job == b"fail":
        raise KeyError("what is missing")
    if job == b"die":
        os._exit(3)
    if job == b"hang":
        with subprocess.Popen(["sleep", "1000"]) as started:
            yield str(started.pid).encode()
    yield str(os.getpid()).encode()
