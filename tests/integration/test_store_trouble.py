"""What may befall the store over the years:
kills in the middle of a change, full disks, damage, readers without end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import warm
from dropping import batch_done, submit
from patience import PATIENCE_S
from store_child import MODEL

from batchd import config, control
from batchd.daemon import Daemon
from batchd.daemon.listeners import Listener
from batchd.daemon.troubles import TroubleLog
from batchd.daemon.writes import DaemonStore
from batchd.errors import DamagedStoreError, StoreError
from batchd.events import (
    CallAnswered,
    Event,
    Suspended,
    TaskFinished,
    TaskStarted,
    Terms,
    ToolRan,
    encode,
)
from batchd.log import get_logger
from batchd.records import Answer, Batch, Purpose, Ref, Task, TaskStatus, ToolCall, Usage
from batchd.store import backups, database_file, lookups, operations
from batchd.store.migrations import MIGRATIONS
from batchd.store.queries import StoreReader
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction

pytestmark = pytest.mark.in_turns

ROOT = Path(__file__).parents[2]
DAY = 86400.0


def add(path: Path, tasks: int, size: int = 0, name: str = "b") -> None:
    """Open a store, add a batch to it, and close it."""
    store = Store(path)
    noise = random.Random(1).randbytes(size).hex()
    given = [Task(id=str(i), first_prompt=f"{i} {noise}", model="p/m") for i in range(tasks)]
    batch = Batch(
        name=name, claim=name, outbox=str(path.parent), request="request.json", received_at=1.0
    )
    asyncio.run(store.write(operations.add_batch, batch, given))
    store.close()


def published(path: Path, tasks: int, size: int) -> None:
    """Add a batch to a store that was published long ago."""
    add(path, tasks, size)
    end = TaskFinished(at=1.0, status=TaskStatus.COMPLETED, reason=None, result="{}")

    async def publish(store: Store) -> None:
        for ref in [Ref("b", name) for name in store.read(lookups.tasks, "b")]:
            await store.write(TaskTransaction.finish, ref, end, attempt=None)
            await store.write(operations.published, ref)
        await store.write(operations.batch_published, "b")

    with contextlib.closing(Store(path, clock=lambda: 1.0)) as store:
        asyncio.run(publish(store))


def killed(path: Path, name: str) -> None:
    """Put a store in a file's place whose batch stands in its log alone, as a kill leaves it."""
    folder = path.parent / f"{name}-was-here"
    add(folder / "batchd.db", 1, name=name)
    store = Store(folder / "batchd.db")
    batch = Batch(
        name=f"{name}-2", claim="x", outbox=str(folder), request="request.json", received_at=1.0
    )
    asyncio.run(
        store.write(
            operations.add_batch, batch, [Task(id="1", first_prompt="x" * 9000, model="p/m")]
        )
    )
    for part in ("", "-wal"):
        shutil.copy(folder / f"batchd.db{part}", path.with_name(f"batchd.db{part}"))
    store.close()
    assert path.with_name("batchd.db-wal").stat().st_size


