from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from patience import PATIENCE_S

from batchd.errors import NewerStoreError, StaleAttemptError, StoreError
from batchd.events import CallAnswered, TaskFinished, ToolRan, encode
from batchd.records import Batch, Ref, Task, TaskStatus, ToolCall
from batchd.store import database_file, lookups, operations
from batchd.store.queries import StoreReader
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction
from batchd.taskstate import fold

pytestmark = pytest.mark.in_turns

CHILD = Path(__file__).with_name("store_child.py")


def _batch(path: Path, claim: str = "C1") -> Batch:
    name = "b" if claim == "C1" else f"b-{claim}"
    outbox = str(path.parent)
    return Batch(name=name, claim=claim, outbox=outbox, request="request.json", received_at=1.0)


def _tasks(count: int, size: int = 0) -> list[Task]:
    prompt = "".join(chr(33 + i * i % 89) for i in range(size))
    return [Task(id=str(i), first_prompt=f"{i} {prompt}", model="p/m") for i in range(count)]


def _raw(output: str) -> list[msgspec.Raw]:
    event = ToolRan(at=1.0, call=ToolCall("1", "shell", "{}"), output=output)
    return [msgspec.Raw(encode(event))]


@dataclass
class Acknowledged:
    """What a child said is durable, over all of its lives."""

    events: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    attempts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    batches: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)

    def read(self, lines: Iterable[str]) -> None:
        """Take note of what a child wrote; its last line may be cut off."""
        for line in lines:
            match line.split():
                case ["events", task, count]:
                    self.events[task] = max(self.events[task], int(count))
                case ["attempt", task, number]:
                    assert int(number) > self.attempts[task], "an attempt number came twice"
                    self.attempts[task] = int(number)
                case ["batch", name, claim]:
                    assert name not in self.batches, "a name came twice"
                    self.batches[name] = claim
                case ["result", name, claim]:
                    self.results[name] = claim
                case ["published", name]:
                    self.published.add(name)


def _live_and_die(path: Path, mark: int, rng: random.Random) -> list[str]:
    with subprocess.Popen(
        [sys.executable, str(CHILD), str(path), str(mark)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        lines = [child.stdout.readline()]
        killer = threading.Timer(rng.uniform(0.0, 0.35), child.kill)
        killer.start()
        lines += child.stdout.read().splitlines(keepends=True)
        killer.join()
    assert child.returncode == -9
    return [line for line in lines if line.endswith("\n")]


def _check(path: Path, known: Acknowledged) -> None:
    with StoreReader(path) as reader:
        for row in reader.tasks("big"):
            events = reader.read(lookups.events, row.ref)
            assert len(events) >= known.events[row.ref.task]
            assert row.attempts >= known.attempts[row.ref.task]
            for seq, event in enumerate(events):
                text = f"{row.ref} {seq} "
                if isinstance(event, CallAnswered):
                    assert event.answer.content == text * (1 + seq * 7 % 150)
                elif isinstance(event, ToolRan):
                    assert event.output == text * (1 + seq * 7 % 150)
            state = fold("x", events)
            assert (row.tally.calls, row.tally.unsettled_calls) == (
                state.tally.calls,
                state.unsettled_calls,
            )
            assert row.tally.cost_usd == pytest.approx(state.tally.cost_usd)
        for name, claim in known.batches.items():
            assert reader.read(lookups.find_task, Ref(name, "1")).first_prompt == claim
        for name, claim in known.results.items():
            assert list(reader.results(name)) == [("1", f"{claim}\n")]
        assert known.published <= {b.batch.name for b in reader.batches() if b.published_at}
        calls = sum(row.tally.calls for row in reader.tasks("big"))
        assert [r.tally.calls for r in reader.spend((), batch="big")] == [calls] * bool(calls)


def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    """Killed at any moment, again and again,
    a writer leaves everything it acknowledged, and all of it whole.
    """
    path = tmp_path / "batchd.db"
    rng = random.Random()
    known = Acknowledged()
    for mark in range(6):
        known.read(_live_and_die(path, mark, rng))
        _check(path, known)
        # The next opening, too, must find it whole.
        Store(path).close()
        _check(path, known)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    assert sum(known.events.values()) > 100
    assert known.published


def test_what_waits_is_committed_together(tmp_path: Path) -> None:
    """Hundreds of calls at once share a few syncs, and each gets its own answer."""
    store = Store(tmp_path / "batchd.db")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path / "x"), _tasks(400))
        refs = [Ref("b", str(i)) for i in range(400)]
        given = await asyncio.gather(*(store.write(operations.dispatch, r) for r in refs))
        assert [d.attempt for d in given] == [1] * 400
        before = store.writer.commits
        # One of them is stale, which does not concern the others.
        outcomes = await asyncio.gather(
            *(store.record(r, 1 + (r.task == "7"), 0, _raw(r.task)) for r in refs),
            return_exceptions=True,
        )
        assert store.writer.commits - before < 10
        assert [r for r, o in zip(refs, outcomes, strict=True) if isinstance(o, Exception)] == [
            Ref("b", "7")
        ]
        assert isinstance(outcomes[7], StaleAttemptError)

    asyncio.run(scenario())
    assert len(store.read(lookups.events, Ref("b", "399"))) == 1
    assert store.read(lookups.events, Ref("b", "7")) == []
    store.close()


