"""`batchd backup` and `batchd restore`, on spools of real daemons that were killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from batchd import config
from batchd.control import Cancel, Cancelled
from batchd.daemon import Daemon, reconcile
from batchd.daemon.reconcile import ReconcilePlan
from batchd.events import TaskStarted
from batchd.records import Batch, Cause, Ref, Scope, Task, TaskLimits, TaskStatus
from batchd.spool import files
from batchd.spool.claims import Claimer, signature
from batchd.store import lookups, operations
from batchd.store.queries import StoreReader
from batchd.store.store import Store
from batchd.store.stored_values import pack, unpack

pytestmark = pytest.mark.in_turns

SLOW, LONG = "latency-0.7+steps-2", "latency-30+steps-2"
#: The first request has no answer, ever.
DEAF = "hang-1+steps-2"


def store_of(spool: Any) -> Path:
    """Return where a spool's store lies."""
    return Path(spool.folder, ".batchd", "batchd.db")


def drop(spool: Any, name: str, **models: str) -> None:
    """Drop a batch with one task a model, and wait until it is stored."""
    tasks = [
        {"id": task, "first_prompt": f"{name} {task}", "model": f"standin/{model}"}
        for task, model in models.items()
    ]
    spool.write(f"{name}.json", tasks).rename(spool.folder / "inbox" / f"{name}.json")
    spool.eventually((spool.folder / "outbox" / name / "request.json").exists)


def ended(spool: Any, batch: str, task: str = "summary") -> None:
    """Wait for a result, or for the summary."""
    spool.eventually((spool.folder / "outbox" / batch / f"{task}.json").exists)


