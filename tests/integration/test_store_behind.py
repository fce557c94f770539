"""A store that lacks what it has acknowledged, and a state directory that is not at home:
noticed, reported, never worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchd import results
from batchd.cli import orders
from batchd.errors import BatchdError, DamagedStoreError
from batchd.events import TaskFinished
from batchd.records import Batch, Ref, Task, TaskStatus
from batchd.spool import claims, home, outbox, ulid
from batchd.store import backups, lookups, operations, witness
from batchd.store.queries import StoreReader
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction
from batchd.taskstate import TaskState

pytestmark = pytest.mark.in_turns

#: A copy of files has none of the sockets of a daemon that runs.
_SOCKETS = shutil.ignore_patterns("pool", "*.sock")

_ACKNOWLEDGE = """
import asyncio, os, signal, sys
from pathlib import Path
from batchd.records import Batch, Task
from batchd.store import operations
from batchd.store.store import Store
path = Path(sys.argv[1])
store = Store(path)
async def work():
    for n in range(int(sys.argv[2])):
        task = Task(id="1", first_prompt="x" * 5000, model="p/m")
        batch = Batch(name=f"b{n}", claim=f"c{n}", outbox=str(path.parent), request="r", received_at=1.0)
        await store.write(operations.add_batch, batch, [task])