def older(path: Path, tasks: int) -> None:
    """Make a store of the first version, with a few thousand tasks."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(
        f"PRAGMA application_id = {0x62746368}; BEGIN; {MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT;"
    )
    db.execute(
        "INSERT INTO batches (name, claim, outbox, request, received_at, budget_usd, first_task, tasks, unfinished)"
        " VALUES ('b', 'b', '/nowhere', 'request.json', 1.0, 0, 1, ?, ?)",
        (tasks, tasks),
    )
    db.execute("BEGIN")
    db.executemany(
        "INSERT INTO tasks (batch, name, model, dir, priority, after, since) VALUES (1, ?, 'p/m', '', 0, '', 1.0)",
        [(str(i),) for i in range(tasks)],
    )
    db.execute("COMMIT")
    db.execute("PRAGMA journal_mode = WAL")
    db.close()


# Migrations


async def _prune(store: Store, before: float) -> None:
    while await store.write(operations.prune, before):
        pass


_OPEN = """
import os, sys
from pathlib import Path
from batchd.store import operations
from batchd.store.store import Store
os.write(1, b"go")
Store(Path(sys.argv[1])).close()
os.write(1, b"ok")
"""


def test_a_migration_that_is_killed_is_done_again(tmp_path: Path) -> None:
    """At whatever instant: the file is of the one version or of the other,
    whole, and opens next time.
    """
    first = tmp_path / "first" / "batchd.db"
    first.parent.mkdir()
    older(first, 6_000)
    rng, versions = random.Random(), Counter[int]()
    for turn in range(10):
        folder = tmp_path / str(turn)
        shutil.copytree(first.parent, folder)
        path = folder / "batchd.db"
        with subprocess.Popen(
            [sys.executable, "-c", _OPEN, str(path)], stdout=subprocess.PIPE, cwd=ROOT
        ) as child:
            assert child.stdout is not None
            assert child.stdout.read(2) == b"go"
            time.sleep(rng.uniform(0.0, 0.03))
            child.kill()
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            versions[version] += 1
        Store(path).close()
        with StoreReader(path) as reader:
            assert reader.batch("b").tasks == len(reader.tasks("b")) == 6_000
        if version > 1 or (folder / "batchd.db.v1.bak").exists():
            with contextlib.closing(sqlite3.connect(folder / "batchd.db.v1.bak")) as db:
                assert db.execute("SELECT count(*) FROM tasks").fetchone() == (6_000,)
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
    assert versions.keys() <= {1, len(MIGRATIONS)}
    assert versions[1], "it was never killed in time"


def test_an_exchange_that_is_cut_short_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a restore is decided,
    an end at any of its steps leaves the former store aside and the new one whole.
    """
    rename = Path.replace
    for steps in range(5):
        path = tmp_path / str(steps) / "batchd.db"
        add(path, 3, name="new")
        draft = backups.draft(path, path)
        killed(path, "old")
        left = iter(range(steps))

        def dying(source: Path, target: Path, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rename(source, target)

        monkeypatch.setattr(Path, "replace", dying)
        with contextlib.suppress(KeyboardInterrupt):
            backups.put_in_place(draft, path)
        monkeypatch.undo()
        with contextlib.closing(Store(path)) as store:
            names = [batch.name for batch in store.read(lookups.restore).batches]
        assert names == (["new"] if steps else ["old", "old-2"])
        former = list(path.parent.glob("batchd.db.before-restore-*Z"))
        assert len(former) == (steps > 0)
        assert not database_file.staged(path).exists()
        for file in former:
            with contextlib.closing(sqlite3.connect(file)) as db:
                assert db.execute("SELECT name FROM batches").fetchall() == [("old",), ("old-2",)]


#: To mount a small disk takes root; a limit on the size of files is what everybody can have.
SMALL = ["limit", *(["disk"] if os.geteuid() == 0 else [])]


@contextlib.contextmanager
def no_room(folder: Path, way: str, size: int) -> Iterator[Callable[[], object]]:
    """Leave a folder, or each file, ``size`` bytes of room, until what this gives is called."""
    if way == "limit":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "batchd-test", str(folder)]
    inside = {p.name: p.read_bytes() for p in folder.iterdir()}
    subprocess.run(mount, check=True)
    try:
        for name, data in inside.items():
            (folder / name).write_bytes(data)
        more = ["mount", "-o", "remount,size=64m", str(folder)]
        yield lambda: subprocess.run(more, check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("way", SMALL)
def test_a_migration_without_room_changes_nothing(tmp_path: Path, way: str) -> None:
    """Without room for the backup the older file stays as it is,
    and the message says what is needed.
    """
    path = tmp_path / "batchd.db"
    older(path, 10_000)
    before = path.read_bytes()
    with no_room(
        tmp_path, way, len(before) // 2 if way == "limit" else len(before) * 3 // 2
    ) as more:
        for _ in range(2):
            with pytest.raises(
                StoreError, match=r"could not be backed up before: .*; make room for"
            ):
                Store(path)
            assert path.read_bytes() == before
            names = {p.name for p in tmp_path.iterdir()}
            assert names <= {"batchd.db", "batchd.db-wal", "batchd.db-shm"}
        more()
        Store(path).close()
        with StoreReader(path) as reader:
            assert reader.batch("b").tasks == 10_000


@pytest.mark.parametrize("way", SMALL)
def test_a_migration_that_runs_out_of_room_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """With room for the backup and not for the change,
    the file is of the older version, and as good as before.
    """
    path = tmp_path / "batchd.db"
    older(path, 10_000)
    size = path.stat().st_size
    grows = "UPDATE tasks SET message = hex(randomblob(100));"
    monkeypatch.setattr(database_file, "MIGRATIONS", (*database_file.MIGRATIONS, grows))
    with no_room(tmp_path, way, size * 5 // 4 if way == "limit" else size * 5 // 2) as more:
        with pytest.raises(StoreError, match="the disk"):
            Store(path)
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (1,)
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("SELECT count(*) FROM tasks WHERE message = ''").fetchone() == (
                10_000,
            )
        more()
        Store(path).close()
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (len(database_file.MIGRATIONS),)
            assert db.execute("SELECT count(*) FROM tasks WHERE message = ''").fetchone() == (0,)


# A full disk under a daemon


def requests(base_url: str) -> Counter[tuple[str, int]]:
    """Return how often the server was asked what, by prompt and number of answers in it."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/log") as answer:
        return Counter((e["prompt"], e["turn"]) for e in json.load(answer))


def under_way(base_url: str) -> int:
    """Return how many calls the server has not answered yet."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/totals") as answer:
        return int(json.load(answer)["open"])


@contextlib.contextmanager
def serving(spool: Any) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a daemon whose log another process writes; that process's file."""
    path = spool.folder / "said.log"
    with (
        path.open("wb") as log,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log) as cat,
        warm.Popen(spool.command("serve"), stderr=cat.stdin, env=spool.environment) as daemon,
    ):
        assert cat.stdin is not None
        cat.stdin.close()
        try:
            spool.eventually(spool.answers)
            yield daemon, path
        finally:
            daemon.terminate()


