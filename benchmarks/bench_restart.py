"""A daemon that starts with 100,000 queued tasks: from its process to its first model call."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial
from pathlib import Path

from harness import row, stage

from batchd.records import Batch, Task
from batchd.store import operations
from batchd.store.store import Store

QUEUED = int(os.environ.get("BATCHD_BENCH_FILES", "100000"))
_AT_ONCE = 500


async def _fill(spool: Path, batches: int, tasks: int) -> None:
    store = Store(spool / ".batchd/batchd.db")

    async def add(number: int) -> None:
        batch = Batch(
            name=f"b{number}",
            claim=f"c{number}",
            outbox=str(spool / "outbox"),
            request="request.json",
            received_at=time.time(),
        )
        words = " ".join(f"word{i * number % 97}" for i in range(30))
        await store.write(
            operations.add_batch,
            batch,
            [
                Task(id=f"{i:03d}", first_prompt=f"{words} {i}", model="bench/hang")
                for i in range(1, tasks + 1)
            ],
        )

    for start in range(0, batches, _AT_ONCE):
        await asyncio.gather(*(add(n) for n in range(start, min(batches, start + _AT_ONCE))))
    store.close()
    # Each daemon leaves this: with it, the next one's fork server loads beside the daemon.
    (spool / ".batchd/pool").mkdir(mode=0o700)


def fill(spool: Path, batches: int, tasks: int) -> None:
    """Leave so many batches of so many tasks queued, as a daemon that was killed does."""
    asyncio.run(_fill(spool, batches, tasks))


def started(batches: int, tasks: int) -> tuple[float, float, float]:
    """Return the seconds from the start to the first model call,
    of them CPU, and the daemon's memory in MB.
    """
    prepare = partial(fill, batches=batches, tasks=tasks)
    with stage("hang", processes=1, prepare=prepare) as (server, daemon):
        deadline = time.monotonic() + 60
        while not (log := server.get("/log")):
            if time.monotonic() > deadline:
                raise SystemExit((daemon.spool / "log").read_text()[-3000:])
            time.sleep(0.01)
        took, cpu, memory = log[0]["at"] - daemon.begun, daemon.cpu_s(), daemon.peak_mb()
        daemon.process.kill()
    return took, cpu, memory


def main() -> int:
    """Measure and print."""
    floor, floor_cpu, _ = started(1, 1)
    held = True
    row("a start with one queued task, to its first model call", f"{floor:.2f} s", "", held=True)
    for batches, tasks in ((10, QUEUED // 10), (QUEUED, 1)):
        took, cpu, memory = started(batches, tasks)
        what = f"  with {QUEUED:,} in {batches:,} batches"
        row(what, f"{took:.2f} s", "≤ 3 s", held=took <= 3)
        row("    CPU beyond that of the first", f"{cpu - floor_cpu:.2f} s", "", held=True)
        row("    the daemon's memory", f"{memory:.0f} MB RSS", "", held=True)
        held = held and took <= 3
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
