"""A task's /tmp: it lasts as long as the task, and leads nowhere else."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import AS_ROOT, Attack, shell
from limiting import Limited, place

from batchd import trees

pytestmark = pytest.mark.in_turns


@pytest.fixture
def limited(attack: Attack, source: Path) -> Iterator[Limited]:
    """Commands of one task of a batchd that runs as root or as an ordinary user."""
    with place(attack, source) as limited:
        yield limited


@pytest.mark.stopped_by("lasting tmp")
def test_tmp_lasts_over_commands_and_over_a_new_start(limited: Limited) -> None:
    """What one command leaves in /tmp, its home, the next one finds,
    also after the place was closed; programs run there.
    """
    *_, found = limited.run(
        'echo kept > ~/file; cp /bin/true /tmp/program; [ "$HOME" = /tmp ] && mkdir -p /var/tmp/sub',
        None,
        "cat /tmp/file && /tmp/program && cd /tmp/sub && stat -c %a /tmp",
    )
    assert (found.exit_code, found.output) == (0, "kept\n1777\n")
    assert "/tmp" not in limited.facts
    assert stat.S_IMODE(limited.tmp.parent.stat().st_mode) == 0o700


@pytest.mark.stopped_by("private tmp")
def test_tmp_is_not_reached_by_others(limited: Limited) -> None:
    """Who is no part of batchd cannot enter it:
    setuid programs and sockets of a task are for no other user.
    """
    # As batchd's state is not; but it is not to hang on that alone.
    limited.tmp.parents[1].chmod(0o755)
    limited.run("cp /bin/id /tmp/id; chmod 777 /tmp/id")
    if not AS_ROOT:
        return
    other = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "sh", "-c", '"$0"']
    ended = subprocess.run([*other, limited.tmp / "id"], capture_output=True, check=False)
    assert ended.returncode != 0
    assert b"Permission denied" in ended.stderr


@pytest.mark.stopped_by("opened tmp")
def test_a_closed_tmp_is_opened_again_and_a_link_in_its_place_is_refused(limited: Limited) -> None:
    """``chmod 0 /tmp`` locks no process out for ever;
    and batchd enters no link that stands where it was.
    """
    closed, after = limited.run("chmod 0 /tmp; echo $?", "echo x > /tmp/x && cat /tmp/x")
    if closed.output == "0\n":  # its own, as an ordinary user
        assert after.exit_code != 0
    *_, again = limited.run(None, "echo x > /tmp/x && cat /tmp/x")
    assert again.output == "x\n"
    trees.remove(limited.tmp)
    elsewhere = limited.folder.parent / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    limited.tmp.symlink_to(elsewhere)
    with pytest.raises(AssertionError, match="/tmp cannot be made"):
        limited.run("ls /tmp")
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    limited.tmp.unlink()


@pytest.mark.stopped_by("watch")
def test_tmp_has_its_size(limited: Limited) -> None:
    """Many files in /tmp end their command; then it can be emptied."""
    policy = {"tmp_bytes": 20 << 20}
    fill = "i=0; while :; do i=$((i+1)); head -c 2000000 /dev/zero > /tmp/f$i; sleep 0.02; done"
    over, empty, after = limited.run(fill, "rm /tmp/f*", "echo y > /tmp/y", policy=policy)
    assert over.killed
    assert "its /tmp holds" in over.excess
    assert "[sandbox] tmp_bytes allows 20 MiB" in over.excess
    assert (empty.exit_code, after.exit_code, after.excess) == (0, 0, "")


@pytest.mark.stopped_by("removal")
def test_what_a_task_leaves_is_removed_whatever_it_is(limited: Limited) -> None:
    """3,000 levels, closed folders, odd names, FIFOs, sockets, links out:
    all of it goes, nothing else does, with few descriptors.
    """
    outside = limited.folder.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    limited.run(shell("leaving.sh", outside), shell("descending.py"))
    assert len(os.listdir(limited.tmp)) == 7
    limited.drive("removing.py", limited.tmp)
    assert not limited.tmp.exists()
    assert (outside / "precious").read_text() == "x"