def test_a_call_that_cannot_be_written_takes_no_other_with_it(tmp_path: Path) -> None:
    """A bad operation in a group fails alone; what stands beside it is durable."""
    store = Store(tmp_path / "batchd.db")
    twins = [*_tasks(1), *_tasks(1)]
    surrogate = Task(id="1", first_prompt="\ud800", model="p/m")

    async def scenario() -> tuple[object, ...]:
        await store.write(operations.add_batch, _batch(tmp_path / "x"), _tasks(2))
        await store.write(operations.dispatch, Ref("b", "0"))
        return await asyncio.gather(
            store.record(Ref("b", "0"), 1, 0, _raw("one")),
            store.write(operations.add_batch, _batch(tmp_path / "x", "C2"), twins),
            store.write(operations.add_batch, _batch(tmp_path / "x", "C3"), [surrogate]),
            store.record(Ref("b", "0"), 1, 1, _raw("two")),
            return_exceptions=True,
        )

    one, twice, bad, two = asyncio.run(scenario())
    assert isinstance(one, list)
    assert isinstance(two, list)
    assert isinstance(twice, StoreError)
    assert isinstance(bad, UnicodeEncodeError)
    assert len(store.read(lookups.events, Ref("b", "0"))) == 2
    assert store.read(lookups.claimed, "C2") is None
    assert store.read(lookups.claimed, "C3") is None
    store.close()


def test_who_stops_waiting_changes_nothing(tmp_path: Path) -> None:
    """A caller that is cancelled leaves the others their answers, and the store consistent."""
    store = Store(tmp_path / "batchd.db")

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(tmp_path / "x"), _tasks(2))
        await store.write(operations.dispatch, Ref("b", "0"))
        gone = asyncio.create_task(store.record(Ref("b", "0"), 1, 0, _raw("one")))
        await asyncio.sleep(0)
        gone.cancel()
        await store.record(Ref("b", "0"), 1, 1, _raw("two"))

    asyncio.run(scenario())
    assert len(store.read(lookups.events, Ref("b", "0"))) == 2
    store.close()

    async def too_late() -> None:
        await store.write(operations.dispatch, Ref("b", "0"))

    with pytest.raises(StoreError, match="closed"):
        asyncio.run(too_late())


