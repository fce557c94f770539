"""What else lives on the machine: the operator's files, sockets and processes, and the other tasks.

No command gets at them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacking import (
    AS_ROOT,
    DRIVERS,
    NOBODY,
    PAYLOADS,
    SECRET,
    Attack,
    living_in,
    payload,
    shell,
)
from patience import PATIENCE_S, until

pytestmark = pytest.mark.in_turns

#: What lies in homes and states, each with a secret in it.
FILES = (
    *("home/.ssh/id_ed25519", "home/.aws/credentials", "home/.netrc", "home/.docker/config.json"),
    *("home/.config/batchd/env", "home/.bash_history", "credentials/openai", "run/keyring"),
    *(".batchd/batchd.db", ".batchd/claims", "inbox/next.json", "outbox/other/001/answer.txt"),
    *("outbox/other/001.json", "config.toml", "openai.key"),
)
#: Where programs find the services of the user who is logged in.
SOCKETS = {
    "SSH_AUTH_SOCK": "run/agent",
    "DBUS_SESSION_BUS_ADDRESS": "run/bus",
    "DBUS_SYSTEM_BUS_ADDRESS": "run/system_bus_socket",
    "DOCKER_HOST": "run/docker.sock",
    "WAYLAND_DISPLAY": "run/wayland-0",
    "DISPLAY": "run/X0",
    "GPG_AGENT_INFO": "run/S.gpg-agent",
    "PULSE_SERVER": "run/pulse",
    "NOTIFY_SOCKET": "run/notify",
    "BATCHD_CONTROL": ".batchd/control.sock",
}


@pytest.fixture
def machine(attack: Attack) -> Iterator[Path]:
    """A machine full of temptations: open to everybody, so that modes protect nothing of it."""
    ground = attack.folder.parent
    for name in FILES:
        (ground / name).parent.mkdir(parents=True, exist_ok=True)
        (ground / name).write_text(SECRET)
    with contextlib.ExitStack() as stack:
        for name in SOCKETS.values():
            listener = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            (ground / name).parent.mkdir(exist_ok=True)
            listener.bind(str(ground / name))
            listener.listen()
        for path in ground.rglob("*"):
            path.chmod(0o777)
        found = {name: str(ground / path) for name, path in SOCKETS.items()}
        folders = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "CREDENTIALS_DIRECTORY": "credentials"}
        attack.environment = found | {name: str(ground / path) for name, path in folders.items()}
        yield ground


@pytest.mark.stopped_by("mounts", "everything")
@pytest.mark.stopped_by("environment", who="unprivileged")
@pytest.mark.stopped_by("environment + identity", who="root")
def test_nothing_of_the_operator_is_there(attack: Attack, machine: Path) -> None:
    """No home, key, credential or state, by no way that leads there;
    no socket of ssh, D-Bus, docker, X11, Wayland.
    """
    asked = {
        "ground": str(machine),
        "files": FILES,
        "sockets": [*SOCKETS.values()],
        "variables": [*SOCKETS, "CREDENTIALS_DIRECTORY"],
    }
    got, named, first, there, below = json.loads(attack.ran("plundering.py", json.dumps(asked)))
    assert (got, named, first, there) == ([], {}, "", [])
    assert below == ["tmp"]


@pytest.mark.stopped_by("mounts", "everything")
def test_other_tasks_are_out_of_reach(attack: Attack) -> None:
    """While another task works beside it, in the same outbox:
    its directory, processes, and shared memory are not there.
    """
    ground = attack.folder.parent
    beside = Attack(attack.python_command, ground)
    beside.folder = ground / "other"
    work = f"{shell('working.py')}; cat answer.txt; ls"
    with _running(beside, work) as ended:
        while not (beside.folder / "up").exists():
            assert ended.poll() is None, ended.communicate()
            time.sleep(0.02)
        assert json.loads(attack.ran("neighbour.py", ground)) == [[], [], []]
        assert ended.poll() is None, "it was all over before anybody tried"
        (beside.folder / "end").touch()
        said, _ = ended.communicate()
    [(exit_code, output, _, _)] = json.loads(said)
    assert (exit_code, output) == (0, "mineanswer.txt\nup\n")


@contextlib.contextmanager
def _running(attack: Attack, command: str) -> Iterator[subprocess.Popen[str]]:
    """Have a command run beside others."""
    process = attack.begin(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.stopped_by("pids", "everything")
def test_no_guess_at_a_number_hits_a_process_outside(attack: Attack) -> None:
    """Signals, priorities, affinities and limits, for the numbers that are in use,
    and for all processes of the user.
    """
    with subprocess.Popen([*(NOBODY if AS_ROOT else []), "sleep", "1000"]) as victim:
        try:
            _until_it_is(victim.pid, "sleep")
            before = _standing(victim.pid)
            near = f"{max(victim.pid - 1000, 1)}-{victim.pid + 1000}"
            numbers = ["1-3000", near, *(f"{pid}-{pid}" for pid in _in_use())]
            [(exit_code, output, _, _)] = attack.run(payload("guessing.py", *numbers))
            assert (exit_code, "tried" in output) == (0, True), output
            assert victim.poll() is None
            assert _standing(victim.pid) == before
        finally:
            victim.kill()


def _in_use() -> list[str]:
    return [path.name for path in Path("/proc").glob("[0-9]*")]


def _until_it_is(pid: int, name: str) -> None:
    """Wait until a process runs a program, and rests."""
    while (
        name not in Path(f"/proc/{pid}/comm").read_text()
        or "State:\tS" not in Path(f"/proc/{pid}/status").read_text()
    ):
        time.sleep(0.01)


def _standing(pid: int) -> tuple[object, ...]:
    """Return what somebody could have changed about a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kept = [line for line in status.splitlines() if line.startswith(("State", "Cpus_allowed:"))]
    limits = Path(f"/proc/{pid}/limits").read_text()
    return (*kept, limits, os.getpriority(os.PRIO_PROCESS, pid))