def test_a_daemon_whose_store_cannot_grow_waits(spool: Any, slow_server: str) -> None:
    """It makes no call that it cannot record, says so, answers,
    keeps what is dropped, and goes on with room again.
    """
    settings = spool.folder / "config.toml"
    text = settings.read_text().replace("steps-2", "steps-6")
    lines = [f'base_url = "{slow_server}"' if "base_url" in x else x for x in text.splitlines()]
    settings.write_text(
        "\n".join(lines).replace("processes = 2", "processes = 2\nagents_per_process = 4") + "\n"
    )
    outbox = spool.folder / "outbox"
    with serving(spool) as (daemon, said):
        spool.write("a.json", [{"first_prompt": f"a {i}"} for i in range(24)]).rename(
            spool.folder / "inbox" / "a.json"
        )
        spool.eventually(lambda: sum(requests(slow_server).values()) > 20)
        # A limit on the size of its files: what a full disk is to those who may not mount one.
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, hard))
        spool.eventually(lambda: "store_trouble" in said.read_text())
        spool.write("b.json", [{"first_prompt": "b"}]).rename(spool.folder / "inbox" / "b.json")
        spool.eventually(lambda: not under_way(slow_server))
        before = requests(slow_server)
        time.sleep(1.5)
        assert requests(slow_server) == before
        assert sum(before.values()) < 24 * 6
        status = spool.batchd("status", "a")
        assert status.returncode == 0, status.stderr
        assert "running" in status.stdout
        assert spool.batchd("status").returncode == 0
        assert not (outbox / "a/summary.json").exists()
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
        for name in ("a", "b"):
            spool.eventually((outbox / name / "summary.json").exists)
            assert {r["status"] for r in results(outbox / name)} == {"completed"}
        assert all(r["usage"]["unsettled_calls"] == 0 for r in results(outbox / "a"))
        asked = requests(slow_server)
    assert len(asked) == 25 * 6
    assert set(asked.values()) == {1}, "something was paid twice"


def test_a_daemon_does_not_start_without_room(spool: Any) -> None:
    """It must note that no worker has yesterday's tasks, and cannot:
    it says so, exits with 3, and spoils nothing.
    """
    path = spool.folder / ".batchd" / "batchd.db"
    add(path, 400, 300)

    async def begin(store: Store) -> None:
        for i in range(400):
            await store.write(operations.dispatch, Ref("b", str(i)))

    with contextlib.closing(Store(path)) as store:
        asyncio.run(begin(store))
    for limit in (4096, 40_000):
        run = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1)); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", run, *spool.command("serve")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=spool.environment,
        )
        assert done.returncode == 3
        assert f"{path}: the disk" in done.stderr
        assert "Traceback" not in done.stderr
    with contextlib.closing(Store(path)) as store:
        assert {task.status for task in store.read(lookups.tasks, "b").values()} == {
            TaskStatus.QUEUED
        }


