"""The threads of a process, tried in one of its own."""

from __future__ import annotations

import subprocess
import sys

#: Has each thread take and give memory back, and prints how many heaps there are beside the first:
#: glibc sets 64 MB of addresses aside for each, of which next to nothing can be used yet.
PROGRAM = """
import asyncio, threading
from batchd.pool import threads

def heap(line):
    begin, end = (int(word, 16) for word in line.split()[0].split("-"))
    return " ---p " in line and end - begin > 60 << 20

async def main():
    threads.start()
    barrier = threading.Barrier(threads._COUNT)
    def work():
        for _ in range(100):
            bytes(100_000)
        barrier.wait()
    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(threads._COUNT)))
    print(sum(map(heap, open("/proc/self/maps"))))

asyncio.run(main())
"""


def test_all_threads_share_one_heap() -> None:
    """A heap for each thread would keep the most that the thread ever needed, for months."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
