"""Ends of many tasks in one transaction of the store:
the tables are those that each end alone would leave.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchd.errors import StaleAttemptError
from batchd.events import CallStarted, TaskFinished, TaskStarted, Terms, encode
from batchd.records import Batch, ModelSetup, Purpose, Reason, Ref, Secret, Task, TaskStatus
from batchd.store import lookups, operations
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

_NOON = 1795521600.0
_MODEL = ModelSetup(name="p/m")
#: What a task has been through before its end.
_LIVES = ("ended", "calling", "parked", "dispatched", "left", "secret", "fresh", "longer")


def batch(outbox: Path, name: str) -> Batch:
    """Return a batch."""
    return Batch(
        name=name, claim=name, outbox=str(outbox), request="request.json", received_at=_NOON
    )


def tasks() -> list[Task]:
    """Return a task for each life, and some that have none."""
    more = [f"fresh-{i}" for i in range(20)]
    secrets = {"TOKEN": Secret(value="geheim-12345")}
    return [
        Task(
            id=name,
            first_prompt=name * (400 if name == "longer" else 1),
            model="p/m",
            secrets=secrets if name == "secret" else {},
        )
        for name in (*_LIVES, *more)
    ]


def end(name: str) -> TaskFinished:
    """Return a task's end: its text is mostly that of all others."""
    error, common = '{"message": "no"}', '"nothing": 0, ' * 200
    own = name * (400 if name == "longer" else 1)
    text = f'{{"task": "{own}", {common}"error": {error}}}'
    if name == "fresh-3":
        status, reason = TaskStatus.TIMEOUT, Reason.WALL_CLOCK
    else:
        status, reason = TaskStatus.CANCELLED, Reason.USER
    return TaskFinished(at=_NOON + 9, status=status, reason=reason, result=text)


async def lived(store: Store, name: str, outbox: Path) -> None:
    """Store a batch whose tasks have come as far as they are named."""
    await store.write(operations.add_batch, batch(outbox, name), tasks())
    call = CallStarted(
        at=_NOON + 1, purpose=Purpose.AGENT, input_tokens=9, max_output_tokens=9, reserved_usd=0.5
    )
    started = TaskStarted(at=_NOON, terms=Terms(model=_MODEL, judge=_MODEL))
    for task, events in {"calling": (started, call), "parked": (started,)}.items():
        await store.write(operations.dispatch, Ref(name, task))
        await store.record(Ref(name, task), 1, 0, [msgspec.Raw(encode(e)) for e in events])
    await store.write(operations.suspend, Ref(name, "parked"), 1, TaskStatus.PARKED, "no quota")
    await store.write(operations.dispatch, Ref(name, "dispatched"), "worker 1")
    await store.write(operations.dispatch, Ref(name, "left"), "elsewhere/1")
    await store.write(
        operations.suspend, Ref(name, "left"), 1, TaskStatus.QUEUED, "left", left=True
    )
    assert await store.write(TaskTransaction.finish, Ref(name, "ended"), end("ended"), attempt=None)


def stored(path: Path, name: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that the store's file has of a batch, but for numbers of rows and its name."""
    with closing(sqlite3.connect(path)) as db:
        db.create_function("unpack", 1, lambda b: zlib.decompress(b) if b[:1] == b"x" else b)
        (key,) = db.execute("SELECT id FROM batches WHERE name = ?", (name,)).fetchone()
        db.execute(f"CREATE TEMP VIEW mine AS SELECT * FROM tasks WHERE batch = {key}")
        found = {}
        for what, query in {
            "tasks": "SELECT * FROM mine ORDER BY id",
            "events": "SELECT name, e.seq, unpack(e.body) FROM events e JOIN mine m ON m.id = e.task ORDER BY 1, 2",
            "secrets": "SELECT name FROM secrets s JOIN mine m ON m.id = s.task",
            "batch": "SELECT unfinished, completed, timeout, error, cancelled, finished_at FROM batches WHERE id = (SELECT batch FROM mine)",
            "spend": "SELECT * FROM spend WHERE batch = (SELECT batch FROM mine)",
            "unsettled": "SELECT unsettled_usd FROM spend WHERE batch = (SELECT batch FROM mine)",
        }.items():
            cursor = db.execute(query)
            names = [column for column, *_ in cursor.description]
            left_out = [i for i, column in enumerate(names) if column in {"id", "batch"}]
            found[what] = [
                tuple(value for i, value in enumerate(row) if i not in left_out) for row in cursor
            ]
        return found


def test_many_ends_leave_what_each_alone_would(tmp_path: Path) -> None:
    """Rows, events, sums and secrets, whatever the tasks have been through;
    one that has its end keeps it.
    """
    path = tmp_path / "state/batchd.db"
    names = [task.id for task in tasks()]

    async def scenario(store: Store) -> None:
        for name in ("alone", "together"):
            await lived(store, name, tmp_path)
        alone = [
            await store.write(TaskTransaction.finish, Ref("alone", n), end(n), attempt=None)
            for n in names
        ]
        together = await store.write(
            operations.finish_all, [(Ref("together", n), end(n)) for n in names]
        )
        assert together == alone == [name != "ended" for name in names]
        assert not any(
            await store.write(operations.finish_all, [(Ref("together", n), end(n)) for n in names])
        )
        for name in ("dispatched", "calling"):
            with pytest.raises(StaleAttemptError):
                await store.record(Ref("together", name), 1, 2, [msgspec.Raw(encode(end("late")))])
        read = store.read(lookups.ends, "together", names)
        assert read == [(Ref("together", name), end(name)) for name in names]

    store = Store(path, clock=lambda: _NOON)
    try:
        asyncio.run(scenario(store))
    finally:
        store.close()
    alone, together = stored(path, "alone"), stored(path, "together")
    assert together == alone
    assert len(alone["tasks"]) == len(names)
    assert alone["batch"] == [(0, 0, 1, 0, len(names) - 1, _NOON + 9)]
    assert alone["secrets"] == []
    assert alone["unsettled"] == [(0.5,)]


@pytest.mark.parametrize("first", ["dispatch", "end"])
def test_a_task_that_is_given_out_in_the_moment_of_its_end_has_that_end(
    tmp_path: Path, first: str
) -> None:
    """Both wait for one transaction: its worker's events are refused, in either order."""
    ref, names = Ref("b", "fresh"), [task.id for task in tasks()]

    async def scenario(store: Store) -> None:
        await store.write(operations.add_batch, batch(tmp_path, "b"), tasks())
        ends = store.write(operations.finish_all, [(Ref("b", n), end(n)) for n in names])
        orders: list[Any] = [store.write(operations.dispatch, ref), ends]
        outcomes = await asyncio.gather(
            *(orders if first == "dispatch" else reversed(orders)), return_exceptions=True
        )
        assert [True] * len(names) in outcomes
        started = TaskStarted(at=_NOON, terms=Terms(model=_MODEL, judge=_MODEL))
        with pytest.raises(StaleAttemptError):
            await store.record(ref, 1, 0, [msgspec.Raw(encode(started))])
        assert store.read(lookups.events, ref) == [end("fresh")]
        assert store.read(lookups.unfinished, "b") == 0

    store = Store(tmp_path / "state/batchd.db", clock=lambda: _NOON)
    try:
        asyncio.run(scenario(store))
    finally:
        store.close()
