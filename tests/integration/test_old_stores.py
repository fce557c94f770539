"""Every store that an older batchd left in the middle of its work is taken up by today's.

The archives in `tests/data` are spools of real daemons that were killed;
`make_old_store.py` there makes them.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tarfile
import time
import urllib.request
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from loglines import logged

from batchd.events import CallAnswered, Resumed, ToolRan, decode
from batchd.records import Ref
from batchd.store import lookups
from batchd.store.database_file import open_writer
from batchd.store.migrations import MIGRATIONS
from batchd.store.queries import StoreReader
from batchd.store.stored_values import pack, unpack

pytestmark = pytest.mark.in_turns

DATA = Path(__file__).parents[1] / "data"
#: Where the spools lay that the archives were made of.
ROOT = b"/var/tmp/batchd-old-spool"
#: How many calls each task makes in all.
CALLS = {"mid": 6, "mid2": 6, "doubt": 2, "open": 2, "next": 2, "low": 2, "high": 2}


def unpacked(archive: Path, folder: Path) -> Path:
    """Lay an archive out as a spool; return its database."""
    with tarfile.open(archive) as files:
        # Owners are kept: commands run as the owner of their directory, which must not be root.
        files.extractall(folder, filter="tar", numeric_owner=True)
    return folder / ".batchd" / "batchd.db"


def relocated(path: Path, folder: Path, *, checkpointed: bool) -> dict[str, Any]:
    """Put the spool's new place into the rows; return what was recorded:
    answers by task, the result of `stuck`.
    """
    old, new = ROOT.decode(), str(folder)
    db = sqlite3.connect(path, isolation_level=None)
    keeper = sqlite3.connect(path)  # the last one that closes empties the log
    keeper.execute("SELECT count(*) FROM tasks").fetchone()
    db.execute("UPDATE batches SET outbox = replace(outbox, ?, ?)", (old, new))
    db.execute("UPDATE tasks SET dir = replace(dir, ?, ?)", (old, new))
    for task, body in db.execute("SELECT task, body FROM specs").fetchall():
        moved = pack(unpack(body).replace(ROOT, new.encode()))
        db.execute("UPDATE specs SET body = ? WHERE task = ?", (moved, task))
    recorded: dict[str, Any] = defaultdict(int)
    for name, body in db.execute(
        "SELECT t.name, e.body FROM events e JOIN tasks t ON t.id = e.task ORDER BY e.task, e.seq"
    ):
        event = decode(unpack(body))
        recorded[name] += isinstance(event, CallAnswered)
        if name == "stuck":
            recorded["result"] = getattr(event, "result", "")
    db.close()
    log = path.with_name("batchd.db-wal")
    if checkpointed:
        keeper.close()
        assert not log.exists()
    else:
        copies = {file: file.read_bytes() for file in (path, log)}
        keeper.close()
        for file, data in copies.items():
            file.write_bytes(data)
        assert log.stat().st_size
    return recorded


def log_of(base_url: str) -> list[dict[str, Any]]:
    """Return the server's log."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/log") as answer:
        log: list[dict[str, Any]] = json.load(answer)
    return log


def asked(base_url: str) -> dict[str, list[int]]:
    """Return what the server was asked, by task:
    how many answers each request held, in the order of the first.
    """
    turns: dict[str, list[int]] = {}
    for exchange in log_of(base_url):
        turns.setdefault(exchange["prompt"].split()[1], []).append(exchange["turn"])
    return turns


def configure(spool: Any, base_url: str) -> None:
    """Point the spool at a server, with prices for the models that the archives name."""
    path = spool.folder / "config.toml"
    lines = path.read_text().splitlines()
    lines = [f'base_url = "{base_url}"' if x.startswith("base_url") else x for x in lines]
    for model in ("latency-0.4+steps-6", "latency-2+steps-2"):
        lines += [f'[models."standin/{model}"]', "input_usd_per_mtok = 1.0"]
        lines += ["output_usd_per_mtok = 2.0"]
    path.write_text("\n".join([*lines, "[budget]", "per_day_usd = 5.0", ""]))


def test_each_older_version_has_its_archive() -> None:
    """A migration comes together with a store of the version before it."""
    versions = sorted(int(p.name[7:-7]) for p in DATA.glob("store-v?.tar.gz"))
    assert versions == list(range(1, len(MIGRATIONS)))