@pytest.mark.stopped_by("setid", "everything")
def test_no_program_lends_its_owners_rights(attack: Attack) -> None:
    """Whatever a command leaves in its directory is neither setuid nor setgid:
    anybody out there could start it.
    """
    attack.ran("setid.py")
    attack.run(
        "cp -p /usr/bin/su s; install -m 4755 /bin/true i; tar -C /usr/bin -cpf - su | tar -xpf -"
    )
    modes = {path.name: path.stat().st_mode & 0o7777 for path in attack.folder.rglob("*")}
    assert {"a", "f", "s"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o6000} == {}


@pytest.mark.stopped_by("session")
def test_the_operators_terminal_is_out_of_reach(attack: Attack) -> None:
    """A batchd that was started on a terminal: no command has it,
    by no name or descriptor, nor gets its signals.
    """
    master, slave = os.openpty()
    try:
        inside = Attack(
            ["python3", str(DRIVERS / "adopting.py"), *attack.python_command], attack.folder.parent
        )
        with inside.begin((PAYLOADS / "terminal.sh").read_text(), stderr=slave) as process:
            said, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        os.close(slave)
        os.close(master)
    [(_, output, _, _)] = json.loads(said)
    assert output == "0\n"


@pytest.mark.stopped_by("pids", "everything")
def test_a_command_is_alone_in_its_processes(attack: Attack) -> None:
    """It sees itself, what started it, and nothing else;
    once it has ended nothing lives in its namespace.
    """
    [(_, output, _, _), (_, listed, _, _)] = attack.run(
        "readlink /proc/self/ns/pid", "cat /proc/[0-9]*/comm"
    )
    assert re.fullmatch(r"pid:\[\d+\]\n", output)
    # Other sandboxes of this machine may have its number by now, for a while.
    until(lambda: living_in(output.strip()) == [])
    assert set(listed.split()) <= {"bash", "cat"}
