"""What hostile commands try from inside the sandbox,
against a batchd that runs as root and as an ordinary user.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sockets
from attacking import AS_ROOT, DRIVERS, HERE, SECRET, Attack, payload
from patience import PATIENCE_S

pytestmark = pytest.mark.in_turns


@pytest.mark.stopped_by("pids")
@pytest.mark.stopped_by("environment", who="unprivileged")
@pytest.mark.stopped_by("environment + identity", who="root")
def test_the_key_is_nowhere_to_be_found(attack: Attack) -> None:
    """Neither in any /proc/*/environ or cmdline nor in the environment;
    nor is the task's own env in a command line.
    """
    found = attack.ran("looking.py", env={"TASK_TOKEN": "task-token-42"})
    assert "/proc/1/" in found
    assert SECRET not in found
    lines = [line for line in found.splitlines() if "/cmdline" in line]
    assert not any("task-token-42" in line for line in lines)
    assert len({line.split("/")[2] for line in lines}) <= 4, "the host's processes are visible"


@pytest.mark.stopped_by("identity", "mounts")
def test_nothing_of_the_host_is_writable_or_can_be_made_so(attack: Attack) -> None:
    """Remounting is refused; /, /usr, /etc, /dev and /proc/sys take no file;
    the host's secrets are not there.
    """
    marker = Path("/usr/batchd-was-here")
    attack.folder.parent.chmod(0o777)
    ends = attack.run(
        "mount -o remount,bind,rw /usr; mount -t tmpfs none /task; umount /usr; umount -l /proc",
        f"touch {marker}",
        "echo x > /etc/passwd",
        "touch /x",
        "touch /dev/x",
        "mknod /task/sda b 8 0",
        "echo 1 > /proc/sys/kernel/panic",
        "echo h > /proc/sysrq-trigger",
        "ls /root /home /work /srv /var/lib /sys /boot",
        "cat /etc/shadow /proc/kcore",
        "chroot / true",
        "pivot_root . .",
        f"touch {shlex.quote(str(attack.folder.parent))}/x",
    )
    assert all(exit_code != 0 for exit_code, *_ in ends), ends
    assert not marker.exists()
    assert "cannot access" in ends[8][1]


@pytest.mark.stopped_by("identity", "everything")
def test_no_privilege_can_be_gained(attack: Attack) -> None:
    """No capability, no setuid program, no other user, no new namespace."""
    status, become, *namespaces = attack.run(
        "cat /proc/self/status; id -u",
        ["python3", "-c", "import os\nfor n in (0, 1):\n  os.setuid(n)"],
        "unshare -Ur id",
        "unshare -m true",
        "unshare -n true",
        "su -c id; sudo id; pkexec id; find / -xdev -perm -4000 -exec {} -c id ';' 2>&1 | grep uid=0",
        ["python3", "-c", "import os; os.chown('/task', 0, 0)"],
        "cp /bin/bash /task/b && chmod 6755 /task/b && /task/b -pc 'id -u' | grep -x 0",
        ["nsenter", "-t", "1", "-m", "true"],
        "echo 1 > /proc/1/oom_score_adj; kill -9 1; kill -9 -1; echo survived >&2; exit 9",
    )
    lines = dict(line.split(":\t") for line in status[1].splitlines() if ":\t" in line)
    for caps in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(lines[caps], 16) == 0
    assert lines["NoNewPrivs"] == "1"
    assert lines["Seccomp"] == "2"
    assert status[1].splitlines()[-1] != "0"
    # An ordinary user keeps the group that its files have.
    assert {*lines["Groups"].split()} <= {"65534", *(() if AS_ROOT else (str(os.getgid()),))}
    assert become[0] == 1
    assert all(exit_code != 0 for exit_code, *_ in namespaces), namespaces


@pytest.mark.stopped_by("seccomp")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
def test_dangerous_system_calls_are_refused(attack: Attack) -> None:
    """By the filter, under their numbers, whatever the arguments;
    new namespaces by clone too; 32-bit calls kill.
    """
    answers = json.loads(attack.ran("syscalls.py"))
    assert (answers.pop("clone3"), answers.pop("x32")) == (errno.ENOSYS, errno.ENOSYS)
    assert {name: number for name, number in answers.items() if number != errno.EPERM} == {}
    [(exit_code, *_)] = attack.run(payload("legacy.py"))
    assert exit_code == 128 + 31, "killed by SIGSYS"


@pytest.mark.stopped_by("network")
def test_the_network_and_the_sockets_of_the_host_are_out_of_reach(attack: Attack) -> None:
    """Loopback, abstract and file sockets, and odd families; its own loopback works."""
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        contextlib.closing(socket.socket(socket.AF_UNIX)) as abstract,
    ):
        name = f"batchd-{os.getpid()}-{id(attack)}"
        abstract.bind("\0" + name)
        abstract.listen()
        port = loopback.getsockname()[1]
        *refused, own, route = json.loads(attack.ran("sockets.py", port, name))
    assert refused[:5] == ["ECONNREFUSED", "ECONNREFUSED", "ENOENT", "ENOENT", "ENETUNREACH"]
    assert refused[5:9] == ["ENETUNREACH", "ENETUNREACH", "EPERM", "unknown"]
    assert set(refused[9:]) == {"EAFNOSUPPORT"}
    assert (own, route) == ("open", "open")


@pytest.mark.stopped_by("seccomp")
def test_no_command_types_into_the_operators_terminal(attack: Attack) -> None:
    """TIOCSTI and TIOCLINUX are refused, also with high bits set;
    there is no controlling terminal at all.
    """
    assert attack.ran("typing_into.py") == "ENXIO\n"


@pytest.mark.stopped_by("descriptors")
def test_no_descriptor_is_inherited(attack: Attack) -> None:
    """Whatever batchd has open, inheritable or not, a command has three descriptors."""
    with Path("/etc/hostname").open() as file:
        fcntl.fcntl(file, fcntl.F_SETFD, 0)
        listed = attack.ran("descriptors.py", descriptors=[file.fileno()])
    places = dict(line.split(" ", 1) for line in listed.splitlines())
    assert set(places) == {"0", "1", "2"}
    assert places["0"] == "/dev/null"
    assert places["1"] == places["2"]
    assert places["1"].startswith("pipe:")


@pytest.mark.stopped_by("limits")
def test_limits_hold(attack: Attack) -> None:
    """Of each process: memory, file size, core files; of what lies in memory, /tmp and /dev/shm.

    The next command is unharmed.
    """
    policy = {
        "max_memory_bytes": 256 << 20,
        "max_file_bytes": 8 << 20,
        "tmp_bytes": 4 << 20,
    }
    memory, size, tmp, shm, core, after = attack.run(
        ["python3", "-c", "x = bytearray(1 << 30)"],
        "head -c 20000000 /dev/zero > big; wc -c < big",
        "head -c 6000000 /dev/zero > /tmp/big",
        "head -c 6000000 /dev/zero > /dev/shm/big",
        "ulimit -c; ulimit -Hc",
        "echo alive",
        policy=policy,
        timeout_s=PATIENCE_S,
    )
    assert "MemoryError" in memory[1]
    assert size[1].splitlines()[-1] == str(8 << 20)
    assert "No space left" in tmp[1]
    assert "No space left" in shm[1]
    assert core[1] == "0\n0\n"
    assert after[:2] == (0, "alive\n")


@pytest.mark.stopped_by("output", "time")
def test_output_bombs_neither_fill_memory_nor_outlast_their_time(attack: Attack) -> None:
    """Endless output, binary or text, to both streams, is cut and stopped in time."""
    ends = attack.run("yes", "cat /dev/zero >&2", "yes & yes >&2 & wait", timeout_s=1.5)
    for exit_code, output, timed_out, seconds in ends:
        assert (exit_code, timed_out) == (None, True)
        assert len(output.encode()) < 20_000
        assert "cut out" in output
        assert seconds < 60


@pytest.mark.stopped_by("links")
def test_the_task_directory_cannot_be_swapped_for_a_link(attack: Attack) -> None:
    """A directory that became a link to somewhere else is refused, not followed."""
    attack.run("touch x")
    shutil.rmtree(attack.folder)
    attack.folder.symlink_to("/etc")
    with pytest.raises(AssertionError, match="symbolic link"):
        attack.run("ls")
    attack.folder.unlink()


@pytest.fixture
def listing() -> Callable[[Path], Any]:
    """What ``Workplace.files`` returns for a directory, in a process that may hang or crash."""

    def listed(folder: Path) -> Any:
        ended = subprocess.run(
            [sys.executable, DRIVERS / "listing.py", folder],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
        return json.loads(ended.stdout)

    return listed


@pytest.mark.stopped_by("listing")
def test_a_hostile_directory_is_listed_safely(
    tmp_path: Path, listing: Callable[[Path], Any], request: pytest.FixtureRequest
) -> None:
    """FIFOs, links (out, in circles, dangling), odd names,
    depth, locked folders, masses of files.
    """
    folder = tmp_path.resolve() / "task"
    # Whatever becomes of the test:
    # pytest's own clean-up would end the whole run in a tree this deep.
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", folder / "d"], check=True))
    (folder / "node_modules" / "x").mkdir(parents=True)
    (folder / "node_modules" / "x" / "y.js").write_text("1")
    (folder / "plain").write_text("four")
    (folder / "line\nbreak").write_text("")
    (folder / os.fsdecode(b"\xff\xfe")).write_text("")
    os.mkfifo(folder / "fifo")
    (folder / "out").symlink_to("/etc")
    (folder / "circle").symlink_to(".")
    (folder / "dangling").symlink_to("/nowhere/at/all")
    (folder / "locked").mkdir(mode=0)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        sockets.bind(listener, folder / "socket")
    here = os.open(folder, os.O_RDONLY)
    deep = os.dup(here)
    for _ in range(3000):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    os.close(here)
    found = listing(folder)
    assert found["plain"][0] == 4
    assert set(found) == {"plain", "line\nbreak", r"\xff\xfe", "out", "circle", "dangling"}
    subprocess.run(["rm", "-rf", folder / "d"], check=True)
    for number in range(6000):
        (folder / f"f{number}").touch()
    assert listing(folder) is None
    (folder / "locked").chmod(0o700)