def asked(base_url: str) -> list[str]:
    """Return the prompts that the server was asked with, once for each request."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/log") as answer:
        return [exchange["prompt"] for exchange in json.load(answer)]


@pytest.fixture
def older(spool: Any, slow_server: str) -> Path:
    """Leave a spool behind whose backup is older than its outbox; return that backup.

    `b` has ended since, of `c` one task has and two were at work,
    `new` and `open` came since, and so did a claim.
    """
    config = spool.folder / "config.toml"
    lines = config.read_text().replace("processes = 2", "processes = 2\nagents_per_process = 4")
    lines = [f'base_url = "{slow_server}"' if "base_url" in x else x for x in lines.splitlines()]
    for model in (SLOW, LONG, DEAF):
        lines += [f'[models."standin/{model}"]', "input_usd_per_mtok = 1.0"]
        lines += ["output_usd_per_mtok = 2.0"]
    config.write_text("\n".join(lines) + "\n")
    backup = spool.folder / "kept.bak"
    with spool.serving() as daemon:
        drop(spool, "past", one="steps-2")
        ended(spool, "past")
        drop(spool, "b", one=SLOW, two=SLOW)
        drop(spool, "c", one=SLOW, two=LONG, three=DEAF)
        spool.eventually(lambda: {"c two", "c three"} <= set(asked(slow_server)))
        made = spool.batchd("backup", backup)
        assert made.returncode == 0, made.stderr
        drop(spool, "new", one="steps-2")
        for name in ("b", "new"):
            ended(spool, name)
        ended(spool, "c", "one")
        drop(spool, "open", one=LONG)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    late = spool.write("late.json", [{"first_prompt": "late"}])
    claimer = Claimer(spool.folder / "inbox", spool.folder / ".batchd")
    claimer.enter(files.enter(spool.folder / "inbox"))
    inside = late.rename(spool.folder / "inbox" / "late.json")
    claimer.take("late.json", signature(os.lstat(inside)))
    assert claimer.taken()
    return Path(backup)


def check_books(spool: Any, results: dict[Path, bytes]) -> None:
    """Hold rows, result texts and ledger to the results in the outbox."""
    with StoreReader(store_of(spool)) as reader:
        assert reader.batch("b").published_at
        for batch, task in (("b", "one"), ("b", "two"), ("c", "one")):
            result = spool.result(batch, task)
            row = reader.task(Ref(batch, task))
            assert (row.status, row.published) == (TaskStatus.COMPLETED, True)
            assert row.tally.calls == result["usage"]["calls"] == 2
            assert row.tally.cost_usd == pytest.approx(result["cost"]["total"])
            assert row.tally.unsettled_calls == 0
            assert (
                dict(reader.results(batch))[task].encode()
                == results[spool.folder / "outbox" / batch / f"{task}.json"]
            )
        (spent,) = reader.spend((), batch="b")
        assert spent.tally.cost_usd == pytest.approx(spool.result("b", "summary")["cost"]["total"])
        assert spent.tally.calls == spool.result("b", "summary")["usage"]["calls"]
        parked = {(p.scope, p.name, p.cause) for p in reader.parked()}
    assert parked == {(Scope.TASK, f"c/{task}", Cause.UNCERTAIN) for task in ("two", "three")}


def test_an_older_store_believes_the_outbox_and_parks_the_rest(
    spool: Any, slow_server: str, older: Path
) -> None:
    """Shown first, then done: ends and their money are imported,
    and what may have run waits for a word.
    """
    path, outbox = store_of(spool), spool.folder / "outbox"
    with StoreReader(older) as reader:
        assert {t.status for t in reader.tasks("b")} == {TaskStatus.RUNNING}
    path.write_bytes(b"ruined" * 10_000)  # what makes people restore
    one = outbox / "b" / "one.json"  # taken away by a collector; `results.jsonl` has it too
    taken = one.read_bytes()
    one.unlink()
    before = {p: p.read_bytes() for p in spool.folder.rglob("*") if p.is_file()}

    shown = spool.batchd("restore", older, "--json")
    plan = json.loads(shown.stdout)
    assert [f["task"] for f in plan["imported"]] == ["b/one", "b/two", "c/one"]
    assert plan["parked"] == ["c/two", "c/three"]
    assert plan["published"] == ["b"]
    assert plan["unknown"] == [str(outbox / "open/request.json")]
    assert [c["name"] for c in plan["claimed"]] == ["late.json"]
    assert not plan["done"]
    assert "Nothing was changed" in spool.batchd("restore", older).stdout
    now = {p: p.read_bytes() for p in spool.folder.rglob("*") if p.is_file()}
    assert {p for p in now if now[p] != before.get(p)} <= {spool.folder / ".batchd/lock"}

    requests = asked(slow_server)
    done = spool.batchd("restore", older, "--yes", "--json")
    answer = json.loads(done.stdout)
    assert {**answer, "done": False, "former": None} == plan
    assert Path(answer["former"]).read_bytes() == b"ruined" * 10_000
    assert [p.name[-9:] for p in (spool.folder / ".batchd/uncertain").iterdir()] == ["late.json"]
    one.write_bytes(taken)
    results = {p: p.read_bytes() for p in outbox.glob("*/*.json")}
    check_books(spool, results)
    # A daemon starts nothing of it, and goes on once somebody says so.
    with spool.serving():
        drop(spool, "after", one="steps-2")
        ended(spool, "after")
        assert asked(slow_server)[len(requests) :] == ["after one"] * 2
        status = spool.batchd("status", "c/two").stdout
        assert "waiting since" in status
        assert "`batchd resume c/two` runs it" in status
        # It is not resumed without a thought.
        assert json.loads(spool.batchd("resume", "--json").stdout)["resumed"] == 0
        for order in (("cancel", "c/two"), ("resume", "c/three")):
            given = spool.batchd(*order)
            assert given.returncode == 0, given.stderr
        ended(spool, "c")
    assert spool.result("c", "summary")["counts"]["completed"] == 2
    assert spool.result("c", "two")["status"] == "cancelled"
    # The call that was open when the backup was made may have been paid.
    assert spool.result("c", "three")["usage"]["unsettled_calls"] == 1
    assert {p: p.read_bytes() for p in results} == results


def test_a_restore_needs_the_spool_for_itself(spool: Any) -> None:
    """While a daemon runs it is refused, with that daemon's name; a backup is not."""
    with spool.serving() as daemon:
        drop(spool, "b", one="steps-2")
        ended(spool, "b")
        assert spool.batchd("backup").returncode == 0
        (backup,) = store_of(spool).parent.glob("batchd.db.*.bak")
        refused = spool.batchd("restore", backup, "--yes")
        assert refused.returncode == 3
        assert f"is in use by the process {daemon.pid}" in refused.stderr
    assert backup.stat().st_mode & 0o777 == 0o600
    # One that was made between the last end and its summary: the daemon writes that again.
    with contextlib.closing(sqlite3.connect(backup)) as db, db:
        db.execute("UPDATE batches SET published_at = NULL")
        db.execute("UPDATE tasks SET published = 0")
    # With the daemon gone it works, and a store that lies there already needs no name.
    results = {p: p.read_bytes() for p in (spool.folder / "outbox/b").glob("*.json*")}
    for arguments in ((backup,), ()):
        done = spool.batchd("restore", *arguments, "--yes")
        assert done.returncode == 0, done.stderr
    mark = spool.folder / "outbox/.batchd"
    mark.write_text("1234 5678")  # of another machine's state directory
    assert f"{spool.folder}/outbox: " in spool.batchd("check", "--offline").stdout
    os.truncate(mark, 0)  # the fix
    with spool.serving():

        def published() -> bool:
            with StoreReader(store_of(spool)) as reader:
                row = reader.batch("b")
                return (row.completed, row.published_at is not None) == (1, True)

        spool.eventually(published)
    assert {path: path.read_bytes() for path in results} == results


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "name",
    [
        *(".batchd/batchd.db", ".batchd/batchd.db-wal", ".batchd/batchd.db-shm"),
        *(".batchd/batchd.db-journal", ".batchd/batchd.db.restored"),
        *("inbox/../.batchd/batchd.db", "link", "twin"),
    ],
)
def test_a_backup_is_never_written_over_the_store(spool: Any, name: str) -> None:
    """The store, its logs, what is about to replace it, by whatever name:
    all is as before, and the daemon goes on.
    """
    path, target = store_of(spool), spool.folder / name
    with spool.serving():
        (spool.folder / "link").symlink_to(path)
        (spool.folder / "twin").hardlink_to(path)
        drop(spool, "b", one="steps-2")
        ended(spool, "b")
        before = path.stat().st_ino
        refused = spool.batchd("backup", target)
        assert refused.returncode == 2, refused.stderr
        assert "a part of the store itself: name another file" in refused.stderr
        assert path.stat().st_ino == before
        assert not (path.parent / "batchd.db-journal").exists()
        drop(spool, "c", one="steps-2")
        ended(spool, "c")
    with spool.serving(), StoreReader(path) as reader:
        assert {row.batch.name for row in reader.batches()} == {"b", "c"}