@pytest.mark.parametrize(
    "archive", sorted(DATA.glob("store-v[1-3].tar.gz")), ids=lambda p: p.name[:-7]
)
def test_money_of_before_is_booked_under_its_tags(tmp_path: Path, archive: Path) -> None:
    """Tags are filled in from the tasks' texts, and money from their journals;
    not a token is lost or doubled.
    """
    path = unpacked(archive, tmp_path)
    columns = "sum(calls), sum(input_tokens), sum(output_tokens), sum(unsettled_calls)"
    with contextlib.closing(sqlite3.connect(path)) as db:
        before = db.execute(f"SELECT {columns}, sum(input_usd + output_usd) FROM spend").fetchone()
    open_writer(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        after = db.execute(f"SELECT {columns}, sum(input_usd + output_usd) FROM spend").fetchone()
        tasks = db.execute(
            "SELECT name, tags, evaluation, prompt_chars, calls, cost_usd FROM tasks"
        )
        rows = {name: labels for name, *labels in tasks}
        nothing = db.execute(
            "SELECT count(*) FROM spend WHERE calls + unsettled_calls = 0"
        ).fetchone()
    assert after == (*before[:-1], pytest.approx(before[-1]))
    assert nothing == (0,)
    assert rows["mid2"][:3] == ["", "check", len("live mid2")]
    with StoreReader(path) as reader:
        spent = {r.tag: (r.tally.calls, r.tally.cost_usd) for r in reader.spend(("tag",))}
        (total,) = reader.spend(())
    if archive.name in {"store-v1.tar.gz", "store-v2.tar.gz"}:  # there were no tags then
        assert spent == {None: (total.tally.calls, total.tally.cost_usd)}
        return
    done, mid = (tuple(rows[name][-2:]) for name in ("done", "mid"))
    assert (rows["done"][0], done[0] > 0, mid[0] > 0) == ('["es","night"]', True, True)
    assert spent["es"] == (done[0], pytest.approx(done[1]))
    assert spent["night"] == (done[0] + mid[0], pytest.approx(done[1] + mid[1]))
    assert spent[None][0] == total.tally.calls - done[0] - mid[0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["killed", "checkpointed"])
@pytest.mark.parametrize("archive", sorted(DATA.glob("store-v?.tar.gz")), ids=lambda p: p.name[:-7])
def test_an_older_store_goes_on_where_it_was(
    spool: Any, slow_server: str, archive: Path, *, checkpointed: bool
) -> None:
    """It is backed up and migrated; every task ends; no recorded answer is asked for again."""
    configure(spool, slow_server)
    path = unpacked(archive, spool.folder)
    recorded = relocated(path, spool.folder, checkpointed=checkpointed)
    status = spool.batchd("status")
    assert status.returncode
    assert "is of an older version; `batchd serve` migrates it" in status.stderr
    estimate = spool.batchd("estimate", spool.write("more.json", [{"first_prompt": "x"}]))
    assert (estimate.returncode, "older version" in estimate.stderr) == (0, True)
    outbox = spool.folder / "outbox"
    with spool.serving():
        spool.eventually((outbox / "live/summary.json").exists)
        spool.eventually((outbox / "waiting/summary.json").exists)
        shown = json.loads(spool.batchd("status", "--json").stdout)

    version = int(archive.name[7:-7])
    backup = path.with_name(f"batchd.db.v{version}.bak")
    with contextlib.closing(sqlite3.connect(backup)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM tasks").fetchone() == (11,)

    # What was answered before was not asked again; everything else was, once.
    turns = asked(slow_server)
    assert turns == {name: list(range(recorded[name], n)) for name, n in CALLS.items()}
    assert recorded["mid"] >= 2
    order = list(turns)
    assert order.index("high") < order.index("low")
    assert "stuck" not in turns
    assert (outbox / "live/stuck.json").read_text() == recorded["result"]

    summary = spool.result("live", "summary")
    assert summary["counts"]["completed"] == summary["total"] == 7
    assert spool.result("live", "open")["usage"]["unsettled_calls"] == 1
    assert spool.result("live", "mid")["usage"]["calls"] == 6
    assert spool.result("waiting", "high")["metadata"] == {"n": 1}
    statuses = [(b["name"], b["status"]) for b in shown["batches"]]
    assert statuses == [
        ("waiting", "completed"),
        ("live", "completed"),
        ("refused", "rejected"),
        ("past", "failed"),
    ]
    with StoreReader(path) as reader:
        (doubt,) = [
            e for e in reader.read(lookups.events, Ref("live", "doubt")) if isinstance(e, ToolRan)
        ]
    assert doubt.outcome == "interrupted"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
def test_tasks_that_an_older_version_parked_end_in_the_dialect_that_they_began_in(
    spool: Any, slow_server: str, api: str
) -> None:
    """Whatever their provider speaks now:
    a task that has begun goes on over chat completions, and pays no answer twice.
    """
    configure(spool, slow_server)
    config = spool.folder / "config.toml"
    address = f'base_url = "{slow_server}"'
    config.write_text(config.read_text().replace(address, f'{address}\napi = "{api}"'))
    path = unpacked(DATA / "parked-v4.tar.gz", spool.folder)
    recorded = relocated(path, spool.folder, checkpointed=False)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        held = db.execute("SELECT scope, name, cause FROM parked").fetchall()
        # Or they would end: nothing waits for years.
        db.execute("UPDATE parked SET since = ?", (time.time(),))
    assert held == [("provider", "standin", "auth")]
    outbox = spool.folder / "outbox"
    with spool.serving():
        # It may have been tried by then.
        spool.batchd("resume", "--provider", "standin")
        for batch in ("begun", "later"):
            spool.eventually((outbox / batch / "summary.json").exists)

    turns = asked(slow_server)
    calls = {name: CALLS[name] for name in ("mid", "mid2", "next", "low", "high")}
    assert turns == {name: list(range(recorded[name], n)) for name, n in calls.items()}
    assert min(recorded["mid"], recorded["mid2"]) >= 2
    spoken = {(e["prompt"].split()[1], e["dialect"]) for e in log_of(slow_server)}
    assert spoken == {(name, "chat" if recorded[name] else api) for name in calls}
    for batch, total in (("begun", 3), ("later", 2)):
        assert spool.result(batch, "summary")["counts"]["completed"] == total
    usage = spool.result("begun", "mid")["usage"]
    assert (usage["calls"], usage["unsettled_calls"]) == (6, 0)


def test_what_tasks_changed_on_other_machines_is_not_forgotten_unasked(
    spool: Any, slow_server: str
) -> None:
    """A daemon with packs of 0.2.0 does not start, and its store stays as it was. With
    --drop-packs it goes on with each task in the directory as it is, and the models learn that.

    A lease that was left is waited for; what needs a GPU ends unpaid, and can run again without.
    """
    configure(spool, slow_server)
    path = unpacked(DATA / "store-v9-joined.tar.gz", spool.folder)
    relocated(path, spool.folder, checkpointed=True)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE tasks SET worker = 'node7/1/3' WHERE name = 'mid'")
    before = path.read_bytes()
    refused = spool.batchd("serve")
    assert refused.returncode == 3
    assert "what 5 tasks changed on other machines (away/doubt, away/mid" in refused.stderr
    assert "`batchd serve --drop-packs`" in refused.stderr
    assert path.read_bytes() == before

    outbox = spool.folder / "outbox"
    with spool.serving("--drop-packs"):
        spool.batchd("resume", "early/held")
        for batch in ("early", "away"):
            spool.eventually((outbox / batch / "summary.json").exists)
        again = spool.batchd("retry", "--failed", "away")
        assert "without needs, which is gone" in again.stdout
        spool.eventually((outbox / "away-2/summary.json").exists)
    assert not (spool.folder / ".batchd/packs").exists()
    turns = asked(slow_server)
    assert {name: turns[name][0] for name in ("held", "mid")} == {"held": 2, "mid": 2}
    assert spool.result("early", "summary")["counts"]["completed"] == 3
    assert spool.result("away", "summary")["counts"]["completed"] == 4
    needy = spool.result("away", "needy")
    assert (needy["status"], needy["reason"], needy["usage"]["calls"]) == (
        "error",
        "bad_request",
        0,
    )
    assert "it needs 1 GPU and the label big of its machine" in needy["error"]["message"]
    assert spool.result("away-2", "summary")["counts"]["completed"] == 1
    with StoreReader(path) as reader:
        for ref in (Ref("early", "held"), Ref("away", "mid")):
            (resumed, *_) = [e for e in reader.read(lookups.events, ref) if isinstance(e, Resumed)]
            assert "on the one before may be lost" in str(resumed.lost), ref
    log = logged(spool.folder / "daemon.log")
    at = {line["task"]: _time(line) for line in log if line["event"] == "task_started"}
    (begun,) = (_time(line) for line in log if line["event"] == "daemon_started")
    assert at["mid"] - begun > 2.5


def _time(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()
