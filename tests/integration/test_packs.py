"""Directories that travel: workers that see nothing of the daemon's disk,
each in a mount namespace with an empty folder in its place.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zstandard
from loglines import logged
from patience import PATIENCE_S
from pools import LEASE_S, configured, drop, joined, nodes, processes, summary
from standin.record import save
from strangers import Stranger, stranger

from batchd import control
from batchd.demo.recordings import Recording
from batchd.records import Answer, ToolCall
from tests.conftest import Spool, stand_in

pytestmark = [
    pytest.mark.in_turns,
    pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace of its own takes root"),
]


@contextlib.contextmanager
def cluster(
    tmp_path: Path,
    commands: Mapping[str, tuple[str, ...]],
    *,
    latency: str = "0",
    lease_s: float = 2 * PATIENCE_S,
    more: str = "",
) -> Iterator[Spool]:
    """A spool whose tasks run these commands, one a turn, by their prompt.

    ``lease_s``: of its workers; a machine with much to do keeps one silent for seconds.
    """
    scripts, folder = tmp_path / "scripts", tmp_path / "spool"
    scripts.mkdir()
    folder.mkdir()
    for prompt, lines in commands.items():
        calls = [_call(turn, line) for turn, line in enumerate(lines)]
        save(
            scripts,
            Recording(first_prompt=prompt, model="demo", answers=(*calls, Answer(content="Done."))),
        )
    with stand_in("--recordings", str(scripts), "--latency", latency) as base_url:
        yield configured(folder, base_url, "demo", shared=False, lease_s=lease_s, more=more)


def _call(turn: int, command: str) -> Answer:
    calls = (ToolCall(f"call_{turn}", "shell", json.dumps({"command": command})),)
    return Answer(content="", tool_calls=calls, finish_reason="tool_calls")


def killed_at_work(spool: Spool, cache: Path) -> None:
    """Kill a daemon while a worker elsewhere is in the midst of its one task."""
    with spool.serving() as daemon, joined(spool, "n-one", cache=cache):
        drop(spool, 1)
        spool.eventually(lambda: _events(spool, "b/001") > 8)
        daemon.kill()
        daemon.wait()


def owned(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make a directory with files that belongs to an ordinary user."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    folder.mkdir(exist_ok=True)
    subprocess.run(["chown", "-R", "nobody:", folder], check=True)
    return folder


def ended(spool: Spool, **more: Any) -> dict[str, Any]:
    """Return the result of the one task of a batch that is dropped now."""
    drop(spool, 1, **more)
    summary(spool)
    return spool.result("b", "001")


def seen(folder: Path) -> dict[bytes, tuple[str, bytes]]:
    """Return what lies in a folder: of each path its mode, and what is in it, or where it leads."""
    found = {}
    for path in Path(folder).rglob("*"):
        its = path.lstat()
        held = b"" if path.is_dir() else path.read_bytes() if path.is_file() else b""
        if path.is_symlink():
            held = os.fsencode(path.readlink())
        found[os.fsencode(path.relative_to(folder))] = stat.filemode(its.st_mode), held
    return found


def test_a_task_without_a_shared_disk_leaves_its_files_at_home(tmp_path: Path) -> None:
    """What it wrote on another machine lies in its directory in the outbox,
    and the result names it.
    """
    lines = (
        "mkdir a; echo one > a/one; echo '#!' > run; chmod 755 run",
        "echo two >> a/one; rm run",
    )
    with cluster(tmp_path, {"write it": lines}) as spool, spool.serving():
        with joined(spool, "node7", cache=tmp_path / "cache") as worker:
            result = ended(spool)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE_S) == 0
        assert result["status"] == "completed", result
        assert (spool.folder / "outbox/b/001/a/one").read_text() == "one\ntwo\n"
        assert not (spool.folder / "outbox/b/001/run").exists()
        assert result["files"]["created"] == ["a/one"]
        assert (spool.folder / "outbox/b/001.jsonl").exists()
        packs = spool.folder / ".batchd/packs"
        spool.eventually(lambda: not [path for path in packs.iterdir() if path.is_file()])
    (came,) = logged(spool.folder / "daemon.log", "directory_came")
    assert came["packs"] == 2
    assert not list((tmp_path / "cache/work").iterdir())


ODD = r"""
ln -s /etc/passwd out; ln -s ../../.. up; ln -s run inside; printf x > "$(printf 'n\377me')"; mkdir empty
mkdir -p deep/er; echo d > deep/er/d; printf '#!/bin/sh\necho hi' > run; chmod 750 run; ln run twice
touch -d '2001-02-03 04:05:06.789' old; mkdir shut; echo s > shut/s; chmod 500 shut; echo r > ro; chmod 444 ro
printf 'a\nb' > "$(printf 'line\nbreak')"; echo dash > ./-n; mkfifo pipe; rm -rf gone; rm data/0; echo more >> data/1
rm -rf was_dir; echo now > was_dir; rm was_file; mkdir was_file; echo in > was_file/in; head -c 3000000 /dev/urandom > big
"""


def test_a_directory_comes_home_as_it_would_have_been(tmp_path: Path) -> None:
    """Links, modes, times, odd names, empty folders,
    what went and what became something else: as in place.
    """
    files = {
        **{f"data/{n}": f"{n}\n" for n in range(300)},
        "gone/x/y": "y",
        "was_dir/x": "x",
        "was_file": "f",
        "kept": "k",
    }
    with cluster(
        tmp_path, {"write it": (ODD, "chmod u+w shut; rm shut/s; echo t > shut/t; chmod 500 shut")}
    ) as spool:
        work = owned(spool.folder / "work", files)
        alike = owned(tmp_path / "alike", files)
        with spool.serving(), joined(spool, "node7", cache=tmp_path / "cache"):
            result = ended(spool, dir="work")
        assert result["status"] == "completed", result
    shutil.copytree(work, tmp_path / "seen", symlinks=True, ignore=lambda *_: ["pipe"])
    for line in (ODD, "chmod u+w shut; rm shut/s; echo t > shut/t; chmod 500 shut"):
        subprocess.run(["sh", "-c", line], cwd=alike, check=True)
    (alike / "pipe").unlink()  # what is no file, link or folder stays where it was made
    big = alike / "big"
    big.write_bytes((work / "big").read_bytes())
    assert seen(work) == seen(alike)
    assert (work / "old").stat().st_mtime_ns == (alike / "old").stat().st_mtime_ns
    assert (work / "run").stat().st_ino == (work / "twice").stat().st_ino
    assert {path.lstat().st_uid for path in work.rglob("*")} == {work.stat().st_uid}
    assert "kept" not in json.dumps(result["files"])


def test_a_task_goes_on_elsewhere_with_what_it_had_written(tmp_path: Path) -> None:
    """Its worker is killed in the middle:
    another machine has each file that a recorded command left, and no command runs twice.
    """
    lines = tuple(
        f"echo {n} >> notes; cp notes notes.{n}; rm -f notes.{n - 2}; sleep 0.1" for n in range(8)
    )
    with (
        cluster(tmp_path, {"write it": lines}, latency="0.05", lease_s=LEASE_S) as spool,
        spool.serving(),
    ):
        with joined(spool, "n-one", cache=tmp_path / "c1"):
            drop(spool, 1)
            spool.eventually(lambda: _events(spool, "b/001") > 8)
            os.kill(nodes(spool)["n-one"], signal.SIGKILL)
            with joined(spool, "n-two", cache=tmp_path / "c2"):
                summary(spool)
        result = spool.result("b", "001")
        assert result["status"] == "completed", result
        notes = [int(line) for line in (spool.folder / "outbox/b/001/notes").read_text().split()]
    # The command in flight may be lost with its machine:
    # then the model learned that, and no event believes in its files.
    assert notes == sorted(set(notes))
    assert len(notes) >= 7
    assert result["attempts"] == 2


def _running(spool: Spool) -> Any:
    """Return what tasks at work do."""
    return control.request(spool.folder / ".batchd", "status")["running"]


def _events(spool: Spool, task: str) -> int:
    """Return how many events of a task are durable."""
    return len(spool.batchd("logs", task, "--json").stdout.splitlines())


def test_a_frozen_node_changes_nothing_at_home(tmp_path: Path) -> None:
    """It thaws after its task is done elsewhere: its packs count nowhere."""
    lines = ("echo one >> notes", "sleep 0.5; echo two >> notes", "echo three >> notes")
    with (
        cluster(tmp_path, {"write it": lines}, latency="0.1", lease_s=LEASE_S) as spool,
        spool.serving(),
    ):
        with joined(spool, "n-one", cache=tmp_path / "c1") as one:
            drop(spool, 1)
            spool.eventually(lambda: _events(spool, "b/001") > 3)
            frozen = processes("n-one", spool)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            with joined(spool, "n-two", cache=tmp_path / "c2"):
                summary(spool)
                for pid in frozen:
                    with contextlib.suppress(
                        ProcessLookupError
                    ):  # its keeper, once it goes on, ends the rest
                        os.kill(pid, signal.SIGCONT)
                one.communicate(timeout=PATIENCE_S)
        notes = (spool.folder / "outbox/b/001/notes").read_text().split()
    assert notes[-1] == "three"
    assert len(notes) == len(set(notes))


def test_a_copy_travels_and_its_patch_is_at_home(tmp_path: Path) -> None:
    """It is sent once a worker, and the patch is made there as here."""
    with cluster(tmp_path, {"write it": ("echo 3 >> a; rm b; echo new > c",)}) as spool:
        owned(spool.folder / "work", {"a": "1\n2\n", "b": "b\n", "d/e": "e\n"})
        with spool.serving(), joined(spool, "node7", cache=tmp_path / "cache"):
            drop(spool, 2, dir="work", workspace="copy")
            summary(spool)
        for name in ("001", "002"):
            result = spool.result("b", name)
            assert result["status"] == "completed", result
            changes = {each["path"]: (each["added"], each["removed"]) for each in result["changes"]}
            assert changes == {"a": (1, 0), "b": (0, 1), "c": (1, 0)}
            assert (spool.folder / f"outbox/b/{name}.patch").exists()
            there = spool.folder / "outbox/b" / name
            assert sorted(p.name for p in there.rglob("*")) == ["a", "c", "d", "e"]
            assert (there / "a").read_text() == "1\n2\n3\n"
    assert (spool.folder / "work/b").exists()


def test_a_clone_travels(tmp_path: Path) -> None:
    """With its objects; what it committed there can be taken from its folder here."""
    with cluster(
        tmp_path, {"write it": ("echo 3 >> a; git commit -qam three; git log --oneline | wc -l",)}
    ) as spool:
        repo = spool.folder / "repo"
        repo.mkdir()
        run = ["git", "-c", "user.name=m", "-c", "user.email=m@m"]
        (repo / "a").write_text("1\n")
        for words in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-qm", "one")):
            subprocess.run([*run, *words], cwd=repo, check=True)
        owned(repo, {})
        with spool.serving(), joined(spool, "node7", cache=tmp_path / "cache"):
            result = ended(spool, repo="repo")
        assert result["status"] == "completed", result
        assert (spool.folder / "outbox/b/001.patch").exists()
        there = spool.folder / "outbox/b/001"
        said = subprocess.run(
            ["git", "-c", "safe.directory=*", "log", "--format=%s", "batchd/b/001"],
            cwd=there,
            capture_output=True,
            text=True,
            check=True,
        )
    assert said.stdout.split() == ["three", "one"]


def test_a_worker_of_this_machine_takes_over_what_was_written_elsewhere(tmp_path: Path) -> None:
    """A task that was parked elsewhere goes on here, in its own directory, as it was left."""
    lines = tuple(f"echo {n} >> notes; sleep 0.1" for n in range(6))
    with cluster(tmp_path, {"write it": lines}, latency="0.05", lease_s=LEASE_S) as spool:
        with spool.serving(), joined(spool, "n-one", cache=tmp_path / "c1") as one:
            drop(spool, 1)
            spool.eventually(lambda: _events(spool, "b/001") > 6)
            one.send_signal(signal.SIGTERM)
            one.communicate(timeout=PATIENCE_S)
        text = (spool.folder / "config.toml").read_text()
        (spool.folder / "config.toml").write_text(text.replace("processes = 0", "processes = 1"))
        with spool.serving():
            summary(spool)
        assert (spool.folder / "outbox/b/001/notes").read_text().split() == [
            str(n) for n in range(6)
        ]
        assert spool.result("b", "001")["status"] == "completed"


def test_many_steps_are_few_packs(tmp_path: Path) -> None:
    """After some packs one takes their place, so that a task of many steps leaves no long chain;
    nothing is lost by that.
    """
    lines = tuple(
        f"echo {n} > f{n % 10}; rm -f f{(n + 5) % 10}; echo {n} >> all" for n in range(40)
    )
    with cluster(tmp_path, {"write it": lines}, latency="0.02") as spool, spool.serving():
        with joined(spool, "n-one", cache=tmp_path / "c1"):
            drop(spool, 1)
            chain = spool.folder / ".batchd/packs/tasks/b.001"
            most = [0]

            def over() -> bool:
                with contextlib.suppress(FileNotFoundError, ValueError):
                    found = json.loads(chain.read_bytes())
                    most.append(len(found["chain"]["changes"]))
                    packs = [p for p in chain.parents[1].iterdir() if p.is_file()]
                    assert len(packs) <= 34
                return (spool.folder / "outbox/b/summary.json").exists()

            spool.eventually(over)
        there = spool.folder / "outbox/b/001"
        assert 20 < max(most) <= 32
        assert (there / "all").read_text().split() == [str(n) for n in range(40)]
        found = {p.name: p.read_text().strip() for p in there.glob("f*")}
        assert found == {f"f{n % 10}": str(n) for n in range(35, 40)}
    (came,) = logged(spool.folder / "daemon.log", "directory_came")
    assert came["packs"] == 40


def test_many_files_and_large_ones_travel(tmp_path: Path) -> None:
    """Both ways: ten thousand small ones, and one that takes many parts."""
    line = "head -c 20000000 /dev/urandom > large; for d in $(seq 20); do mkdir d$d; cd d$d; touch $(seq 500); cd ..; done; sha256sum large > sum"
    with cluster(
        tmp_path, {"write it": (line, "rm -rf d7; sha256sum -c sum && cmp in out")}
    ) as spool:
        work = owned(spool.folder / "work", {"in": os.urandom(5 << 20)})
        shutil.copy(work / "in", work / "out")
        owned(work, {})
        with spool.serving(), joined(spool, "n-one", cache=tmp_path / "c1"):
            result = ended(spool, dir="work", check="sha256sum -c sum && cmp in out")
        assert result["status"] == "completed", result
        subprocess.run(["sha256sum", "-c", "sum"], cwd=work, check=True, capture_output=True)
        assert sum(len([*folder.iterdir()]) for folder in work.glob("d*")) == 19 * 500


def test_what_is_too_much_to_travel_ends_the_task(tmp_path: Path) -> None:
    """As in place: its disk is full."""
    lines = ("head -c 700000 /dev/urandom > a", "rm a; head -c 700000 /dev/urandom > b")
    more = "[sandbox]\nmax_disk_bytes = 1048576\n"
    with (
        cluster(tmp_path, {"write it": lines}, more=more) as spool,
        spool.serving(),
        joined(spool, "n-one", cache=tmp_path / "c1"),
    ):
        result = ended(spool)
    assert (result["status"], result["reason"]) == ("error", "disk"), result
    assert "max_disk_bytes" in result["error"]["message"]


def test_a_daemon_that_is_killed_believes_in_nothing_that_is_gone(tmp_path: Path) -> None:
    """With its worker, and the worker's cache:
    the next one goes on with what it had, and leaves no pack behind.
    """
    lines = tuple(f"echo {n} >> notes; sleep 0.1" for n in range(8))
    with cluster(tmp_path, {"write it": lines}, latency="0.05", lease_s=LEASE_S) as spool:
        killed_at_work(spool, tmp_path / "c1")
        shutil.rmtree(tmp_path / "c1")
        stray = spool.folder / ".batchd/packs" / ("0" * 64)
        stray.write_bytes(b"left by a crash")
        with spool.serving(), joined(spool, "n-two", cache=tmp_path / "c2"):
            spool.eventually(lambda: not stray.exists())
            summary(spool)
            notes = [int(n) for n in (spool.folder / "outbox/b/001/notes").read_text().split()]
            shelf = spool.folder / ".batchd/packs"
            spool.eventually(lambda: not [p for p in shelf.iterdir() if p.is_file()])
        assert spool.result("b", "001")["status"] == "completed"
    assert notes == sorted(set(notes))
    assert len(notes) >= 7


def test_tasks_of_one_directory_see_each_other(tmp_path: Path) -> None:
    """The second begins with what the first has left, wherever both worked;
    what lies there and was not touched stays.
    """
    with cluster(tmp_path, {"write it": ("cat notes; echo x >> notes",)}) as spool:
        work = owned(spool.folder / "work", {"notes": "", "other": "o"})
        with spool.serving(), joined(spool, "n-one", cache=tmp_path / "c1"):
            drop(spool, 3, dir="work")
            summary(spool)
        assert (work / "notes").read_text() == "x\nx\nx\n"
        assert (work / "other").read_text() == "o"


def test_what_its_owner_does_meanwhile_stays(tmp_path: Path) -> None:
    """Files that the task did not change are as their owner has left them;
    those that both changed are the task's.
    """
    lines = ("sleep 0.3; echo task > both", "sleep 0.3; rm gone; echo new > new")
    with cluster(tmp_path, {"write it": lines}) as spool:
        work = owned(spool.folder / "work", {"both": "", "mine": "", "gone": "g"})
        with spool.serving(), joined(spool, "n-one", cache=tmp_path / "c1"):
            drop(spool, 1, dir="work")
            spool.eventually(lambda: _events(spool, "b/001") > 1)
            owned(work, {"both": "owner", "mine": "owner", "fresh": "owner", "gone": "owner"})
            summary(spool)
        found = {p.name: p.read_text().strip() for p in work.iterdir()}
    assert found == {"both": "task", "mine": "owner", "fresh": "owner", "new": "new"}


def test_what_goes_on_in_the_background_comes_home_too(tmp_path: Path) -> None:
    """A file that something wrote between two commands,
    or while the model was asked, and what it wrote last.
    """
    lines = (
        "(while sleep 0.02; do date +%s.%N >> ticks; done) > /dev/null 2>&1 &",
        *(f": {n}" for n in range(4)),
        "cp ticks seen",
    )
    with cluster(tmp_path, {"write it": lines}, latency="0.1") as spool, spool.serving():
        with joined(spool, "n-one", cache=tmp_path / "c1"):
            drop(spool, 1)
            summary(spool)
        there = spool.folder / "outbox/b/001"
        seen_then, ticks = ((there / name).read_text() for name in ("seen", "ticks"))
    assert len(seen_then.splitlines()) > 5
    assert ticks.startswith(seen_then)


def test_a_full_disk_at_home_is_waited_for(tmp_path: Path) -> None:
    """What a command changed is sent again until the daemon's disk takes it;
    its event counts no sooner.
    """
    line = "head -c 3000000 /dev/urandom > large; sha256sum large > sum"
    with cluster(tmp_path, {"write it": (line, "sha256sum -c sum")}) as spool:
        packs = spool.folder / ".batchd/packs"
        packs.mkdir(parents=True)
        (spool.folder / ".batchd").chmod(0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", packs], check=True)
        try:
            with spool.serving(), joined(spool, "n-one", cache=tmp_path / "c1"):
                drop(spool, 1)
                spool.eventually(lambda: "cannot be kept" in str(_running(spool)))
                assert not logged(spool.folder / "daemon.log", "tool_ran")
                subprocess.run(["mount", "-o", "remount,size=50m", packs], check=True)
                summary(spool)
        finally:
            subprocess.run(["umount", packs], check=True)
        there = spool.folder / "outbox/b/001"
        subprocess.run(["sha256sum", "-c", "sum"], cwd=there, check=True, capture_output=True)
        assert spool.result("b", "001")["status"] == "completed"


def test_what_cannot_be_laid_out_stays_until_it_can(tmp_path: Path) -> None:
    """Its directory has gone meanwhile: the task has its result,
    `status` says what is to be done, and the next daemon does it.
    """
    with cluster(tmp_path, {"write it": ("sleep 0.5; echo x > x",)}) as spool:
        work = owned(spool.folder / "work", {"a": "a"})
        chain = spool.folder / ".batchd/packs/tasks/b.001"
        with spool.serving(), joined(spool, "n-one", cache=tmp_path / "c1"):
            drop(spool, 1, dir="work")
            spool.eventually(lambda: _events(spool, "b/001") > 1)
            shutil.rmtree(work)
            summary(spool)
            (said,) = logged(spool.folder / "daemon.log", "directory_trouble")
            assert "its packs stay" in said["message"]
            assert "cannot be written" in spool.batchd("status").stdout.replace("\n", " ")
            assert chain.exists()
        owned(spool.folder / "work", {"a": "a"})
        with spool.serving():
            spool.eventually(lambda: not chain.exists())
            assert (work / "x").read_text() == "x\n"
            shelf = spool.folder / ".batchd/packs"
            spool.eventually(lambda: not [p for p in shelf.iterdir() if p.is_file()])
            assert "cannot be written" not in spool.batchd("status").stdout.replace("\n", " ")


def test_a_chain_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    """Its task ends with an error that names the file,
    in place of going on with what its directory was; no pack goes.
    """
    lines = tuple(f"echo {n} >> notes; sleep 0.1" for n in range(8))
    with cluster(tmp_path, {"write it": lines}, latency="0.05", lease_s=LEASE_S) as spool:
        killed_at_work(spool, tmp_path / "c1")
        shelf = spool.folder / ".batchd/packs"
        chain = shelf / "tasks/b.001"
        chain.write_text("{")
        before = {path.name for path in shelf.iterdir()}
        with spool.serving(), joined(spool, "n-two", cache=tmp_path / "c2"):
            result = ended(spool)
        assert before <= {path.name for path in shelf.iterdir()}
    assert (result["status"], result["reason"]) == ("error", "sandbox")
    assert str(chain) in result["error"]["message"]


def test_a_cancel_ends_the_packing_of_a_directory(tmp_path: Path) -> None:
    """Where that would never come to an end, the task is cancelled all the same,
    and what packs it is gone.
    """
    with cluster(tmp_path, {"write it": ("cat a",)}) as spool:
        work = owned(spool.folder / "work", {"a": "a"})
        with (work / "hole").open("wb") as file:
            file.truncate(8 << 30)  # to read it takes seconds: time enough to find who does
        with spool.serving() as daemon, joined(spool, "node7", cache=tmp_path / "cache"):
            batch = spool.write("b.json", [{"first_prompt": "write it", "dir": "work"}])
            batch.rename(spool.folder / "inbox" / batch.name)
            spool.eventually(lambda: _packers(daemon.pid))
            (packer,) = _packers(daemon.pid)
            os.kill(packer, signal.SIGSTOP)
            assert spool.batchd("cancel", "b").returncode == 0
            spool.eventually((spool.folder / "outbox/b/summary.json").exists)
            assert not _packers(daemon.pid)
        assert spool.result("b", "001")["status"] == "cancelled"
        assert not [*(spool.folder / ".batchd/packs/tasks").iterdir()]


def _packers(daemon: int) -> list[int]:
    """Return the daemon's children that work on directories."""
    found = []
    for child in Path(f"/proc/{daemon}/task").glob("*/children"):
        for pid in map(int, child.read_text().split()):
            with contextlib.suppress(FileNotFoundError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                found += [pid] if b"batchd.workspace" in line else []
    return found


def test_a_broken_pack_ends_the_task_and_no_other(tmp_path: Path) -> None:
    """One that a machine's disk has spoilt:
    an error that says so, and the next task gets it once more.
    """
    cache = tmp_path / "cache"
    with cluster(tmp_path, {"write it": ("cat a",)}) as spool:
        owned(spool.folder / "work", {"a": "a"})
        with spool.serving(), joined(spool, "node7", cache=cache):
            assert ended(spool, dir="work")["status"] == "completed"
            (pack,) = (cache / "packs").iterdir()
            pack.write_bytes(b"x" * pack.stat().st_size)
            found = []
            for name in ("c", "d"):
                batch = spool.write(f"{name}.json", [{"first_prompt": "write it", "dir": "work"}])
                batch.rename(spool.folder / "inbox" / batch.name)
                spool.eventually((spool.folder / f"outbox/{name}/summary.json").exists)
                found.append(spool.result(name, "001"))
    assert found[0]["status"] == "error", found[0]
    assert found[0]["reason"] == "workspace"
    assert "it is not a pack" in found[0]["error"]["message"]
    assert found[1]["status"] == "completed", found[1]


def test_no_command_sees_the_packs_of_others(tmp_path: Path) -> None:
    """A worker whose cache lies where commands look gets no task, and says why."""
    with (
        cluster(tmp_path, {"write it": ("true",)}) as spool,
        tempfile.TemporaryDirectory(dir="/usr/local") as place,
        spool.serving(),
        joined(spool, "n-one", cache=Path(place)) as worker,
    ):
        _, said = worker.communicate(timeout=PATIENCE_S)
        assert worker.returncode == 3
        assert f"--cache: {place} lies in /usr, which commands see" in said


# Strangers


def sent(run: dict[str, Any], data: bytes, offset: int = 0, **pack: Any) -> bytes:
    """Return what says that a task has changed something;
    ``pack``: what is said of it instead of what is so.
    """
    said = {"digest": hashlib.sha256(data).hexdigest(), "size": len(data), "plain": 1 << 20, **pack}
    about = {"ref": run["ref"], "attempt": run["attempt"], "pack": said, "offset": offset}
    return json.dumps(["PackSent", {**about, "data": base64.b64encode(data).decode()}]).encode()


def lies(who: Stranger, run: dict[str, Any], data: bytes, offset: int = 0, **pack: Any) -> None:
    """Say so."""
    who.frame(sent(run, data, offset, **pack))


def wanted(run: dict[str, Any], digest: str = "0" * 64) -> dict[str, Any]:
    """Return what asks for a pack."""
    return {"ref": run["ref"], "attempt": run["attempt"], "digest": digest, "offset": 0}


def pack_of(*names: str, removed: bytes = b"", kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a pack with such entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            tar.addfile(entry)
    lists = len(removed).to_bytes(8, "big") + removed + (0).to_bytes(8, "big")
    return zstandard.compress(b"batchd-pack 1\n" + lists + out.getvalue())


BOMB = zstandard.compress(b"batchd-pack 1\n" + (0).to_bytes(16, "big") + b"\0" * (64 << 20))
#: What no worker of ours does with packs.
LIES: dict[str, Callable[[Stranger, dict[str, Any]], None]] = {
    "hash": lambda who, run: lies(who, run, pack_of("./a"), digest="0" * 64),
    "no hash": lambda who, run: lies(who, run, pack_of("./a"), digest="../../../etc/passwd"),
    "size": lambda who, run: lies(who, run, pack_of("./a"), size=3),
    "less than nothing": lambda who, run: lies(who, run, pack_of("./a"), size=-1),
    "much": lambda who, run: lies(who, run, pack_of("./a"), plain=1 << 60),
    "middle": lambda who, run: lies(who, run, pack_of("./a"), offset=5),
    "junk": lambda who, run: lies(who, run, b"junk" * 100),
    "bomb": lambda who, run: lies(who, run, BOMB),
    "names": lambda who, run: lies(who, run, pack_of(removed=b"../../x\0")),
    "up": lambda who, run: lies(who, run, pack_of("./a/../../x")),
    "root": lambda who, run: lies(who, run, pack_of("/etc/cron.d/x")),
    "device": lambda who, run: lies(who, run, pack_of("./x", kind=tarfile.CHRTYPE)),
    "twice": lambda who, run: who.frame(*[sent(run, pack_of("./a"), size=10**6)] * 2),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("lie", LIES)
def test_who_sends_what_is_no_pack_is_sent_away(
    tmp_path: Path, model_server: str, lie: str
) -> None:
    """The daemon goes on, nothing of it stays, and another worker does the task."""
    spool = configured(tmp_path, model_server, shared=False)
    with spool.serving() as daemon:
        with stranger(spool) as (who, run):
            LIES[lie](who, run)
            assert not who.hear("nothing")
        assert daemon.poll() is None
        with joined(spool, "node7"):
            assert summary(spool)["counts"]["completed"] == 1
        shelf = spool.folder / ".batchd/packs"
        spool.eventually(lambda: not [p for p in shelf.iterdir() if p.is_file()])
    (died,) = logged(spool.folder / "daemon.log", "worker_died")
    assert "no worker of batchd" in died["cause"]


def test_a_worker_gets_the_packs_of_its_task_alone(tmp_path: Path, model_server: str) -> None:
    """Whatever it asks for: another digest, a path, another offset."""
    spool = configured(tmp_path, model_server, shared=False)
    with spool.serving(), stranger(spool) as (who, run):
        for digest in ("0" * 64, "../batchd.db", ""):
            who.say("PackWanted", **wanted(run, digest))
            assert who.hear("PackTaken")["message"] == "[Errno 2] its chain has no such pack"


def test_what_a_task_may_put_on_the_disk_bounds_its_packs(
    tmp_path: Path, model_server: str
) -> None:
    """A larger one is refused, before any of it is kept."""
    more = "[sandbox]\nmax_disk_bytes = 1048576\n"
    spool = configured(tmp_path, model_server, shared=False, more=more)
    with spool.serving(), stranger(spool) as (who, run):
        lies(who, run, b"x" * 100, size=2 << 20)
        taken = who.hear("PackTaken")
        assert taken["errno"] == errno.EFBIG
        assert "[sandbox] max_disk_bytes" in taken["message"]


def test_what_a_stranger_has_changed_is_the_directorys_alone(
    tmp_path: Path, model_server: str
) -> None:
    """A link that leads elsewhere, and a file behind it:
    unpacked in the sandbox, nothing outside of it is written.
    """
    spool = configured(tmp_path, model_server, shared=False)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        link = tarfile.TarInfo("./link")
        link.type, link.linkname = tarfile.SYMTYPE, str(spool.folder)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("./link/planted"))
    data = zstandard.compress(b"batchd-pack 1\n" + (0).to_bytes(16, "big") + out.getvalue())
    with spool.serving():
        with stranger(spool) as (who, run):
            lies(who, run, data)
            assert who.hear("PackTaken")["errno"] == 0
        assert not spool.batchd("cancel", "b").returncode
        summary(spool)
        assert not (spool.folder / "planted").exists()
        assert (spool.folder / "outbox/b/001.json").exists()
