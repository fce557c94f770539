"""Writes to a store until it is killed, and says on its output what was acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

import msgspec

from batchd.events import (
    CallAnswered,
    CallStarted,
    Event,
    Resumed,
    TaskFinished,
    TaskStarted,
    Terms,
    ToolRan,
    encode,
)
from batchd.records import (
    Answer,
    Batch,
    ModelSetup,
    Price,
    Purpose,
    Rate,
    Ref,
    Task,
    TaskStatus,
    ToolCall,
    Usage,
)
from batchd.store import operations
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

TASKS = 12
PRICE = Price(rates=(Rate(input=1.0, cached_input=0.1, output=2.0),), source="config")
MODEL = ModelSetup(name="p/m", price=PRICE)


def say(*words: object) -> None:
    """Report to the parent that something is durable: it must be, from this moment on."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def content(ref: Ref, seq: int) -> str:
    """Return what stands in the event of this number: small or large, and never the same."""
    return f"{ref} {seq} " * (1 + seq * 7 % 150)


def opening(attempt: int) -> Event:
    """Return how an attempt begins."""
    if attempt == 1:
        return TaskStarted(at=1.0, terms=Terms(model=MODEL, judge=MODEL))
    return Resumed(at=1.0, attempt=attempt)


async def work(store: Store, ref: Ref) -> None:
    """Go on with a task for ever."""
    given = await store.write(operations.dispatch, ref)
    say("attempt", ref.task, given.attempt)
    seq = len(given.history)
    pending: list[Event] = [opening(1 if not seq else 2)]
    for _ in itertools.count():
        call = CallStarted(
            at=2.0, purpose=Purpose.AGENT, input_tokens=1, max_output_tokens=1, reserved_usd=0.5
        )
        await store.record(ref, given.attempt, seq, [msgspec.Raw(encode(e)) for e in pending], call)
        seq += len(pending) + 1
        say("events", ref.task, seq)
        usage = Usage(calls=1, input_tokens=1000, output_tokens=10)
        answer = Answer(content=content(ref, seq), usage=usage)
        event = CallAnswered(at=3.0, purpose=Purpose.AGENT, answer=answer)
        await store.record(ref, given.attempt, seq, [msgspec.Raw(encode(event))])
        seq += 1
        say("events", ref.task, seq)
        pending = [ToolRan(at=4.0, call=ToolCall("1", "shell", "{}"), output=content(ref, seq))]


async def batches(store: Store, outbox: str, mark: str) -> None:
    """Add, finish and publish small batches for ever."""
    for i in itertools.count():
        claim = f"{mark}-{i}"
        batch = Batch(
            name=claim, claim=claim, outbox=outbox, request="request.json", received_at=1.0
        )
        batch = await store.write(
            operations.add_batch, batch, [Task(id="1", first_prompt=claim, model="p/m")]
        )
        say("batch", batch.name, claim)
        end = TaskFinished(at=5.0, status=TaskStatus.COMPLETED, reason=None, result=f"{claim}\n")
        await store.write(TaskTransaction.finish, Ref(batch.name, "1"), end, attempt=None)
        say("result", batch.name, claim)
        if i % 2:
            await store.write(operations.published, Ref(batch.name, "1"))
            await store.write(operations.batch_published, batch.name)
            say("published", batch.name)


async def main(path: str, mark: str) -> None:
    """Open the store and write until the end."""
    store = Store(Path(path))
    outbox = str(Path(path).parent)
    big = Batch(name="big", claim="big", outbox=outbox, request="request.json", received_at=1.0)
    tasks = [Task(id=str(i), first_prompt="x", model="p/m") for i in range(TASKS)]
    await store.write(operations.add_batch, big, tasks)
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(work(store, Ref("big", task.id)))
        group.create_task(batches(store, outbox, mark))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
