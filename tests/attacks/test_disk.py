"""What a task has put on the disk when it ends, against what it may have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from attacking import AS_ROOT, NOBODY_ID, Attack, shell
from camp import Camp, does, says
from limiting import Limited, place
from patience import PATIENCE_S, until

pytestmark = pytest.mark.in_turns

MB = 1 << 20
LIMITS = f"\n[sandbox]\nmax_disk_bytes = {60 * MB}\ntmp_bytes = {40 * MB}\n"


def fills(path: str, megabytes: int) -> str:
    """Return a command that writes so many megabytes, and ends."""
    return f"head -c {megabytes * MB} /dev/zero > {path}"


def left_in_tmp(camp: Camp) -> list[Path]:
    """Return what lies in the folder of all tasks' own /tmp."""
    return list((camp.folder / ".batchd/tmp").iterdir())


@pytest.mark.stopped_by("last look")
@pytest.mark.parametrize("where", ["directory", "tmp", "named"])
def test_a_task_that_is_full_when_it_ends_has_not_completed(camp: Camp, where: str) -> None:
    """Whatever it says, passes and was judged: ``error``, for ``disk``;
    its /tmp is emptied, and nothing in its directory is.
    """
    path, size = {"tmp": ("/tmp/fill", 50)}.get(where, ("fill", 80))
    task: dict[str, Any] = {"first_prompt": "fill", "check": "true"}
    folder = camp.folder / "outbox/batch/001"
    if where == "named":
        folder = camp.workplace(camp.folder / "site")
        camp.own(folder / "precious", "x" * 1000)
        task["dir"] = "site"
    settings = f'{LIMITS}[workspace]\nroot = "{camp.folder}"\n'
    with camp.answering({"fill": [does(fills(path, size)), says("Done.")]}, settings):
        result = camp.play([task])["001"]
        camp.eventually(lambda: not left_in_tmp(camp))
    assert (result["status"], result["reason"]) == ("error", "disk")
    limit = "tmp_bytes allows 40 MiB" if where == "tmp" else "max_disk_bytes allows 60 MiB"
    assert limit in result["error"]["message"]
    if where != "tmp":
        assert (folder / "fill").stat().st_size > 0
    if where == "named":
        assert (folder / "precious").read_text() == "x" * 1000


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("kept measure")
def test_a_restart_forgives_nothing(camp: Camp) -> None:
    """What a directory held is known from the task's beginning:
    what was written before a crash counts after it.
    """
    camp.workplace(camp.folder / "site")
    acts = [
        does(fills("a", 40)),
        does("touch here; sleep 1000"),
        does(fills("b", 40)),
        says("Done."),
    ]
    settings = f'{LIMITS}[workspace]\nroot = "{camp.folder}"\n'
    with camp.answering({"fill": acts}, settings):
        task = {"first_prompt": "fill", "dir": "site"}
        camp.batchd("submit", camp.write("batch.json", [task]))
        camp.eventually((camp.folder / "site/here").exists)
        os.kill(json.loads(camp.batchd("status", "--json").stdout)["daemon"]["pid"], signal.SIGKILL)
        camp.eventually(lambda: not camp.answers())
        with camp.serving():
            camp.eventually((camp.folder / "outbox/batch/summary.json").exists)
    result = camp.result("batch", "001")
    assert (result["status"], result["reason"]) == ("error", "disk")


@pytest.fixture
def limited(attack: Attack, source: Path) -> Iterator[Limited]:
    """Commands of one task of a batchd that runs as root or as an ordinary user."""
    with place(attack, source) as limited:
        yield limited


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("first look")
def test_the_first_command_is_not_quicker_than_the_first_look(limited: Limited) -> None:
    """Where it takes a while to find out what a directory holds,
    its first command waits for that, and all that it writes counts.
    """
    # Where it comes last: in the folder that is listed first.
    write = fills('"$(ls -U | head -1)/fill"', 120)
    limited.folder.mkdir()
    names = _many_files(limited.folder, 160, 500)
    for path in (limited.folder, *names) if AS_ROOT else ():
        os.chown(path, NOBODY_ID, NOBODY_ID)
    # After a look that took long, the next one comes up to a minute later.
    wait = f"sleep {PATIENCE_S / 2}"
    wrote, after = limited.run(write, wait, policy={"max_disk_bytes": 60 * MB}, fresh=False)
    assert wrote.excess or after.excess


def _many_files(folder: Path, folders: int, files: int) -> list[Path]:
    """Make folders full of names in a directory; return them."""
    made = []
    for number in range(folders):
        made.append(folder / f"d{number}")
        made[-1].mkdir()
        (made[-1] / "0").touch()
        for name in range(1, files):
            os.link(made[-1] / "0", made[-1] / str(name))
    return made


@pytest.fixture
def small(camp: Camp) -> Iterator[Path]:
    """A small disk for what a camp's daemon keeps, and for its outbox."""
    disk, kept = camp.folder / "small", (".batchd", "outbox")
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=96m,mode=755", "batchd-test", disk)
    try:
        for name in kept:
            camp.own(camp.folder / name)
            _mount("--bind", camp.own(disk / name), camp.folder / name)
        (disk / ".batchd").chmod(0o700)
        warm.see_mounts()
        yield disk
    finally:
        for name in (*kept, "small"):
            subprocess.run(["umount", "-l", camp.folder / name], check=False)


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


def _room(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


@pytest.mark.skipif(not AS_ROOT, reason="mounting a small disk takes root")
@pytest.mark.usefixtures("by_turns")
@pytest.mark.stopped_by("ballast")
def test_a_task_that_fills_the_disk_is_ended_all_the_same(camp: Camp, small: Path) -> None:
    """`cancel` goes through, and ends it, though it takes at once whatever room there is;
    with room again, all is as ever.
    """
    ballast, folder = small / ".batchd/batchd.db-ballast", camp.folder / "outbox/batch"
    with camp.answering({"fill": [does(shell("filling.py")), says("Done.")]}):
        until(lambda: ballast.exists() and ballast.stat().st_blocks * 512 >= 8 * MB)
        camp.batchd("submit", camp.write("batch.json", [{"first_prompt": "fill"}]))
        camp.eventually(lambda: (folder / "001/fill").exists() and not _room(small))
        cancelled = camp.batchd("cancel", "batch")
        assert (cancelled.returncode, cancelled.stderr) == (0, "")
        # It takes nothing any more, and what it took is there: that is its directory.
        (folder / "001/fill").unlink()
        camp.eventually((folder / "summary.json").exists)
        assert _room(small) > 60 * MB
    result = json.loads((folder / "001.json").read_text())
    assert (result["status"], result["reason"]) == ("cancelled", "user")
