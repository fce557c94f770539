"""``outbox/status.json``: how the daemon stands,
for who may read the outbox, and may not read the state.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from patience import until

from batchd.cli import shipped
from batchd.spool import outbox
from tests.conftest import NO_REPORT, Spool, stand_in

pytestmark = pytest.mark.in_turns

#: In every text of a task, of a provider and of a path.
_CANARY = "canary4711"
_CONFIG = """\
[agent]
model = "standin/steps-2"
[evaluation]
judge_model = "standin/steps-2"
[workspace]
root = "{folder}"
[governor]
max_retries = 0
[providers.standin]
base_url = "{base_url}"
[providers.{canary}]
base_url = "{base_url}"
[models."standin/steps-2"]
input_usd_per_mtok = 1000.0
output_usd_per_mtok = 1000.0
"""


def _task(folder: Path, **more: Any) -> dict[str, Any]:
    """Return a task with the canary in each of its texts."""
    return {
        "id": f"{_CANARY}-id",
        "first_prompt": f"{_CANARY} prompt",
        "system_prompt": f"{_CANARY} system",
        "dir": str(folder / f"{_CANARY}-dir"),
        "check": f"echo {_CANARY}; true",
        "env": {_CANARY: _CANARY},
        "tags": [f"{_CANARY}-tag"],
        "metadata": {_CANARY: _CANARY},
        "evaluator": "none",
        **more,
    }


def _read(spool: Spool) -> dict[str, Any]:
    """Return what the file says. A reader never finds less than the whole of it."""
    path = spool.folder / "outbox/status.json"
    return json.loads(path.read_bytes()) if path.exists() else {"batches": []}


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """A spool in a folder that is named like a canary, as one of its providers is."""
    folder = tmp_path / _CANARY
    folder.mkdir()
    (folder / f"{_CANARY}-dir").mkdir()
    if os.geteuid() == 0:  # no command runs in a directory of root's
        os.chown(folder / f"{_CANARY}-dir", 65534, 65534)
    with stand_in() as base_url:
        text = _CONFIG.format(base_url=base_url, folder=folder, canary=_CANARY)
        (folder / "config.toml").write_text(NO_REPORT + text)
        yield Spool(folder)


def test_it_holds_no_text_of_a_task_a_provider_or_a_path(spool: Spool) -> None:
    """Of tasks that run, wait and have ended in every way, of a refused file, of what orders and
    errors say: names of batches, counts, states, money and causes; as `batchd schema` says.
    """
    folder, seen = spool.folder, dict[str, str]()

    def standing() -> dict[str, dict[str, Any]]:
        """Return the batches by name; keep what is read by its moment."""
        value = _read(spool)
        if at := value.get("at"):
            seen[at] = json.dumps(value)
        return {batch["batch"]: batch for batch in value["batches"]}

    begun = time.monotonic()
    files = {
        "runs": [_task(folder, model="standin/hang", dir="")],
        "done": [_task(folder)],
        "wrong": [_task(folder, model="standin/400", dir="")],
        "not-accepted": [
            _task(folder, check=f"echo {_CANARY}; false", limits={"max_iterations": 1}, dir="")
        ],
        "waits": [_task(folder, model=f"{_CANARY}/401", dir="")],
        "refused": [_task(folder, first_prompt=7)],
        "ended": [_task(folder, model="standin/hang", dir="")],
        "paused": [_task(folder), _task(folder, id="b", dir="")],
    }
    wanted = {
        "runs": ("running", {"running": 1}),
        "done": ("completed", {"completed": 1}),
        "wrong": ("failed", {"error": 1}),
        "not-accepted": ("failed", {"timeout": 1}),
        "waits": ("parked", {"parked": 1}),
        "refused": ("rejected", {}),
        "ended": ("cancelled", {"cancelled": 1}),
        "paused": ("queued", {"queued": 2}),
    }
    with spool.serving():
        spool.batchd("pause", "--all", "-m", f"{_CANARY} pauses")
        for name, tasks in files.items():
            spool.write(f"{name}.json", tasks).rename(folder / f"inbox/{name}.json")
        until(lambda: standing().keys() == wanted.keys(), lambda: str(standing()))
        assert [(w["scope"], w["cause"], w["batch"]) for w in _read(spool)["waits"]] == [
            ("all", "paused", None)
        ]
        spool.batchd("pause", "paused", "-m", f"{_CANARY} pauses")
        spool.batchd("cancel", "ended", "-m", f"{_CANARY} cancels")
        spool.batchd("resume", "--all")
        until(
            lambda: {n: (b["status"], b["counts"]) for n, b in standing().items()} == wanted,
            lambda: json.dumps(standing()),
        )
        status = _read(spool)
        waits = {(w["scope"], w["cause"], w["batch"], w["count"]) for w in status["waits"]}
        assert waits == {("provider", "auth", None, 1), ("batch", "paused", "paused", 1)}
        assert status["daemon"]["state"] == "running"
        done = next(b for b in status["batches"] if b["batch"] == "done")
        assert done["cost"] > 0
        assert status["day"]["spent_usd"] >= done["cost"]
        # No more of them than one in five seconds, and those at both ends.
        assert len(seen) <= (time.monotonic() - begun) / 5 + 2
    status = _read(spool)
    assert status["daemon"]["state"] == "stopped"
    jsonschema.validate(status, json.loads(shipped.text("status")))
    for text in (*seen.values(), json.dumps(status)):
        assert _CANARY not in text
        assert "standin" not in text
        assert str(folder) not in text
    # The canary sings elsewhere: it was in what was looked at.
    assert _CANARY in spool.batchd("status", "--json").stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs other groups")
@pytest.mark.parametrize(
    ("mode", "file"),
    [
        (0o750, 0o640),
        (0o700, 0o600),
        (0o755, 0o644),
        (0o2750, 0o640),
        (0o777, None),
        (0o1777, None),
    ],
)
def test_who_may_read_the_outbox_may_read_it(tmp_path: Path, mode: int, file: int | None) -> None:
    """Its group is the outbox's, whatever the umask; where everybody may write it is not written,
    and a link in its place is not written through.
    """
    place = tmp_path / "outbox"
    place.mkdir()
    os.chown(place, -1, 4801)
    place.chmod(mode)
    (tmp_path / "victim").write_text("untouched")
    (place / outbox.STATUS).symlink_to(tmp_path / "victim")
    old = os.umask(0o077)
    try:
        outbox.publish_status(str(place), b"{}", sweep=True)
    finally:
        os.umask(old)
    found = (place / outbox.STATUS).lstat()
    assert (tmp_path / "victim").read_text() == "untouched"
    assert stat.S_ISLNK(found.st_mode) == (file is None)
    if file is not None:
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (file, 4801)


@pytest.mark.long
def test_an_idle_daemon_writes_it_only_before_it_goes_stale(spool: Spool) -> None:
    """Its moment moves on in less than the time that it is good for, and else nothing of it."""
    with spool.serving():
        spool.batchd("submit", spool.write("a.json", [{"first_prompt": "x"}]), "--wait")
        until(lambda: [b["status"] for b in _read(spool)["batches"]] == ["completed"])
        first = _read(spool)
        until(lambda: _read(spool)["at"] != first["at"])
        second = _read(spool)
    moved = datetime.fromisoformat(second["at"]) - datetime.fromisoformat(first["at"])
    assert moved.total_seconds() > 20
    assert {**first, "at": ""} == {**second, "at": ""}
    assert second["stale_after_s"] == 60


def test_a_killed_daemon_leaves_the_last_word_of_its_own(spool: Spool) -> None:
    """Its moment grows old, and says so; the next daemon writes its own, and sweeps."""
    draft = spool.folder / "outbox/.status.json.1999999999-0.tmp"
    with spool.serving() as daemon:
        spool.batchd("submit", spool.write("a.json", [{"first_prompt": "x"}]), "--wait")
        until(lambda: _read(spool)["batches"])
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        draft.touch()
        assert _read(spool)["daemon"] == {
            **_read(spool)["daemon"],
            "state": "running",
            "pid": daemon.pid,
        }
    with spool.serving() as daemon:
        until(lambda: _read(spool)["daemon"]["pid"] == daemon.pid)
        assert not draft.exists()


def test_a_run_writes_none(spool: Spool) -> None:
    """The daemon of a `run` is there for its own file alone."""
    task = spool.write("a.json", [{"first_prompt": "x"}])
    assert spool.batchd("run", task).returncode == 0
    assert not (spool.folder / "outbox/status.json").exists()