async def _fill_up(store: Store, ref: Ref, limit: int = 10_000) -> int:
    """Record large events until the store refuses; return how many it took."""
    rng = random.Random(1)
    for seq in range(limit):
        try:
            await store.record(ref, 1, seq, _raw(rng.randbytes(6_000).hex()))
        except StoreError as error:
            assert "the disk is full" in str(error)  # how far it came is the point
            return seq
    raise AssertionError("the disk never got full")


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """Nothing is acknowledged that is not there;
    small things may still fit; with room again, all goes on.
    """
    path = tmp_path / "batchd.db"
    store = Store(path)

    async def scenario() -> int:
        await store.write(operations.add_batch, _batch(path), _tasks(3))
        await store.write(operations.dispatch, Ref("b", "0"))
        await store.write(operations.dispatch, Ref("b", "1"))
        await store.writer.submit(lambda j: j.db.execute("PRAGMA max_page_count = 100").fetchone())
        stored = await _fill_up(store, Ref("b", "0"))
        with pytest.raises(StoreError, match="the disk is full"):
            await store.write(operations.add_batch, _batch(path, "C2"), _tasks(1000, 1000))
        # Together with what is too large, what is small enough gets through.
        small, large = await asyncio.gather(
            store.record(Ref("b", "1"), 1, 0, _raw("x")),
            store.write(operations.add_batch, _batch(path, "C3"), _tasks(1000, 1000)),
            return_exceptions=True,
        )
        assert isinstance(small, list)
        assert isinstance(large, StoreError)
        assert len(store.read(lookups.events, Ref("b", "0"))) == stored
        await store.writer.submit(
            lambda j: j.db.execute("PRAGMA max_page_count = 1000000").fetchone()
        )
        await store.record(Ref("b", "0"), 1, stored, _raw("y" * 20_000))
        assert (
            await store.write(operations.add_batch, _batch(path, "C3"), _tasks(1000, 1000))
        ).name == "b-C3"
        return stored + 1

    stored = asyncio.run(scenario())
    store.close()
    with StoreReader(path) as reader:
        assert len(reader.read(lookups.events, Ref("b", "0"))) == stored
        assert reader.batch("b-C3").tasks == 1000


_ON_A_SMALL_DISK = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store_durability import _batch, _fill_up, _raw, _tasks
from batchd.records import Ref
from batchd.store import lookups, operations
from batchd.store.queries import StoreReader
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

disk = Path(sys.argv[2])
ballast = disk / "ballast"
ballast.write_bytes(bytes(1_000_000))
store = Store(disk / "batchd.db")

async def scenario():
    await store.write(operations.add_batch, _batch(disk / "x"), _tasks(1))
    await store.write(operations.dispatch, Ref("b", "0"))
    stored = await _fill_up(store, Ref("b", "0"))
    assert len(store.read(lookups.events, Ref("b", "0"))) == stored > 10
    ballast.unlink()
    await store.record(Ref("b", "0"), 1, stored, _raw("z"))
    return stored + 1

stored = asyncio.run(scenario())
store.close()
with StoreReader(disk / "batchd.db") as reader:
    assert len(reader.read(lookups.events, Ref("b", "0"))) == stored
print("held")
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The same on a file system of four megabytes, where the log itself cannot grow any more."""
    unshare = shutil.which("unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=4m tmpfs "{disk}"'
    inside = [unshare or "", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not unshare or subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    run = f'{mount} && exec "$@"'
    here = [sys.executable, "-c", _ON_A_SMALL_DISK, str(CHILD.parent), str(disk)]
    environ = {**os.environ, "PYTHONPATH": str(CHILD.parents[1])}
    done = subprocess.run(
        [*inside, run, "sh", *here], capture_output=True, text=True, check=False, env=environ
    )
    assert done.stdout.strip() == "held", done.stderr


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    """A file that a later version has written is not touched, by a store or a reader."""
    path = tmp_path / "batchd.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    for use in (lambda: Store(path), lambda: StoreReader(path)):
        with pytest.raises(NewerStoreError, match="newer batchd"):
            use()
    assert path.read_bytes() == before


def test_a_migration_starts_with_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file is copied whole, then migrated; a migration that fails leaves it as it was."""
    path = tmp_path / "batchd.db"
    store = Store(path)
    asyncio.run(store.write(operations.add_batch, _batch(path), _tasks(50)))
    # The backup must also hold what still stands in the log of a daemon that was killed.
    copy = tmp_path / "killed"
    copy.mkdir()
    for file in tmp_path.glob("batchd.db*"):
        shutil.copy(file, copy / file.name)
    store.close()
    path = copy / "batchd.db"
    assert (copy / "batchd.db-wal").stat().st_size

    known = len(database_file.MIGRATIONS)
    broken = "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1);"
    monkeypatch.setattr(database_file, "MIGRATIONS", (*database_file.MIGRATIONS, broken))
    with pytest.raises(StoreError, match="nowhere"):
        Store(path)
    with pytest.raises(StoreError, match="`batchd serve` migrates it"):
        StoreReader(path)
    good = "ALTER TABLE tasks ADD COLUMN extra TEXT; UPDATE tasks SET extra = name;"
    monkeypatch.setattr(database_file, "MIGRATIONS", (*database_file.MIGRATIONS[:-1], good))
    store = Store(path)
    assert len(store.read(lookups.tasks, "b")) == 50
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (known + 1,)
        assert db.execute("SELECT count(*) FROM tasks WHERE extra = name").fetchone() == (50,)
    db.close()
    backup = copy / f"batchd.db.v{known}.bak"
    assert backup.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(database_file, "MIGRATIONS", database_file.MIGRATIONS[:-1])
    restored = Store(backup)
    assert len(restored.read(lookups.tasks, "b")) == 50
    restored.close()
    assert not list(copy.glob(".*"))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [(0, "it is not a database, or its head is damaged"), (8192, "it is damaged")],
)
def test_a_damaged_file_says_how_to_fix_it(tmp_path: Path, damage: int, complaint: str) -> None:
    """Whether its head or its middle is overwritten, the error names the file and the way out."""
    path = tmp_path / "batchd.db"
    store = Store(path)
    asyncio.run(store.write(operations.add_batch, _batch(path), _tasks(500, 300)))
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(damage)
        file.write(os.urandom(size - damage))

    async def use(store: Store) -> None:
        await store.write(operations.add_batch, _batch(path, "C2"), _tasks(500))

    with pytest.raises(StoreError, match=rf"batchd\.db: {complaint}; stop batchd, move it away"):
        _use_and_close(path, use)