def test_what_a_full_disk_takes_counts_as_no_time_at_work(spool: Any, slow_server: str) -> None:
    """Tasks that wait for room longer than they may work are done all the same:
    what was asked for is in time.
    """
    settings = spool.folder / "config.toml"
    lines = settings.read_text().replace("steps-2", "steps-5").splitlines()
    lines = [f'base_url = "{slow_server}"' if "base_url" in x else x for x in lines]
    settings.write_text("\n".join(lines))
    tasks = [{"first_prompt": f"{i}", "limits": {"timeout_s": 8}} for i in range(2)]
    with serving(spool) as (daemon, said):
        spool.write("a.json", tasks).rename(spool.folder / "inbox" / "a.json")
        spool.eventually(lambda: sum(requests(slow_server).values()) > 2)
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, hard))
        spool.eventually(lambda: "store_trouble" in said.read_text())
        time.sleep(9)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
        spool.eventually((spool.folder / "outbox/a/summary.json").exists)
    ended = results(spool.folder / "outbox/a")
    assert Counter((r["status"], r["reason"]) for r in ended) == {("completed", None): 2}
    assert all(r["timing"]["run_s"] < 8 for r in ended)
    assert any(r["timing"]["waited_s"] > 8 for r in ended)


def test_ends_that_wait_for_room_are_kept_whatever_becomes_of_their_workers(
    spool: Any, slow_server: str
) -> None:
    """A worker that dies meanwhile is noted after what it said:
    its task has ended, is published, and is not run again.
    """
    settings = spool.folder / "config.toml"
    text = settings.read_text().replace("steps-2", "steps-1")
    text = text.replace("processes = 2", "processes = 6\nagents_per_process = 1")
    lines = [f'base_url = "{slow_server}"' if "base_url" in x else x for x in text.splitlines()]
    settings.write_text("\n".join(lines) + "\n")
    tasks = [{"first_prompt": f"{i}"} for i in range(6)]
    with serving(spool) as (daemon, said):
        spool.write("a.json", tasks).rename(spool.folder / "inbox" / "a.json")
        spool.eventually(lambda: sum(requests(slow_server).values()) == 6)
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, hard))
        spool.eventually(lambda: not under_way(slow_server))
        spool.eventually(lambda: "store_trouble" in said.read_text())
        running = control.request(spool.folder / ".batchd", "status")["running"]
        assert running
        for task in running:  # at any moment between two tries to write what it has said
            time.sleep(0.23)
            os.kill(task["worker"], signal.SIGKILL)
        spool.eventually(lambda: said.read_text().count("worker_died") == len(running))
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (hard, hard))
        spool.eventually((spool.folder / "outbox/a/summary.json").exists)
    ended = results(spool.folder / "outbox/a")
    assert {(r["status"], r["attempts"]) for r in ended} == {("completed", 1)}
    assert set(requests(slow_server).values()) == {1}, "something was paid twice"


class _FullAtPark(Listener):
    """Lets the disk be full from the moment that a task gives its slot back."""

    def __init__(self) -> None:
        self.begun, self.parked = asyncio.Event(), asyncio.Event()
        self.room = resource.getrlimit(resource.RLIMIT_FSIZE)

    def task_event(self, ref: Ref, event: Event) -> None:
        """Note its beginning, and leave no room once its suspension is durable."""
        self.begun.set()
        if isinstance(event, Suspended):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, self.room[1]))
            self.parked.set()


def test_a_task_that_is_cancelled_while_its_parking_waits_for_room(
    spool: Any, slow_server: str
) -> None:
    """It ends as cancelled, once:
    what waited to be written of it before does not end the daemon.
    """
    path = spool.folder / "config.toml"
    lines = path.read_text().replace("steps-2", "steps-9").splitlines()
    path.write_text(
        "\n".join(f'base_url = "{slow_server}"' if "base_url" in x else x for x in lines) + "\n"
    )
    task = json.dumps({"tasks": [{"first_prompt": "work"}]}).encode()
    disk = _FullAtPark()

    async def order(verb: str, **arguments: str) -> dict[str, Any]:
        state = spool.folder / ".batchd"
        return await asyncio.to_thread(control.request, state, verb, **arguments)

    async def scenario() -> None:
        async with (
            asyncio.timeout(PATIENCE_S),
            Daemon(config.load(path, {}), listeners=[disk]) as daemon,
        ):
            batch = await submit(daemon, "b.json", task)
            await disk.begun.wait()
            await order("pause", scope="task", name="b/001")
            try:
                await disk.parked.wait()
                await asyncio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, disk.room)
            assert (await order("cancel", target="b/001"))["cancelled"] == 1
            await batch_done(daemon, batch.name)
            await asyncio.sleep(1.5)  # what was refused by the disk is tried again within a second
            assert (await order("status"))["batches"] == {"open": 0}
            assert not daemon.loop.broken.done()

    asyncio.run(scenario())
    assert [r["status"] for r in results(spool.folder / "outbox/b")] == ["cancelled"]


