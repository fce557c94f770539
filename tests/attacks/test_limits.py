"""What commands use is counted over all of their processes together, and ends there."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import AS_ROOT, NOBODY_ID, Attack, shell
from limiting import Limited, place
from patience import PATIENCE_S, until

pytestmark = [pytest.mark.in_turns, pytest.mark.usefixtures("by_turns")]

MB = 1 << 20


@pytest.fixture
def limited(attack: Attack, source: Path) -> Iterator[Limited]:
    """Commands of one task of a batchd that runs as root or as an ordinary user."""
    with place(attack, source) as limited:
        yield limited


@pytest.mark.stopped_by("watch")
def test_memory_is_counted_over_all_processes(limited: Limited) -> None:
    """Four processes, each within the limit of one, are killed for what they have together;
    the next command is unharmed.
    """
    four = f"for i in 1 2 3 4; do {shell('taking.py', 120, 60)} & done; wait"
    over, within, after = limited.run(
        four,
        shell("taking.py", 120, 1.2),
        "echo alive",
        policy={"max_memory_bytes": 300 * MB},
    )
    assert over.killed
    assert over.exit_code == 137
    assert over.excess.endswith("[sandbox] max_memory_bytes allows 300 MiB")
    assert over.seconds < 60
    assert (within.exit_code, within.output, within.excess) == (0, "has it\n", "")
    assert (after.exit_code, after.output) == (0, "alive\n")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("fair memory")
def test_shared_memory_counts_once_and_files_on_disk_do_not(limited: Limited) -> None:
    """Forks that share their parent's memory,
    and a large file mapped by many, are no reason to kill.
    """
    (end,) = limited.run(shell("shared.py", 2), policy={"max_memory_bytes": 300 * MB})
    assert (end.exit_code, end.output, end.excess) == (0, "", "")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("watch")
def test_memory_that_is_not_mapped_counts_too(limited: Limited) -> None:
    """Files in memory, which no process has mapped, are found by their descriptors."""
    (end,) = limited.run(shell("memfiles.py"), policy={"max_memory_bytes": 300 * MB})
    assert end.killed
    assert "max_memory_bytes" in end.excess


@pytest.mark.stopped_by("processes")
def test_processes_are_counted(limited: Limited) -> None:
    """A fork bomb meets the limit of its own command,
    whichever user it runs as, and nothing of it is left.
    """
    bomb, after = limited.run(
        "b() { b | b & }; b; sleep 5", "ls -d /proc/[0-9]* | wc -l", policy={"max_processes": 24}
    )
    assert "Resource temporarily unavailable" in bomb.output or "max_processes" in bomb.excess
    assert int(after.output) < 6
    (crowd,) = limited.run(
        "for i in $(seq 40); do sleep 20 & done 2>&1; wait",
        policy={"max_processes": 24},
        timeout_s=8,
    )
    refused = "Resource temporarily unavailable" in crowd.output
    assert refused or crowd.killed
    if crowd.killed:  # as root the kernel counts those of all tasks together
        words = r"it had \d+ processes and threads at a time; \[sandbox\] max_processes allows 24"
        assert re.fullmatch(words, crowd.excess)


@pytest.mark.long
@pytest.mark.stopped_by("watch")
def test_processor_time_is_counted_over_all_processes(limited: Limited) -> None:
    """Processes that take turns, none of them for long, use up the time of their command;
    so do those that are not waited for.
    """
    for command in (shell("turns.sh"), shell("unwaited.py")):
        (end,) = limited.run(command, policy={"max_cpu_s": 1.0}, timeout_s=PATIENCE_S)
        assert end.killed
        assert "of processor time together; [sandbox] max_cpu_s allows 1 s" in end.excess


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("watch")
def test_a_full_task_can_delete_and_cannot_write(limited: Limited) -> None:
    """Many files, each within the limit of one: the command is killed,
    later ones may delete and not write, until there is room.
    """
    policy = {"max_disk_bytes": 60 * MB}
    fill = "i=0; while :; do i=$((i+1)); head -c 4000000 /dev/zero > f$i; sleep 0.02; done"
    over, more, delete, again = limited.run(
        fill,
        "echo x > more; ls more",
        "rm f*; ls",
        "echo x > more; cat more",
        policy=policy,
    )
    assert over.killed
    assert (
        "on the disk, in its directory and /tmp; [sandbox] max_disk_bytes allows 60 MiB"
        in over.excess
    )
    assert more.exit_code != 0
    assert not more.killed
    assert "files can be deleted, not written" in more.excess
    assert (delete.exit_code, delete.output, delete.killed) == (0, "more\n", False)
    assert delete.excess.startswith("before this command: the task has put ")
    assert delete.excess.endswith("; it could delete files, not write them; now there is room")
    assert (again.exit_code, again.output, again.excess) == (0, "x\n", "")


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("watch")
@pytest.mark.parametrize("where", ["deep", "names"])
def test_nothing_hides_from_the_disk_limit(limited: Limited, where: str) -> None:
    """Depth and odd names hide nothing."""
    (end,) = limited.run(shell("hiding.py", where), policy={"max_disk_bytes": 40 * MB})
    assert end.killed
    assert "max_disk_bytes" in end.excess


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("watch")
@pytest.mark.parametrize("how", ["open", "mapped", "not dumpable"])
def test_deleted_files_count_however_they_are_held(limited: Limited, how: str) -> None:
    """Open, mapped and closed, or open in a process that forbids others to look at it:
    they take room all the same.
    """
    (end,) = limited.run(shell("nameless.py", how), policy={"max_disk_bytes": 40 * MB})
    assert end.killed
    assert "max_disk_bytes" in end.excess


@pytest.mark.stopped_by("preallocation")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
def test_room_on_the_disk_is_had_by_writing_alone(attack: Attack) -> None:
    """Neither ``fallocate`` nor the requests that do the same set any aside;
    programs write instead, and holes can be made.
    """
    result = json.loads(attack.ran("preallocating.py"))
    assert result["refused"].pop("file_setattr") == "ENOSYS"
    assert set(result["refused"].values()) == {"ENOTSUP"}
    assert {name: size for name, size in result["got"].items() if size} == {}
    assert result["written"] >= MB
    assert result["hole"] in {0, errno.EOPNOTSUPP}  # the file system's own answer
    [(exit_code, output, _, _)] = attack.run("fallocate -l 64M x || ls -s x")
    assert (exit_code, output.splitlines()[-1]) == (0, "0 x")


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("watch")
def test_what_was_there_before_does_not_count(limited: Limited) -> None:
    """Of a directory that a task names, only its growth is limited, and its /tmp."""
    limited.run("head -c 80000000 /dev/zero > old")
    policy = {"max_disk_bytes": 60 * MB}
    little, much = limited.run(
        "head -c 20000000 /dev/zero > new; sleep 1.5",
        "for i in 1 2 3; do head -c 20000000 /dev/zero > /tmp/$i; done; sleep 60",
        policy=policy,
        fresh=False,
    )
    assert (little.exit_code, little.excess) == (0, "")
    assert much.killed
    assert "max_disk_bytes" in much.excess


@pytest.mark.stopped_by("arguments")
@pytest.mark.parametrize(
    "who", ["unprivileged"], indirect=True
)  # root has as many pipes as it likes
def test_no_task_takes_the_pipes_of_others(attack: Attack, ground: Path) -> None:
    """All pipes of a user have so much room together;
    one task's may fill it, and commands of others begin all the same.
    """
    other = Attack(attack.python_command, ground / "other")
    other.folder.parent.mkdir()
    if AS_ROOT:
        os.chown(other.folder.parent, NOBODY_ID, NOBODY_ID)
    with attack.begin(shell("piping.py", "full", "end")) as process:
        until((attack.folder / "full").exists)
        try:
            large = {"LARGE": "x" * 100_000}
            [(exit_code, output, _, _)] = other.run(
                "echo ${#LARGE}; seq 30000 | tail -1", env=large
            )
        finally:
            (attack.folder / "end").touch()
            process.communicate()
    assert "Operation not permitted" in (attack.folder / "full").read_text()
    assert (exit_code, output) == (0, "100000\n30000\n")
