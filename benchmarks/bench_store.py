"""What the journal costs: CPU of a durable step at 32 agents,
and starts with 100,000 queued tasks.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from harness import row

from batchd.events import CallAnswered, CallStarted, Event, TaskStarted, Terms, ToolRan, encode
from batchd.records import (
    Answer,
    Batch,
    ModelSetup,
    Price,
    Purpose,
    Rate,
    Ref,
    Task,
    ToolCall,
    Usage,
)
from batchd.store import lookups, operations
from batchd.store.store import Store

AGENTS, CALLS, QUEUED = 32, 100, 100_000
_PRICE = Price(rates=(Rate(input=1.0, cached_input=0.1, output=2.0),), source="config")
_MODEL = ModelSetup(name="p/m", price=_PRICE)
_WORDS = [f"{word}{i}" for i in range(50) for word in ("def ", "return ", "import ", "value_")]


def text(size: int) -> str:
    """Return something that deflates about as well as what models and commands write."""
    return " ".join(random.choices(_WORDS, k=size // 8))


def batch(claim: str, folder: str) -> Batch:
    """Return a batch of its own."""
    return Batch(
        name=claim, claim=claim, outbox=folder, request="request.json", received_at=time.time()
    )


def tasks(count: int) -> list[Task]:
    """Return plain tasks."""
    return [Task(id=str(i), first_prompt=text(200), model="p/m") for i in range(count)]


async def agent(store: Store, ref: Ref) -> None:
    """Do what one agent does: permit, answer, tool, and so on."""
    given = await store.write(operations.dispatch, ref)
    pending: Event = TaskStarted(
        at=1.0, terms=Terms(model=_MODEL, judge=_MODEL, system_prompt=text(2000))
    )
    tool = ToolCall("call_1", "shell", '{"command": "ls -la"}')
    usage = Usage(calls=1, input_tokens=1000, output_tokens=200)
    for seq in range(0, 3 * CALLS, 3):
        call = CallStarted(
            at=2.0,
            purpose=Purpose.AGENT,
            input_tokens=1000,
            max_output_tokens=8192,
            reserved_usd=0.01,
        )
        await store.record(ref, given.attempt, seq, [msgspec.Raw(encode(pending))], call)
        answer = Answer(content=text(300), tool_calls=(tool,), usage=usage)
        event = CallAnswered(at=3.0, purpose=Purpose.AGENT, answer=answer, calls=(tool,))
        await store.record(ref, given.attempt, seq + 2, [msgspec.Raw(encode(event))])
        pending = ToolRan(at=4.0, call=tool, output=text(900), exit_code=0)


async def steps(path: Path) -> tuple[float, float]:
    """Return CPU milliseconds of one durable step, and steps a second."""
    store = Store(path)
    await store.write(operations.add_batch, batch("steps", str(path.parent)), tasks(AGENTS))
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(agent(store, Ref("steps", str(i))) for i in range(AGENTS)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    store.close()
    return cpu * 1000 / (AGENTS * CALLS * 2), AGENTS * CALLS * 2 / wall


async def fill(path: Path) -> float:
    """Store the queue as ten files; return the seconds that the slowest took."""
    store = Store(path)
    slowest = 0.0
    for i in range(10):
        new = tasks(QUEUED // 10)
        start = time.perf_counter()
        await store.write(operations.add_batch, batch(f"b{i}", str(path.parent)), new)
        slowest = max(slowest, time.perf_counter() - start)
    store.close()
    return slowest


def main() -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, rate = asyncio.run(steps(Path(folder) / "steps.db"))
        path = Path(folder) / "queue.db"
        added = asyncio.run(fill(path))
        start = time.perf_counter()
        store = Store(path)
        found = len(store.read(lookups.restore).queued)
        restored = time.perf_counter() - start
        store.close()
    assert found == QUEUED
    row("journal: CPU a durable step, 32 agents", f"{cpu:.3f} ms", "≤ 0.25 ms", held=cpu <= 0.25)
    row("  durable steps a second", f"{rate:,.0f}", "", held=True)
    row("a file of 10,000 tasks stored", f"{added:.2f} s", "≤ 1 s", held=added <= 1)
    row("100,000 queued tasks read at a start", f"{restored:.2f} s", "≤ 3 s", held=restored <= 3)
    return 0 if cpu <= 0.25 and added <= 1 and restored <= 3 else 1


if __name__ == "__main__":
    sys.exit(main())
