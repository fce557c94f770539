"""Control groups: the way in, the way out, and,
where the machine has the controllers, that they hold; as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from patience import PATIENCE_S

from batchd.errors import SandboxUnavailableError
from batchd.records import SandboxPolicy
from batchd.sandbox import CommandEnd, Sandbox, cgroup, check
from batchd.sandbox.entrance import starter
from batchd.sandbox.launch import GIVEN

MB = 1 << 20


def _mount() -> Path | None:
    """Return where version 2 is mounted, if it can be written."""
    found = re.search(r"^cgroup2? (\S+) cgroup2 rw", Path("/proc/mounts").read_text(), re.MULTILINE)
    return Path(found[1]) if found and os.geteuid() == 0 else None


MOUNT = _mount()
#: What groups below the topmost one can have.
CONTROLLERS = (MOUNT / "cgroup.subtree_control").read_text().split() if MOUNT else []
pytestmark = pytest.mark.skipif(
    MOUNT is None, reason="only root can, where cgroups are of version 2"
)
enforced = pytest.mark.skipif(
    not {"memory", "pids"} <= {*CONTROLLERS}, reason="no controllers of version 2 on this machine"
)


@pytest.fixture
def given() -> Iterator[Path]:
    """A group of one's own."""
    assert MOUNT is not None
    path = MOUNT / f"batchd-test-{os.getpid()}"
    path.mkdir()
    yield path
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")
    for below in (*path.glob("*/"), path):
        below.rmdir()


def test_a_sandbox_is_in_its_group_from_its_first_moment_and_dies_with_it(given: Path) -> None:
    """Who starts it is there, and all that is started; and all of that is killed at once."""
    path = given / "task-0-0"
    path.mkdir()
    group = cgroup.TaskCgroup(path)
    script = (
        f"echo '\"child-pid\": '$$ >/proc/self/fd/{GIVEN}; cat /proc/self/cgroup;"
        " setsid sh -c 'sleep 1000 & sleep 1000' >/dev/null 2>&1 &"
    )
    setup = marshal.dumps({"words": [b"/bin/sh", b"sh", b"-c", script.encode()], "at": GIVEN})
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            starter().fork(setup, theirs, [], group)
        ours.settimeout(PATIENCE_S)
        number, _, _, said = marshal.loads(ours.recv(4096))
    assert f"/{given.name}/task-0-0" in said.decode()
    assert str(number) in (path / "cgroup.procs").read_text().split()
    group.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL
    group.close()
    assert not path.exists()


def test_a_group_that_cannot_be_used_is_refused_with_the_fix(given: Path) -> None:
    """What ``[sandbox] cgroup`` names must be a group, and must have the controllers;
    ``check`` says so too.
    """
    wrong = (
        [given / "nothing"] if {"memory", "pids"} <= {*CONTROLLERS} else [given, given / "nothing"]
    )
    for path in wrong:
        policy = SandboxPolicy(cgroup=str(path))
        with pytest.raises(SandboxUnavailableError, match=r"cannot be used .*: make it a group"):
            Sandbox(policy)
        [found] = [f for f in check(policy) if f.name == "limits of a command"]
        assert not found.ok
        assert "with the controllers memory and pids" in found.fix


def _runs(folder: Path, policy: SandboxPolicy, *commands: str) -> list[CommandEnd]:
    async def main() -> list[CommandEnd]:
        opening = Sandbox(policy).open(str(folder / "001"), fresh=True, network=False, env={})
        async with await opening as place:
            return [await place.shell(command, timeout_s=PATIENCE_S) for command in commands]

    return asyncio.run(main())


@enforced
def test_the_kernel_holds_a_command_to_its_limits_together(tmp_path: Path, given: Path) -> None:
    """Memory of all processes, and what no process maps; their number;
    their processor time; the next command is unharmed.
    """
    tmp_path.chmod(0o755)
    policy = SandboxPolicy(
        cgroup=str(given),
        max_memory_bytes=150 * MB,
        max_processes=20,
        max_cpus=1.5 if "cpu" in CONTROLLERS else 0.0,
    )
    take = "python3 -c 'x = bytearray(60 << 20); import time; time.sleep(60)'"
    held = (
        'import os\nfor f in [os.memfd_create("x") for _ in range(4)]: os.write(f, bytes(50 << 20))'
    )
    four, unmapped, many, after = _runs(
        tmp_path,
        policy,
        f"for i in 1 2 3 4; do {take} & done; wait",
        f"python3 -c '{held}'; echo never",
        "for i in $(seq 30); do sleep 5 & done 2>&1; cat /proc/sys/kernel/pid_max >/dev/null",
        "echo alive",
    )
    (spent,) = _runs(tmp_path, replace(policy, max_cpu_s=3.0), "while :; do :; done & wait")
    for end in (four, unmapped):
        assert (end.exit_code, end.killed) == (137, True)
        assert (
            end.excess
            == "its processes ran out of memory together; [sandbox] max_memory_bytes allows 150 MiB"
        )
    assert "Resource temporarily unavailable" in many.output
    assert "of processor time together; [sandbox] max_cpu_s allows 3 s" in spent.excess
    assert spent.seconds > 1.5
    assert (after.exit_code, after.output, after.excess) == (0, "alive\n", "")
    assert list(given.glob("task-*")) == []
    [found] = [f for f in check(policy) if f.name == "limits of a command"]
    assert f"held by the kernel in {given}" in found.detail