def test_another_spools_backup_is_not_taken_for_this_ones(spool: Any) -> None:
    """It is recognised, and refused, unless somebody says that it is this spool which was moved."""
    path, (own, backup) = store_of(spool), (spool.folder / name for name in ("own.bak", "its.bak"))
    # Beside it, not below: sockets of worker processes lie there, and their paths must be short.
    other = type(spool)(spool.folder.with_name("other"))
    other.folder.mkdir()
    shutil.copy(spool.folder / "config.toml", other.folder)
    for each, name, kept in ((spool, "b", own), (other, "x", backup)):
        with each.serving():
            drop(each, name, one="steps-2")
            ended(each, name)
            assert each.batchd("backup", kept).returncode == 0
    before = path.read_bytes()
    why = f"went to other folders than {spool.folder}/outbox: {other.folder}/outbox."
    shown = spool.batchd("restore", backup)
    assert shown.returncode == 0
    assert why in shown.stdout
    refused = spool.batchd("restore", backup, "--yes")
    assert refused.returncode == 2
    assert why in refused.stderr
    assert "add --moved" in refused.stderr
    assert path.read_bytes() == before
    assert "other folders" not in spool.batchd("restore", own).stdout
    done = spool.batchd("restore", backup, "--yes", "--moved")
    assert done.returncode == 0, done.stderr
    with StoreReader(path) as reader:
        assert reader.batch("x").completed == 1


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "does not exist"),
        ("empty", "is empty: it was cut off, or never written; nothing was changed: name another"),
        ("text", "it is not a database, or its head is damaged; nothing was changed: name another"),
        ("foreign", "is a database of another program; nothing was changed: name another backup"),
        ("newer", "was written by a newer batchd"),
        ("flipped", "damaged; nothing was changed: name another backup"),
    ],
)
def test_what_is_no_sound_backup_is_refused(spool: Any, kind: str, complaint: str) -> None:
    """The store stays as it was, and nothing is left lying about."""
    path, backup = store_of(spool), spool.folder / "kept.bak"
    Store(path).close()
    if kind != "missing":
        spool.batchd("backup", backup)
    if kind == "empty":
        backup.write_bytes(b"")
    elif kind == "text":
        backup.write_text("no database, but longer than its header. " * 40)
    elif kind == "foreign":
        backup.unlink()
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"import sqlite3; sqlite3.connect({str(backup)!r}).execute('CREATE TABLE x (y)')",
            ],
            check=True,
        )
    elif kind == "newer":
        db = sqlite3.connect(backup)
        db.execute("PRAGMA user_version = 99")
        db.close()
    elif kind == "flipped":
        data = bytearray(backup.read_bytes())
        data[8192:12288] = os.urandom(4096)
        backup.write_bytes(data)
    before = path.read_bytes()
    refused = spool.batchd("restore", backup, "--yes")
    assert refused.returncode == 3
    assert f"batchd: {backup}" in refused.stderr
    assert complaint in refused.stderr
    assert "Traceback" not in refused.stderr
    assert path.read_bytes() == before
    names = {p.name for p in path.parent.iterdir()}
    kept = {"batchd.db-wal", "batchd.db-shm", "batchd.db-acked", "home"}
    assert names - kept == {"batchd.db", "lock"}