asyncio.run(work())
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(path: Path, batches: int = 8) -> bytes:
    """Leave a store behind whose daemon was killed; return its log, which holds every batch."""
    command = [sys.executable, "-c", _ACKNOWLEDGE, str(path), str(batches)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    return witness.log_of(path).read_bytes()


def names(path: Path) -> set[str]:
    """Return the batches that a store knows."""
    with StoreReader(path) as reader:
        return {row.batch.name for row in reader.batches()}


def test_a_flipped_bit_in_the_log_is_refused_wherever_it_is(tmp_path: Path) -> None:
    """What was acknowledged behind it would be gone:
    the start refuses, changes nothing, and names the command.
    """
    path = tmp_path / "batchd.db"
    data = killed(path)
    rng = random.Random(10)
    frame = 4096 + 24
    frames = len(data) // frame
    last = witness.LOG_HEADER_BYTES + (frames - 1) * frame
    for at in [
        *(rng.randrange(len(data)) for _ in range(12)),
        17,
        witness.LOG_HEADER_BYTES + 9,
        last + 2000,
    ]:
        spoiled = bytearray(data)
        spoiled[at] ^= 1 << rng.randrange(8)
        witness.log_of(path).write_bytes(spoiled)
        with pytest.raises(DamagedStoreError, match="`batchd restore`"):
            Store(path)
        assert witness.log_of(path).read_bytes() == spoiled
        assert any("batchd restore" in refusal for refusal in orders.refusals(tmp_path))
    witness.log_of(path).write_bytes(data)
    Store(path).close()
    assert len(names(path)) == 8


def test_a_log_that_a_crash_cut_off_is_none_that_is_damaged(tmp_path: Path) -> None:
    """What was never acknowledged may be torn at any byte:
    such a store opens, with all that was acknowledged.
    """
    path = tmp_path / "batchd.db"
    data = killed(path)
    frame = 4096 + 24
    torn = bytearray(data[-3 * frame :])
    torn[2000] ^= 1  # a commit of three pages, of which the disk got the later ones alone
    for rest in (torn[:1], torn[:5000], torn):
        witness.log_of(path).write_bytes(data + rest)
        assert not list(orders.refusals(tmp_path))
    Store(path).close()
    assert len(names(path)) == 8


@pytest.mark.parametrize("loss", ["log", "older", "cut"])
def test_a_store_that_lacks_something_is_refused(tmp_path: Path, loss: str) -> None:
    """Its log deleted or cut after a kill, or an older file in its place after a clean stop:
    the start says what is missing.
    """
    path = tmp_path / "batchd.db"
    if loss == "older":
        Store(path).close()
        older = path.read_bytes()
        killed(path)
        Store(path).close()
        path.write_bytes(older)
    else:
        data = killed(path)
        witness.log_of(path).write_bytes(data[: len(data) // 2] if loss == "cut" else b"")
    with pytest.raises(DamagedStoreError, match=r"is behind what .* of 8 batches and 0 events"):
        Store(path)
    # The way that the message names: it goes on with what is there.
    backups.put_in_place(backups.draft(path, path), path)
    Store(path).close()
    assert len(names(path)) < 8


def test_another_program_may_empty_the_log(tmp_path: Path) -> None:
    """Who looks into the database with sqlite3 after a kill moves the log into it:
    nothing is missing then.
    """
    path = tmp_path / "batchd.db"
    killed(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM batches").fetchone() == (8,)
    assert not witness.log_of(path).exists()
    Store(path).close()
    assert len(names(path)) == 8


def test_a_store_that_is_gone_is_not_begun_again_in_silence(spool: Any) -> None:
    """Deleted after a clean stop: nothing starts, `status` and `check` say so,
    and the command that goes on does.
    """
    path, state = spool.folder / ".batchd/batchd.db", spool.folder / ".batchd"
    with spool.serving():
        task = spool.write("a.json", [{"id": "one", "first_prompt": "x"}])
        assert spool.batchd("submit", task, "--wait").returncode == 0
    published = (spool.folder / "outbox/a/one.json").read_bytes()
    path.unlink()
    refused = spool.batchd("serve")
    assert refused.returncode == 3
    assert "batchd.db is gone, which held 1 batches" in refused.stderr
    assert "`batchd restore --new --yes`" in spool.batchd("status").stderr
    checked = spool.batchd("check", "--offline", "--json")
    failed = [line for line in json.loads(checked.stdout) if line["verdict"] == "failed"]
    assert "batchd restore --new --yes" in json.dumps(failed)
    assert not path.exists()
    done = spool.batchd("restore", "--new", "--yes")
    assert done.returncode == 0, done.stderr
    with spool.serving():
        assert spool.batchd("submit", task, "--wait").returncode == 0
    assert (spool.folder / "outbox/a/one.json").read_bytes() == published
    assert (spool.folder / "outbox/a-2/one.json").exists()
    assert not list(orders.refusals(state))


def test_a_folder_whose_claim_waits_is_its_batchs(spool: Any) -> None:
    """The store could not take a file up, as on a full disk, and the daemon was restarted:
    its claim lies there, and its name waits for it.
    """
    with spool.serving():
        pass
    claim = ulid.Ulids(claims.mark(spool.folder / ".batchd"))()
    folder = spool.folder / "outbox/a"
    folder.mkdir(parents=True)
    (folder / f".claim-{claim}").touch()
    (spool.folder / f".batchd/claimed/{claim}-a.json").write_text("no task")
    with spool.serving():
        spool.eventually((folder / "summary.json").exists)
    assert not list(folder.glob(".claim-*"))


# Where a state directory lives


@pytest.fixture
def lived(tmp_path: Path) -> Path:
    """A state directory that has had a daemon."""
    state = tmp_path / "state"
    state.mkdir()
    home.enter_home(state)
    return state


def test_a_renamed_state_directory_is_the_same_one(lived: Path) -> None:
    """By whatever name it is found, and under a link: it has no second one."""
    renamed = lived.rename(lived.with_name("renamed"))
    home.enter_home(renamed)
    lived.symlink_to(renamed)
    home.enter_home(lived)
    assert not home.away_from_home(renamed)
    copy = Path(shutil.copytree(renamed, lived.with_name("copy"), ignore=_SOCKETS))
    assert str(renamed) in home.away_from_home(copy), "its home is where it was last"


def test_a_directory_of_an_older_version_is_adopted(lived: Path) -> None:
    """It does not know where it lives, and learns it without a word."""
    for old in (None, b"", b"\0" * 20):
        (lived / "home").unlink()
        if old is not None:
            (lived / "home").write_bytes(old)
        home.enter_home(lived)
        assert (lived / "home").stat().st_size > 20


def test_a_copied_state_directory_is_refused(spool: Any) -> None:
    """On one inbox two of them would pay for files twice:
    a daemon refuses the copy, with the ways to go on.
    """
    with spool.serving():
        task = spool.write("a.json", [{"first_prompt": "x"}])
        assert spool.batchd("submit", task, "--wait").returncode == 0
    state, other = spool.folder / ".batchd", spool.folder / "other"
    shutil.copytree(state, other, ignore=_SOCKETS)
    config = spool.folder / "config.toml"
    config.write_text('[paths]\nstate = "other"\n' + config.read_text())
    for command in (("serve",), ("restore", "--yes")):
        refused = spool.batchd(*command)
        assert refused.returncode == 3
        assert f"is a copy of {state}, which is still there" in refused.stderr
    assert "is a copy of" in spool.batchd("status").stderr
    shutil.rmtree(state)
    refused = spool.batchd("serve")
    assert refused.returncode == 3
    assert f"remove {other / 'home'}, and it goes on where it was" in refused.stderr
    (other / "home").unlink()
    for command in (("status",), ("restore", "--yes")):
        done = spool.batchd(*command)
        assert done.returncode == 0, done.stderr
        assert "would not start" not in done.stderr
    with StoreReader(other / "batchd.db") as reader:
        assert reader.batch("a").completed == 1


# Damage that is met later


async def _two_batches(path: Path) -> None:
    """Store two batches, one of which has ended."""
    with contextlib.closing(Store(path)) as store:
        for name in ("a", "b"):
            tasks = [Task(id=str(n), first_prompt=f"{n}" * 700, model="p/m") for n in range(4)]
            batch = Batch(
                name=name, claim=name, outbox=str(path.parent), request="r", received_at=1.0
            )
            await store.write(operations.add_batch, batch, tasks)
        for n in range(4):
            end = TaskFinished(at=1.0, status=TaskStatus.COMPLETED, reason=None, result="{}" * 300)
            await store.write(TaskTransaction.finish, Ref("a", str(n)), end, attempt=None)


async def _use(path: Path) -> None:
    """Read all that there is to read, and write a little."""
    with StoreReader(path) as reader:
        for batch in reader.batches():
            reader.tasks(batch.batch.name)
            list(reader.results(batch.batch.name))
        for n in range(4):
            reader.read(lookups.find_task, Ref("b", str(n)))
            reader.read(lookups.events, Ref("a", str(n)))
        reader.parked()
    with contextlib.closing(Store(path)) as store:
        store.read(lookups.restore)
        for n in range(4):
            await store.write(operations.dispatch, Ref("b", str(n)))
            store.read(lookups.find_task, Ref("b", str(n)))


def test_a_damaged_byte_anywhere_is_reported_in_words(tmp_path: Path) -> None:
    """In whatever page: it is refused, or does not matter,
    and no other error comes out of the store than its own.
    """
    path, rng = tmp_path / "batchd.db", random.Random()
    asyncio.run(_two_batches(path))
    sound, refused = path.read_bytes(), 0
    for page in range(0, len(sound), 4096):
        for _ in range(6):
            spoiled = bytearray(sound)
            at = rng.randrange(page, page + 4096) if page else rng.randrange(4096)
            spoiled[at] ^= 1 << rng.randrange(8)
            for part in path.parent.glob("batchd.db*"):
                part.unlink()
            path.write_bytes(spoiled)
            try:
                asyncio.run(_use(path))
            except BatchdError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"byte {at}: {error!r}") from error
    assert refused


# What is published stays


def test_a_published_result_is_never_replaced_by_another(tmp_path: Path) -> None:
    """The first whole one stays, transcript and all; what is torn, or the same, is written."""
    folder = tmp_path / "outbox/b"
    result = '{"schema": "batchd/result/1", "batch": "b", "task": "one", "answer": "%s"}\n'
    assert outbox.publish_task(folder, "one", "first\n", result % 1)
    assert not outbox.publish_task(folder, "one", "second\n", result % 2)
    assert (folder / "one.json").read_text() == result % 1
    assert (folder / "one.jsonl").read_text() == "first\n"
    (folder / "one.jsonl").unlink()
    assert outbox.publish_task(folder, "one", "first\n", result % 1)
    assert (folder / "one.jsonl").read_text() == "first\n"
    for torn in ("", (result % 1)[:20], "[]", '{"schema": "mine"}'):
        (folder / "one.json").write_text(torn)
        assert outbox.publish_task(folder, "one", "second\n", result % 2)
        assert (folder / "one.json").read_text() == result % 2


def test_tasks_that_run_again_leave_published_results_alone(spool: Any) -> None:
    """An old state directory is put back as a whole:
    what is published is not paid again unasked, and stays to the byte.
    """
    state, kept = spool.folder / ".batchd", spool.folder / "kept"
    folder = spool.folder / "outbox/a"
    task = spool.write("a.json", [{"id": "one", "first_prompt": "x"}])
    with spool.serving():
        assert spool.batchd("pause", "--all").returncode == 0
        task.rename(spool.folder / "inbox/a.json")
        spool.eventually((folder / "request.json").exists)
    shutil.copytree(state, kept, ignore=_SOCKETS)
    with spool.serving():
        assert spool.batchd("resume", "--all").returncode == 0
        spool.eventually((folder / "summary.json").exists)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for old in kept.iterdir():  # the same directory, with what it held then
        if old.is_file():
            shutil.copy(old, state / old.name)
    (state / "batchd.db-acked").unlink()
    with spool.serving():
        assert spool.batchd("resume", "--all").returncode == 0
        shown = " ".join(spool.batchd("status", "a").stdout.split())
        assert "results of 1 of its tasks lie in the outbox" in shown
        assert "`batchd restore` compare" in shown
        assert spool.batchd("resume", "a").returncode == 0
        spool.eventually(
            lambda: (
                "is there already with other content" in (spool.folder / "daemon.log").read_text()
            )
        )
        spool.eventually(lambda: _published(state / "batchd.db", "a"))
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("name", ["batchd.db-acked", "home"])
@pytest.mark.parametrize("put", [Path.mkdir, Path.touch, lambda path: path.write_text("x")])
def test_what_stands_in_the_place_of_a_note_is_reported(
    spool: Any, name: str, put: Callable[[Path], object]
) -> None:
    """A folder, or another file, refuses the start with the path and the fix;
    an empty one, as after a power cut, says nothing.
    """
    with spool.serving():
        pass
    note = spool.folder / ".batchd" / name
    note.unlink()
    put(note)
    if note.is_file() and not note.read_bytes():
        with spool.serving():
            assert "Traceback" not in (spool.folder / "daemon.log").read_text()
        return
    refused = spool.batchd("serve")
    assert refused.returncode == 3
    said = " ".join(refused.stderr.split())
    assert f"{note} notes w" in said
    assert "remove" in said
    assert "Traceback" not in said


def _published(path: Path, name: str) -> bool:
    with StoreReader(path) as reader:
        return reader.batch(name).published_at is not None


def test_a_report_of_edited_results_leaves_out_what_is_none(spool: Any) -> None:
    """Of a pruned batch: a line that somebody spoilt takes no other with it, and breaks nothing."""
    tasks = [{"id": f"t{n}", "first_prompt": "x"} for n in range(3)]
    with spool.serving():
        task = spool.write("a.json", tasks)
        assert spool.batchd("submit", task, "--wait").returncode == 0
        assert spool.batchd("prune", "--older-than", "0", "--yes").returncode == 0
    lines = (spool.folder / "outbox/a/results.jsonl").read_text().splitlines()
    spoilt = '{"task": "t0", "status": "great"}'
    for edited in ([spoilt, *lines[1:]], [spoilt, "{", *lines[1:], "\udcff"]):
        text = "\n".join(edited).encode("utf-8", "surrogateescape")
        (spool.folder / "outbox/a/results.jsonl").write_bytes(text)
        made = spool.batchd("report", "a", "-o", spool.folder / "out.html")
        assert made.returncode == 0, made.stderr
        page = (spool.folder / "out.html").read_text()
        assert "its results are from results.jsonl" in page


# A batch's end


async def _ended(path: Path, folder: Path, tasks: int, size: int) -> None:
    """Leave a batch behind whose tasks are published, and whose last files are not."""
    end = results_of(folder, tasks, size)
    with contextlib.closing(Store(path)) as store:
        batch = Batch(name="big", claim="big", outbox=str(folder), request="r", received_at=1.0)
        given = [Task(id=str(n), first_prompt="x", model="standin/m") for n in range(tasks)]
        await store.write(operations.add_batch, batch, given)
        for n in range(tasks):
            await store.write(TaskTransaction.finish, Ref("big", str(n)), end(n), attempt=None)
            await store.write(operations.published, Ref("big", str(n)))


def results_of(folder: Path, tasks: int, size: int) -> Callable[[int], TaskFinished]:
    """Return what makes the ends of tasks with answers of so many bytes, none like another."""
    batch = Batch(name="big", claim="big", outbox=str(folder), request="r", received_at=1.0)
    rng = random.Random(tasks)

    def end(n: int) -> TaskFinished:
        text = results.result(
            batch,
            Task(id=str(n), first_prompt="x", model="standin/m"),
            TaskState(first_prompt="x", answer=rng.randbytes(size // 2).hex()),
            status=TaskStatus.COMPLETED,
            reason=None,
            error=None,
            queued_at=1.0,
            finished_at=2.0,
            attempts=1,
            files=None,
        )
        return TaskFinished(at=2.0, status=TaskStatus.COMPLETED, reason=None, result=text)

    return end


def _peak(pid: int) -> int:
    """Return the most memory that a process has had resident, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_batchs_end_does_not_take_its_results_into_memory(spool: Any) -> None:
    """60 MB of answers: the daemon that ends the batch needs no more
    than one that has nothing to end, but for a few MB.
    """
    tasks, size = 300, 200_000
    folder = spool.folder / "outbox"
    asyncio.run(_ended(spool.folder / ".batchd/batchd.db", folder, tasks, size))
    peaks = []
    for _ in range(2):
        with spool.serving() as daemon:
            spool.eventually((folder / "big/summary.json").exists)
            spool.eventually(lambda: _published(spool.folder / ".batchd/batchd.db", "big"))
            peaks.append(_peak(daemon.pid))
    written = (folder / "big/results.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in written] == [str(n) for n in range(tasks)]
    assert json.loads((folder / "big/summary.json").read_text())["counts"]["completed"] == tasks
    assert peaks[0] - peaks[1] < tasks * size / 3