def test_a_daemon_that_cannot_prune_shows_signs_of_life(
    spool: Any, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too old stays where the disk has no room for a change of it:
    systemd's watchdog is fed all the same.
    """
    published(spool.folder / ".batchd" / "batchd.db", 100, 3000)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(short / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(short / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        # Room for the index of its log, and for little of the log.
        run = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, -1)); os.execv(sys.argv[1], sys.argv[1:])"
        with subprocess.Popen(
            [sys.executable, "-c", run, *spool.command("serve")],
            stderr=subprocess.PIPE,
            env=spool.environment,
        ) as daemon:
            assert daemon.stderr is not None
            try:
                while b"store_trouble" not in daemon.stderr.readline():
                    assert daemon.poll() is None
                pings = [systemd.recv(100) for _ in range(8)]
            finally:
                daemon.terminate()
                daemon.stderr.read()
    assert pings.count(b"WATCHDOG=1") > 4


def test_a_file_that_gives_no_room_back_is_pruned_all_the_same(tmp_path: Path) -> None:
    """One that somebody put together from a dump has not the setting of ours:
    pruning it comes to an end.
    """
    path = tmp_path / "batchd.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA application_id = {0x62746368}")
        database_file.apply_migrations(db, 0)
    published(path, 100, 3000)
    with contextlib.closing(Store(path)) as store:
        asyncio.run(asyncio.wait_for(_prune(store, time.time()), PATIENCE_S))
        assert not [found for found in store.read(lookups.prunable, time.time()) if found.stored]


def results(folder: Path) -> list[dict[str, Any]]:
    """Return the results of a batch."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


# Damage


def _head(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(64))


def _schema_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(3000))


def _middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _foreign_log(path: Path) -> None:
    path.with_name("batchd.db-wal").write_bytes(os.urandom(10_000))


def _gone(path: Path) -> None:
    path.with_name("batchd.db-wal").write_bytes(path.read_bytes())
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_head, "it is not a database, or its head is damaged; stop batchd, move it away"),
        (_schema_page, "it is damaged"),
        (_middle, "it is damaged"),
        (_cut, "it is damaged"),
        (lambda path: os.truncate(path, 0), "is empty: it was cut off, or never written; no tasks"),
        (lambda path: os.truncate(path, 60), "it is damaged"),
        (_foreign_log, "is not a log of SQLite"),
        (_gone, "is gone, but its log batchd.db-wal is here"),
        (_folder, "cannot be opened for writing: Is a directory"),
        (_newer, "was written by a newer batchd"),
    ],
    ids=["head", "schema", "middle", "cut", "empty", "short", "log", "gone", "folder", "newer"],
)
def test_serve_refuses_what_is_damaged(
    spool: Any, damage: Callable[[Path], None], complaint: str
) -> None:
    """With the fix and without a traceback, exit code 3;
    the files stay as they are for who wants to save them.
    """
    path = spool.folder / ".batchd" / "batchd.db"
    add(path, 300, 500)
    damage(path)
    before = {p.name: p.read_bytes() for p in path.parent.glob("batchd.db*") if p.is_file()}
    for _ in range(2):
        refused = spool.batchd("serve")
        assert refused.returncode == 3, refused.stderr
        assert complaint in refused.stderr
        assert "Traceback" not in refused.stderr
        after = {p.name: p.read_bytes() for p in path.parent.glob("batchd.db*") if p.is_file()}
        after.pop("batchd.db-shm", None)
        assert {k: v for k, v in after.items() if v or k in before} == before
    shown = spool.batchd("status")
    assert shown.returncode in {0, 3}
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "command", [("serve",), ("status",), ("backup",), ("restore",), ("pause", "--all")]
)
def test_an_empty_store_is_reported_as_one(spool: Any, command: tuple[str, ...]) -> None:
    """Whatever command meets it: what it is, where, and the ways to go on."""
    path = spool.folder / ".batchd" / "batchd.db"
    path.parent.mkdir()
    path.touch()
    refused = spool.batchd(*command)
    assert refused.returncode == 3
    assert f"{path} is empty: it was cut off" in refused.stderr
    assert (
        "`batchd restore BACKUP` (a .bak beside it); without one, `batchd restore --new`"
        in refused.stderr
    )
    assert not path.stat().st_size


