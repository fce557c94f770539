"""Makes `store-vN.tar.gz`:
a spool as a daemon of today leaves it when it is killed in the middle of its work.

    python tests/data/make_old_store.py [CHECKOUT] [--parked | --joined]

Run it on the last commit before a migration is added, and commit what it makes together with the
migration: `test_old_stores.py` then holds that every later batchd goes on from there. The spool
holds what a live one may hold: a batch that is published,
one that has a task in every state, one that waits, and a refused file.

With `--parked` it is `parked-vN.tar.gz`, whose provider refuses the key in the middle of the work.

With `--joined`, and a checkout of 0.2.0 and its Python, it is `store-vN-joined.tar.gz`: all work is
on a worker that has joined as if from another machine, whose changes lie in packs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import standin

HERE = Path(__file__).parent

#: Known to the test, which puts its own folder in its place.
ROOT = Path("/var/tmp/batchd-old-spool")

CONFIG = """\
[agent]
model = "standin/steps-2"
[providers.standin]
base_url = "{base_url}"
[models."standin/steps-2"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[models."standin/latency-0.4+steps-6"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[models."standin/latency-2+steps-2"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 1
agents_per_process = 4
[evaluation]
by = "none"
[budget]
per_day_usd = 5.0
"""
SLOW = "standin/latency-0.4+steps-6"
FILES: Mapping[str, Any] = {
    "past": {
        "tasks": [
            {"id": "good", "first_prompt": "past good"},
            {"id": "bad", "first_prompt": "past bad", "model": "standin/400"},
        ]
    },
    "refused": {"tasks": [{"first_prompt": "refused", "colour": "red"}]},
    "live": {
        "budget_usd": 2.0,
        "tasks": [
            {"id": "done", "first_prompt": "live done", "priority": 9, "tags": ["night", "es"]},
            {"id": "stuck", "first_prompt": "live stuck", "priority": 9},
            {"id": "mid", "first_prompt": "live mid", "model": SLOW, "tags": ["night"]},
            {"id": "mid2", "first_prompt": "live mid2", "model": SLOW, "check": "true"},
            # Bash reads that file before each command:
            # the command is still running when the daemon is killed.
            {
                "id": "doubt",
                "first_prompt": "live doubt",
                "dir": "repos/doubt",
                "env": {"BASH_ENV": "/task/slow.sh"},
            },
            {"id": "open", "first_prompt": "live open", "model": "standin/latency-2+steps-2"},
            {"id": "next", "first_prompt": "live next", "after": ["mid", "done"]},
        ],
    },
    "waiting": {
        "tasks": [
            {"id": "low", "first_prompt": "waiting low", "priority": -3},
            {"id": "high", "first_prompt": "waiting high", "priority": 7, "metadata": {"n": 1}},
        ]
    },
}
#: Of the spool whose provider is parked: the second batch comes when it is.
PARKED: Mapping[str, Any] = {
    "begun": {
        "tasks": [
            {"id": "mid", "first_prompt": "begun mid", "model": SLOW},
            {"id": "mid2", "first_prompt": "begun mid2", "model": SLOW, "check": "true"},
            {"id": "next", "first_prompt": "begun next", "after": ["mid"]},
        ]
    },
    "later": {
        "tasks": [
            {"id": "low", "first_prompt": "later low", "priority": -3},
            {"id": "high", "first_prompt": "later high", "priority": 7},
        ]
    },
}
#: Of the spool whose only worker is elsewhere: `held` is paused once it has changed something,
#: what `unlaid` has changed cannot be laid out, and nobody has what `needy` needs.
JOINED: Mapping[str, Any] = {
    "early": {
        "tasks": [
            {"id": "done", "first_prompt": "early done", "priority": 9},
            {"id": "unlaid", "first_prompt": "early unlaid", "dir": "repos/unlaid", "model": SLOW},
            {"id": "held", "first_prompt": "early held", "dir": "repos/held", "model": SLOW},
        ]
    },
    "away": {
        "tasks": [
            {"id": "mid", "first_prompt": "away mid", "dir": "repos/mid", "model": SLOW},
            {"id": "doubt", "first_prompt": "away doubt", "dir": "repos/doubt"},
            {"id": "open", "first_prompt": "away open", "model": "standin/latency-2+steps-2"},
            {"id": "next", "first_prompt": "away next", "after": ["mid"]},
            {"id": "needy", "first_prompt": "away needy", "needs": {"gpu": 1, "label": "big"}},
        ]
    },
}
for file in JOINED.values():
    for task in file["tasks"]:
        if "dir" in task:
            task["env"] = {"BASH_ENV": "/task/first.sh"}


def main() -> None:
    """Make the archive of the checkout's version."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    checkout = Path(given[0] if given else HERE.parents[1]).resolve()
    shutil.rmtree(ROOT, ignore_errors=True)
    joined = "--joined" in sys.argv
    for name in ("doubt", "unlaid", "held", "mid") if joined else ("doubt",):
        folder = ROOT / "repos" / name
        folder.mkdir(parents=True)
        (folder / "slow.sh").write_text("sleep 600\n")
        (folder / "first.sh").write_text("echo $$ >>/task/changed\n")
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
    if joined:
        (ROOT / "repos/doubt/first.sh").write_text("sleep 600\n")
    # Not from here: Python looks into the working directory first.
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with _server(environment) as base_url:
        (ROOT / "config.toml").write_text(CONFIG.format(base_url=base_url))
        if joined:
            _configure_joining()
        daemon = _daemon(environment)
        try:
            if "--parked" in sys.argv:
                _work_until_parked(base_url)
            elif joined:
                _work_elsewhere(environment)
            else:
                _work()
        finally:
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
    time.sleep(1)  # until the last worker is dead
    _pack(next((name for name in ("parked", "joined") if f"--{name}" in sys.argv), ""))


def _work() -> None:
    """Bring every task into its state."""
    for name in ("past", "refused"):
        _drop(name)
        _until((ROOT / "outbox" / name / "summary.json").exists)
    _until(lambda: _one("SELECT count(*) FROM batches WHERE published_at") == 2)
    _drop("live")
    _until((ROOT / "outbox/live/request.json").exists)
    # A folder where a result should be: that task ends, and stays unpublished.
    (ROOT / "outbox/live/stuck.json").mkdir()
    slots = "SELECT count(*) FROM tasks WHERE status = 'running' AND name IN ('mid', 'mid2', 'doubt', 'open')"
    _until(lambda: _one(slots) == 4)
    _drop("waiting")
    _until(lambda: _one("SELECT count(*) FROM batches WHERE name = 'waiting'"))
    states = {
        "done": "status = 'completed' AND published",
        "stuck": "status = 'completed' AND NOT published",
        "mid": "status = 'running' AND calls >= 2",
        "mid2": "status = 'running' AND calls >= 2",
        "doubt": "status = 'running' AND calls = 1 AND call_at IS NULL",
        "open": "status = 'running' AND calls = 0 AND call_at IS NOT NULL",
        "next": "status = 'queued'",
        "low": "status = 'queued'",
        "high": "status = 'queued'",
    }
    _until_each(states)


@contextlib.contextmanager
def _server(environment: Mapping[str, str]) -> Iterator[str]:
    process, base_url = standin.start("--no-count", environ=environment)
    with process:
        try:
            yield base_url
        finally:
            process.terminate()


def _daemon(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "batchd", "--config", str(ROOT / "config.toml"), "serve"]
    daemon = subprocess.Popen(command, env=environment, cwd=ROOT)
    _until((ROOT / ".batchd/control.sock").exists)
    return daemon


def _work_until_parked(base_url: str) -> None:
    """Have the key refused once two tasks have some answers, and other tasks come after that."""
    _drop("begun")
    begun = "SELECT count(*) FROM tasks WHERE status = 'running' AND calls >= 2"
    _until(lambda: _one(begun) == 2)
    control = f"{base_url.removesuffix('/v1')}/control"
    urllib.request.urlopen(control, data=b'{"api_key": "sk-another"}').close()
    # Not only the provider: the tasks, too, whose journals say so.
    _until(lambda: _one("SELECT count(*) FROM tasks WHERE status = 'parked' AND calls >= 2") == 2)
    _drop("later")
    _until(lambda: _one("SELECT count(*) FROM batches WHERE name = 'later'"))


def _configure_joining() -> None:
    """Have all work done by workers that join."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = ROOT / "config.toml"
    pool = f'processes = 0\nheartbeat_timeout_s = 5.0\nlisten = "127.0.0.1:{port}"'
    text = config.read_text().replace("processes = 1\nagents_per_process = 4", pool)
    config.write_text(text.replace(pool, f"{pool}\nagents_per_process = 8"))


def _work_elsewhere(environment: Mapping[str, str]) -> None:
    """Bring every task into its state, on a worker that sees nothing of the spool."""
    batchd = [sys.executable, "-m", "batchd", "--config", str(ROOT / "config.toml")]
    ticket = subprocess.check_output([*batchd, "invite", "127.0.0.1"], env=environment, cwd=ROOT)
    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as undo:
        worker = subprocess.Popen(
            [
                *(
                    "unshare",
                    "--mount",
                    "sh",
                    "-c",
                    'mount -t tmpfs none "$0" && cd / && exec "$@"',
                ),
                *(str(ROOT), sys.executable, "-m", "batchd", "worker", "--join", "-"),
                *("--node", "node7", "--cache", cache),
            ],
            stdin=subprocess.PIPE,
            env=environment,
        )
        undo.callback(worker.wait)
        undo.callback(worker.kill)
        assert worker.stdin is not None
        worker.stdin.write(ticket)
        worker.stdin.close()
        _drop("early")
        changed = "SELECT count(*) FROM tasks WHERE name = '{}' AND calls >= 2"
        _until(lambda: _one(changed.format("held")) and _one(changed.format("unlaid")))
        subprocess.run([*batchd, "pause", "early/held"], env=environment, cwd=ROOT, check=True)
        (ROOT / "repos/unlaid").rename(ROOT / "repos/was")
        (ROOT / "repos/unlaid").write_text("a file in its place\n")
        _until_each(
            {
                "done": "status = 'completed' AND published",
                "unlaid": "status = 'completed' AND published",
                "held": "status = 'parked' AND calls >= 2",
            }
        )
        _drop("away")
        _until_each(
            {
                "mid": "status = 'running' AND calls >= 2",
                "doubt": "status = 'running' AND calls = 1 AND call_at IS NULL",
                "open": "status = 'running' AND calls = 0 AND call_at IS NOT NULL",
                "next": "status = 'queued'",
                "needy": "status = 'queued'",
            }
        )


def _drop(name: str) -> None:
    path = ROOT / f"{name}.json"
    path.write_text(json.dumps({**FILES, **PARKED, **JOINED}[name]))
    path.rename(ROOT / "inbox" / path.name)


def _one(query: str) -> Any:
    with contextlib.closing(
        sqlite3.connect(f"file:{ROOT}/.batchd/batchd.db?mode=ro", uri=True)
    ) as db:
        return db.execute(query).fetchone()[0]


def _until_each(states: Mapping[str, str]) -> None:
    wanted = " OR ".join(f"(name = '{name}' AND {state})" for name, state in states.items())
    _until(lambda: _one(f"SELECT count(*) FROM tasks WHERE {wanted}") == len(states))


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"this never came true; the spool is left in {ROOT}")
        time.sleep(0.01)


def _pack(kind: str) -> None:
    """Pack database, log and outbox; leave out what made them so."""
    if not kind:
        (ROOT / "outbox/live/stuck.json").rmdir()
    for script in (ROOT / "repos").glob("*/*.sh"):
        script.unlink()
    with tempfile.TemporaryDirectory() as folder:
        # Not through SQLite on the original: closing it would empty the log.
        for name in ("batchd.db", "batchd.db-wal"):
            shutil.copy(ROOT / ".batchd" / name, folder)
        with contextlib.closing(sqlite3.connect(Path(folder, "batchd.db"))) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
    name = {"": "store-v{}", "parked": "parked-v{}", "joined": "store-v{}-joined"}[kind]
    target = HERE / f"{name.format(version)}.tar.gz"
    with tarfile.open(target, "w:gz", compresslevel=9) as archive:
        for name in (".batchd/batchd.db", ".batchd/batchd.db-wal", "outbox", "repos"):
            archive.add(ROOT / name, name)
        if kind == "joined":
            archive.add(ROOT / ".batchd/packs", ".batchd/packs")
    shutil.rmtree(ROOT)
    sys.stdout.write(f"{target}: {target.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