#: What becomes part of a path, in a backup that somebody has changed.
_STRAYING = {
    "a batch": ("UPDATE batches SET name = '../../x'", "'../../x'"),
    "a batch above": ("UPDATE batches SET name = '..'", "'..'"),
    "a batch elsewhere": ("UPDATE batches SET name = '/etc/cron.d'", "'/etc/cron.d'"),
    "a file": ("UPDATE batches SET request = '../../.bashrc'", "'../../.bashrc'"),
    "a claim": ("UPDATE batches SET claim = '../x'", "'../x'"),
    "a task": ("UPDATE tasks SET name = '../x'", "'../x'"),
    "a task's own id": (
        "UPDATE specs SET body = changed(body, '\"001\"', '\"../x\"')",
        "'../x'",
    ),
    "a task's directory": (
        'UPDATE specs SET body = changed(body, \'"dir":""\', \'"dir":"../x"\')',
        "'../x'",
    ),
    "an outbox": ("UPDATE batches SET outbox = 'elsewhere'", "'elsewhere'"),
}


@pytest.mark.parametrize("what", _STRAYING)
def test_a_backup_whose_names_lead_elsewhere_is_refused(spool: Any, what: str) -> None:
    """Names of batches, files and tasks become paths:
    one that is more than a name is no work of batchd's.
    """
    change, name = _STRAYING[what]
    backup, path = spool.folder / "kept.bak", store_of(spool)
    batch = Batch(name="b", claim="x", outbox=str(spool.folder / "outbox"), request="request.json", received_at=1)  # fmt: skip
    (spool.folder / ".batchd").mkdir(mode=0o700)
    with contextlib.closing(Store(path)) as store:
        asyncio.run(
            store.write(
                operations.add_batch, batch, [Task(id="001", first_prompt="x", model="standin/m")]
            )
        )
    assert spool.batchd("backup", backup).returncode == 0
    with contextlib.closing(sqlite3.connect(backup)) as db, db:
        db.create_function(
            "changed",
            3,
            lambda body, old, new: pack(unpack(body).replace(old.encode(), new.encode())),
        )
        db.execute(change)
    before = path.read_bytes()
    refused = spool.batchd("restore", backup, "--yes", "--moved")
    assert (refused.returncode, "Traceback" in refused.stderr) == (3, False), refused.stderr
    assert f"batchd: {backup}: " in refused.stderr
    assert name in refused.stderr
    assert "nothing was changed: name another backup" in refused.stderr
    assert path.read_bytes() == before