def _use_and_close(path: Path, use: object) -> None:
    store = Store(path)
    try:
        asyncio.run(use(store))  # type: ignore[operator] # a coroutine function
    finally:
        store.close()


@pytest.mark.parametrize("kind", ["foreign", "text", "directory", "unreadable", "nowhere"])
def test_what_is_no_store_is_refused(tmp_path: Path, kind: str) -> None:
    """Anything that cannot be used is refused with its path, and left as it is."""
    path = tmp_path / "batchd.db"
    if kind == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE notes (text)")
        db.close()
    elif kind == "text":
        path.write_text("This is not a database, but it is longer than its header. " * 20)
    elif kind == "directory":
        path.mkdir()
    elif kind == "unreadable":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "batchd.db"
    if kind != "nowhere":
        with pytest.raises(StoreError, match=r"batchd\.db"):
            Store(path)
    with pytest.raises(StoreError, match=r"batchd\.db"):
        StoreReader(path)


def test_the_log_is_emptied_when_nothing_is_written(tmp_path: Path) -> None:
    """The write-ahead log does not grow for ever,
    and a reader sees the same with and without it.
    """
    path = tmp_path / "batchd.db"
    store = Store(path)

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(path), _tasks(2000, 500))
        log = path.with_name("batchd.db-wal")
        assert log.stat().st_size
        async with asyncio.timeout(PATIENCE_S):
            while log.stat().st_size:  # noqa: ASYNC110 (the idle thread sets no event)
                await asyncio.sleep(0.05)

    asyncio.run(scenario())
    with StoreReader(path) as reader:
        assert len(reader.tasks("b")) == 2000
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()


def test_readers_and_the_writer_do_not_hinder_each_other(tmp_path: Path) -> None:
    """While a reader stands in the middle of its rows,
    the writer goes on, and ends are still seen whole.
    """
    path = tmp_path / "batchd.db"
    store = Store(path)

    async def scenario() -> None:
        await store.write(operations.add_batch, _batch(path), _tasks(200))
        for i in range(200):
            end = TaskFinished(at=1.0, status=TaskStatus.COMPLETED, reason=None, result=f"{i}\n")
            await store.write(TaskTransaction.finish, Ref("b", str(i)), end, attempt=None)
        with StoreReader(path) as reader:
            for place, (task, text) in enumerate(reader.results("b")):
                await store.write(operations.published, Ref("b", task))
                assert text == f"{place}\n"
        await store.write(operations.batch_published, "b")

    asyncio.run(scenario())
    store.close()