def test_serve_refuses_a_store_that_it_may_not_write(spool: Any) -> None:
    """A file of another owner, or of mode 0400, is named together with the fix."""
    path = spool.folder / ".batchd" / "batchd.db"
    add(path, 1)
    path.chmod(0o400)
    command: list[str] = [sys.executable, "-c", _OPEN, str(path)]
    if os.geteuid() == 0:  # whom no mode stops
        for each in (path, path.parent):
            os.chown(each, 65534, 65534)
        for each in (spool.folder, *spool.folder.parents):
            if each.owner() == "root" and not each.stat().st_mode & 0o005:
                each.chmod(each.stat().st_mode | 0o055)
        keep = ["--reuid", "65534", "--regid", "65534", "--clear-groups"]
        command = ["setpriv", *keep, *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "cannot be opened for writing: Permission denied; check owner and mode" in done.stderr
    assert done.returncode


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount takes root")
def test_a_store_on_a_read_only_disk_can_be_read(spool: Any) -> None:
    """After a clean stop, too, when there is no log beside it and none can be made:
    on a disk that failed, or a snapshot.
    """
    path = spool.write("a.json", [{"first_prompt": "x"}])
    with spool.serving():
        assert spool.batchd("submit", path, "--wait").returncode == 0
    state = spool.folder / ".batchd"
    assert not (state / "batchd.db-wal").exists()
    subprocess.run(["mount", "--bind", str(state), str(state)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(state)], check=True)
        for command in (("status", "a"), ("logs", "a"), ("cost",), ("backup", "copy.db")):
            done = spool.batchd(*command)
            assert (done.returncode, done.stderr) == (0, ""), command
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_daemon_ends_when_its_store_turns_out_damaged(spool: Any, slow_server: str) -> None:
    """It neither goes on with half a memory nor tries for ever:
    it says what is wrong, and exits with 3.
    """
    settings = spool.folder / "config.toml"
    lines = [
        f'base_url = "{slow_server}"' if "base_url" in x else x
        for x in settings.read_text().splitlines()
    ]
    settings.write_text("\n".join(lines) + "\n")
    path = spool.folder / ".batchd" / "batchd.db"
    noise = random.Random(1)
    tasks = [{"first_prompt": f"{i} {noise.randbytes(1500).hex()}"} for i in range(2000)]
    with spool.serving() as daemon:
        spool.write("a.json", tasks).rename(spool.folder / "inbox" / "a.json")
        spool.eventually(lambda: len(requests(slow_server)) > 4)
        spool.eventually(lambda: path.stat().st_size > 4 << 20)
        with path.open("r+b") as file:
            for page in range(60, path.stat().st_size // 4096):
                file.seek(page * 4096)
                file.write(noise.randbytes(4096))
        daemon.wait(PATIENCE_S)
    assert daemon.returncode == 3
    last = (spool.folder / "daemon.log").read_text().splitlines()[-1]
    assert last.startswith(f"batchd: {path}: it is damaged; stop batchd, move it away")
    assert "Traceback" not in (spool.folder / "daemon.log").read_text()


def test_damage_is_not_waited_for(tmp_path: Path) -> None:
    """A write that meets a bad page is not tried again,
    as one on a full disk is: its error ends the daemon.
    """
    path = tmp_path / "batchd.db"
    add(path, 12_000, 300)  # more than SQLite keeps in memory

    async def scenario(store: Store) -> None:
        end = TaskFinished(at=1.0, status=TaskStatus.COMPLETED, reason=None, result="{}")
        async with asyncio.timeout(PATIENCE_S):
            await store.write(TaskTransaction.finish, Ref("b", "7"), end, attempt=None)

    with contextlib.closing(DaemonStore(path, TroubleLog(get_logger()))) as store:
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(os.urandom(path.stat().st_size - 8192))
        with pytest.raises(DamagedStoreError, match="it is damaged"):
            asyncio.run(scenario(store))


def test_a_row_that_makes_no_sense_is_damage(tmp_path: Path) -> None:
    """SQLite looks at its pages, not at what stands in them:
    a body that cannot be read is reported in the same words.
    """
    path = tmp_path / "batchd.db"
    add(path, 1, 2000)
    with contextlib.closing(sqlite3.connect(path)) as db:
        (body,) = db.execute("SELECT body FROM specs").fetchone()
        db.execute("UPDATE specs SET body = ?", (body[:100] + bytes(50) + body[150:],))
        db.commit()
    with StoreReader(path) as reader, pytest.raises(DamagedStoreError, match="it is damaged"):
        reader.read(lookups.find_task, Ref("b", "0"))


# Files that are taken away


def _delete(path: Path) -> None:
    path.unlink()


def _delete_all(path: Path) -> None:
    shutil.rmtree(path.parent)


def _delete_log(path: Path) -> None:
    path.with_name("batchd.db-wal").unlink()


def _exchange(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    other.replace(path)


def _move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def _move_all(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def _move_back(path: Path) -> None:
    moved = path.parent.with_name("elsewhere")
    if moved.exists():
        moved.rename(path.parent)
    else:
        path.with_name("elsewhere.db").rename(path)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@pytest.mark.parametrize(
    ("take", "complaint", "restore"),
    [
        (_delete, "was deleted while", None),
        (_delete_all, "was deleted while", None),
        (_delete_log, "-wal was deleted, moved or exchanged while", None),
        (_move, ".batchd/elsewhere.db now: move it back", _move_back),
        (_move_all, "/elsewhere/batchd.db now: move it back", _move_back),
    ],
    ids=["delete", "delete-all", "delete-log", "move", "move-all"],
)
def test_a_daemon_ends_when_its_store_is_taken_away(
    spool: Any,
    slow_server: str,
    take: Callable[[Path], None],
    complaint: str,
    restore: Callable[[Path], None] | None,
    *,
    busy: bool,
) -> None:
    """It says at once what became of it and how to go on,
    exits with 3, and nothing is lost or paid twice.
    """
    settings = spool.folder / "config.toml"
    text = settings.read_text().replace("steps-2", "steps-4")
    lines = [f'base_url = "{slow_server}"' if "base_url" in x else x for x in text.splitlines()]
    settings.write_text("\n".join(lines) + "\n")
    path, outbox = spool.folder / ".batchd" / "batchd.db", spool.folder / "outbox"
    with spool.serving() as daemon:
        for name, tasks in (("past", 1), ("a", 12)):
            given = spool.write(
                f"{name}.json", [{"first_prompt": f"{name} {i}"} for i in range(tasks)]
            )
            given.rename(spool.folder / "inbox" / given.name)
            spool.eventually((outbox / name / "request.json").exists)
            if name == "past" or not busy:
                spool.eventually((outbox / name / "summary.json").exists)
        if busy:
            spool.eventually(lambda: len(requests(slow_server)) > 8)
        # All of it at once, as it looks to the daemon:
        # else what it saves of the store may go with the rest.
        daemon.send_signal(signal.SIGSTOP)
        take(path)
        daemon.send_signal(signal.SIGCONT)
        begun = time.monotonic()
        daemon.wait(PATIENCE_S)
        assert time.monotonic() - begun < 60
    assert daemon.returncode == 3
    log = (spool.folder / "daemon.log").read_text()
    assert log.splitlines()[-1].startswith(f"batchd: {path}")
    assert complaint in log.splitlines()[-1]
    assert "Traceback" not in log
    if restore:
        restore(path)
    with spool.serving():
        spool.eventually((outbox / "a" / "summary.json").exists)
        with StoreReader(path) as reader:
            assert {row.batch.name: row.completed for row in reader.batches()} == {
                "past": 1,
                "a": 12,
            }
    asked = requests(slow_server)
    assert len(asked) == 13 * 4
    # What was in flight at the end may have to be asked again: one call a task that ran.
    assert sum(asked.values()) - len(asked) <= (2 if busy else 0)


def test_a_store_is_not_put_back_over_another_one(spool: Any) -> None:
    """What somebody has put in its place stays there;
    what the daemon held is kept beside it, for `restore`.
    """
    path = spool.folder / ".batchd" / "batchd.db"
    with spool.serving() as daemon:
        spool.write("a.json", [{"first_prompt": "a"}]).rename(spool.folder / "inbox" / "a.json")
        spool.eventually((spool.folder / "outbox/a/summary.json").exists)
        _exchange(path)
        other = path.read_bytes()
        daemon.wait(PATIENCE_S)
    assert daemon.returncode == 3
    assert path.read_bytes() == other
    (saved,) = path.parent.glob("batchd.db.saved-*Z")
    last = (spool.folder / "daemon.log").read_text().splitlines()[-1]
    assert f"another file is in its place; `batchd restore {saved}` puts" in last
    assert not path.with_name("batchd.db-wal").exists(), "it would be read into the other one"
    assert spool.batchd("restore", saved, "--yes").returncode == 0
    with StoreReader(path) as reader:
        assert reader.batch("a").completed == 1


# Files that stay bounded


def raw(*events: Event) -> list[msgspec.Raw]:
    """Return events as the wire carries them."""
    return [msgspec.Raw(encode(event)) for event in events]


def ran(output: str) -> ToolRan:
    """Return an event of a size."""
    return ToolRan(at=1.0, call=ToolCall("1", "shell", "{}"), output=output)


def test_the_log_stays_small_under_steady_writing(tmp_path: Path) -> None:
    """With readers that come and go all the time, it begins again every few megabytes."""
    path = tmp_path / "batchd.db"
    add(path, 1)
    store = Store(path)
    noise, largest = random.Random(1), 0

    async def scenario() -> None:
        nonlocal largest
        await store.write(operations.dispatch, Ref("b", "0"))
        for seq in range(1500):
            await store.record(Ref("b", "0"), 1, seq, raw(ran(noise.randbytes(8000).hex())))
            if seq % 5 == 0:
                with StoreReader(path) as reader:
                    assert reader.task(Ref("b", "0")).step == "ToolRan"
            largest = max(largest, path.with_name("batchd.db-wal").stat().st_size)

    asyncio.run(scenario())
    assert path.stat().st_size > 12 << 20
    assert 2 << 20 < largest < 7 << 20
    store.close()


def test_the_log_is_emptied_once_a_reader_without_end_has_gone(tmp_path: Path) -> None:
    """As long as it is there, the log cannot begin again."""
    path = tmp_path / "batchd.db"
    add(path, 1)
    store = Store(path)
    noise = random.Random(1)
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM tasks").fetchone()

    async def scenario() -> None:
        await store.write(operations.dispatch, Ref("b", "0"))
        for seq in range(500):
            await store.record(Ref("b", "0"), 1, seq, raw(ran(noise.randbytes(8000).hex())))
        assert path.with_name("batchd.db-wal").stat().st_size > 4 << 20
        reader.close()
        async with asyncio.timeout(PATIENCE_S):
            while path.with_name("batchd.db-wal").stat().st_size:  # noqa: ASYNC110 (the idle thread sets no event)
                await asyncio.sleep(0.05)

    asyncio.run(scenario())
    store.close()


def test_years_leave_little_behind(tmp_path: Path) -> None:
    """Day after day of batches, pruned after ten:
    the file stops growing but for some hundred bytes a task.
    """
    path, now, sizes = tmp_path / "batchd.db", [0.0], []
    store = Store(path, clock=lambda: now[0])
    noise = random.Random(1)
    usage = Usage(calls=1, input_tokens=1000, output_tokens=50)

    async def task(ref: Ref) -> None:
        given = await store.write(operations.dispatch, ref)
        events: list[Event] = [TaskStarted(at=now[0], terms=Terms(model=MODEL, judge=MODEL))]
        for _ in range(3):
            answer = Answer(content=noise.randbytes(700).hex(), usage=usage)
            events.append(CallAnswered(at=now[0], purpose=Purpose.AGENT, answer=answer))
            events.append(ran(noise.randbytes(700).hex()))
        await store.record(ref, given.attempt, 0, raw(*events))
        end = TaskFinished(at=now[0], status=TaskStatus.COMPLETED, reason=None, result="r" * 2000)
        await store.write(TaskTransaction.finish, ref, end, attempt=given.attempt)
        await store.write(operations.published, ref)

    async def day(number: int) -> None:
        now[0] = number * DAY
        outbox = str(tmp_path / "outbox")
        name = f"x-{number}"
        batch = Batch(name=name, claim=name, outbox=outbox, request="r", received_at=now[0])
        tasks = [Task(id=str(i), first_prompt="Do it. " * 80, model="p/m") for i in range(20)]
        batch = await store.write(operations.add_batch, batch, tasks)
        await asyncio.gather(*(task(Ref(batch.name, t.id)) for t in tasks))
        await store.write(operations.batch_published, batch.name)
        await _prune(store, now[0] - 10 * DAY)
        (pages,) = await store.writer.submit(lambda j: j.db.execute("PRAGMA page_count").fetchone())
        sizes.append(pages * 4096)

    async def scenario() -> None:
        for number in range(120):
            await day(number)

    asyncio.run(scenario())
    assert store.read(lookups.day_money, 0).settled > 0, "money is kept for ever"
    a_task = (sizes[119] - sizes[29]) / (90 * 20)
    assert a_task < 400, f"each task leaves {a_task:.0f} bytes for ever"
    assert sizes[119] < 1.6 * sizes[29]
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(DISTINCT task) FROM events").fetchone()[0] <= 11 * 20