def test_a_backup_writes_to_no_other_outbox_unasked(spool: Any, tmp_path: Path) -> None:
    """One of its batches went elsewhere: that folder is named,
    and refused unless it was this spool's outbox.
    """
    backup, path, other = spool.folder / "kept.bak", store_of(spool), tmp_path / "other"
    (spool.folder / ".batchd").mkdir(mode=0o700)
    ours = Batch(name="a", claim="x", outbox=str(spool.folder / "outbox"), request="request.json", received_at=1)  # fmt: skip
    with contextlib.closing(Store(path)) as store:
        for batch in (ours, structs.replace(ours, name="b", claim="y", outbox=str(other))):
            task = Task(id="001", first_prompt="x", model="standin/m")
            asyncio.run(store.write(operations.add_batch, batch, [task]))
    assert spool.batchd("backup", backup).returncode == 0
    shown = spool.batchd("restore", backup)
    assert (shown.returncode, f"{spool.folder}/outbox: {other}." in shown.stdout) == (0, True)
    assert json.loads(spool.batchd("restore", backup, "--json").stdout)["others"] == [str(other)]
    refused = spool.batchd("restore", backup, "--yes")
    assert refused.returncode == 2
    assert f"{spool.folder}/outbox: {other}." in refused.stderr
    assert "add --moved" in refused.stderr
    assert spool.batchd("restore", backup, "--yes", "--moved").returncode == 0


def test_tasks_that_the_configuration_allows_no_more_do_not_run(spool: Any) -> None:
    """A store may come from elsewhere, a root or a ceiling be narrower since:
    both are asked as a task starts.
    """
    outside, path = spool.folder / "outside", store_of(spool)
    for folder in (outside, spool.folder / "repos", spool.folder / ".batchd"):
        folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(outside, 65534, -1)  # so that commands could run there
    made = Batch(name="a", claim="x", outbox=str(spool.folder / "outbox"), request="request.json", received_at=1)  # fmt: skip
    task = Task(id="dir", first_prompt="x", model="standin/steps-5", evaluator="none")
    tasks = [
        replace(task, dir=str(outside)),
        replace(task, id="calls", limits=TaskLimits(max_calls=9)),
    ]
    with contextlib.closing(Store(path)) as store:
        asyncio.run(store.write(operations.add_batch, made, tasks))
    settings = spool.folder / "config.toml"
    settings.write_text(
        settings.read_text() + '[workspace]\nroot = "repos"\n[limits.ceiling]\nmax_calls = 2\n'
    )
    with spool.serving():
        ended(spool, "a")
    results = {task.id: spool.result("a", task.id) for task in tasks}
    assert (results["dir"]["status"], results["dir"]["reason"]) == ("error", "sandbox")
    message = results["dir"]["error"]["message"]
    assert f"{outside} lies outside of [workspace] root and allow" in message
    assert "allow it in [workspace], then `batchd retry a`" in message
    assert not any(outside.iterdir())
    assert (results["calls"]["status"], results["calls"]["reason"]) == ("timeout", "max_calls")
    assert results["calls"]["usage"]["calls"] == 2
    with StoreReader(path) as reader:
        began = reader.read(lookups.events, Ref("a", "calls"))[0]
    assert isinstance(began, TaskStarted)
    assert began.terms.limits == TaskLimits(max_calls=2)


def test_many_uncertain_tasks_are_cancelled_as_fast_as_few(tmp_path: Path) -> None:
    """A restore may leave ten thousand of them: what one costs does not grow with their number."""

    def cost_of_one(count: int) -> float:
        """Return the processor time that the cancellation of each takes, in seconds."""
        folder = tmp_path / str(count)
        (folder / ".batchd").mkdir(mode=0o700, parents=True)
        (folder / "config.toml").touch()
        tasks = [Task(id=str(i), first_prompt="x", model="p/m") for i in range(count)]
        batch = Batch(
            name="a",
            claim="x",
            outbox=str(folder / "outbox"),
            request="request.json",
            received_at=1,
        )

        async def fill(store: Store) -> None:
            name = (await store.write(operations.add_batch, batch, tasks)).name
            await reconcile.carry_out(
                store, ReconcilePlan(uncertain=[Ref(name, t.id) for t in tasks])
            )

        with contextlib.closing(Store(folder / ".batchd/batchd.db")) as store:
            asyncio.run(fill(store))
        (folder / "outbox" / "a").mkdir(parents=True)
        (folder / "outbox" / "a" / "request.json").write_text("{}")
        daemon = Daemon(config.load(folder / "config.toml", {}), work=False)
        begun = time.process_time()
        assert asyncio.run(daemon.command(Cancel(target="a"))) == Cancelled(cancelled=count)
        return (time.process_time() - begun) / count

    assert cost_of_one(3000) < 1.7 * cost_of_one(250)
