"""What else lives on the machine: the operator's files, sockets and processes, and the other tasks. No command gets at them."""

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
from attacking import AS_ROOT, NOBODY, SECRET, Attack, living_in

#: What lies in homes and states, each with a secret in it.
FILES = (
    *("home/.ssh/id_ed25519", "home/.aws/credentials", "home/.netrc", "home/.docker/config.json"),
    *("home/.config/batchd/env", "home/.bash_history", "credentials/openai", "run/keyring"),
    *(".batchd/batchd.db", ".batchd/claims", "inbox/next.json", "outbox/other/001/answer.txt"),
    *("outbox/other/001.json", "config.toml", "openai.key"),
)
#: Where programs find the services of whoever is logged in.
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
            listener.bind(str(ground / name))
            listener.listen()
        for path in ground.rglob("*"):
            path.chmod(0o777)
        found = {name: str(ground / path) for name, path in SOCKETS.items()}
        folders = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "CREDENTIALS_DIRECTORY": "credentials"}
        attack.environment = found | {name: str(ground / path) for name, path in folders.items()}
        yield ground


@pytest.mark.stopped_by("mounts", "environment", "everything")
def test_nothing_of_the_operator_is_there(attack: Attack, machine: Path) -> None:
    """No home, key, credential or state, by no way that leads there; no socket of ssh, D-Bus, docker, X11, Wayland."""
    code = f"""
import glob, json, os, socket
ground, files, sockets = {str(machine)!r}, {FILES!r}, {[*SOCKETS.values()]!r}
roots = ["", "/proc/1/root", "/proc/1/cwd/..", "/proc/self/root", "/proc/self/cwd/../../../..", "/task/../../.."]
roots += glob.glob("/proc/[0-9]*/root") + glob.glob("/proc/[0-9]*/cwd")
got = []
for root in roots:
    for name in files:
        for path in (f"{{root}}{{ground}}/{{name}}", f"{{root}}/{{name}}", f"{{root}}/../{{name}}", f"{{root}}/../../{{name}}"):
            try: got.append((path, open(path).read()))
            except OSError: pass
            for way in (os.link, os.symlink, os.rename):
                try: way(path, "taken"); got.append((way.__name__, open("taken").read()))
                except OSError: pass
                finally:
                    if os.path.lexists("taken"): os.unlink("taken")
    for name in sockets:
        for path in (f"{{root}}{{ground}}/{{name}}", f"/run/{{os.path.basename(name)}}", f"/var/run/{{os.path.basename(name)}}"):
            with socket.socket(socket.AF_UNIX) as line:
                try: line.connect(path); got.append((path, "connected"))
                except OSError: pass
told = {{k: v for k, v in os.environ.items() if ground in v or k in {[*SOCKETS, "CREDENTIALS_DIRECTORY"]!r}}}
try: first = open("/proc/1/environ", "rb").read().decode()
except OSError: first = ""
there = [p for p in ("/run/user", "/run/dbus", "/run/docker.sock", "/tmp/.X11-unix", "/root", "/home", "/sys", "/boot") if os.path.exists(p)]
print(json.dumps([got, told, first, there, sorted(os.listdir("/run") + os.listdir("/var"))]))
"""
    got, told, first, there, below = json.loads(attack.python(code))
    assert (got, told, first, there) == ([], {}, "", [])
    assert below == ["tmp"]


@pytest.mark.stopped_by("mounts", "everything")
def test_other_tasks_are_out_of_reach(attack: Attack) -> None:
    """While another task works beside it, in the same outbox: its directory, processes, and shared memory are not there."""
    ground = attack.folder.parent
    beside = Attack(attack.python_command, ground)
    beside.folder = ground / "other"
    work = (
        "python3 -c '"
        "import mmap, time\n"
        'memory = open("/dev/shm/mine", "wb+"); memory.write(b"x" * 4096); memory.flush()\n'
        'open("answer.txt", "w").write("mine")\n'
        'open("/tmp/up", "w").close(); open("up", "w").close(); time.sleep(4)\''
        "; cat answer.txt; ls"
    )
    code = f"""
import glob, json, os
got = []
for root in ["", "/proc/1/root", *glob.glob("/proc/[0-9]*/root")]:
    for path in (f"{{root}}{ground}/other", f"{{root}}/task/../other", f"{{root}}/other"):
        for way in (os.listdir, lambda p: open(p + "/answer.txt", "w").write("spoilt"), lambda p: os.mkdir(p + "/mine"), lambda p: os.chmod(p, 0)):
            try: got.append((path, str(way(path))))
            except OSError: pass
shared = os.listdir("/dev/shm") + os.listdir("/tmp")
words = [open(p, "rb").read().decode() for p in glob.glob("/proc/[0-9]*/cmdline")]
print(json.dumps([got, shared, [w for w in words if "answer.txt" in w and "spoilt" not in w]]))
"""
    with _running(beside, work) as ended:
        while not (beside.folder / "up").exists():
            assert ended.poll() is None, ended.communicate()
            time.sleep(0.02)
        assert json.loads(attack.python(code)) == [[], [], []]
        assert ended.poll() is None, "it was all over before anybody tried"
        said, _ = ended.communicate(timeout=30)
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
    """Signals, priorities, affinities and limits, for the numbers that are in use, and for all processes of the user."""
    with subprocess.Popen([*(NOBODY if AS_ROOT else []), "sleep", "1000"]) as victim:
        try:
            _until_it_is(victim.pid, "sleep")
            before = _standing(victim.pid)
            # All that there ever were would be millions on a machine that has run for long.
            lowest = max(victim.pid - 30_000, 0)
            code = f"""
import os, resource, signal
mine = {{os.getpid(), os.getppid()}}
hit = []
for pid in [-1, *range(1, 3000), *range({lowest}, {victim.pid} + 4000)]:
    if pid in mine: continue
    for way in (lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGKILL), lambda: os.killpg(pid, 9),
                lambda: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda: os.sched_setaffinity(pid, {{0}}),
                lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)), lambda: os.pidfd_open(pid)):
        try: way(); hit.append(pid)
        except (OSError, ProcessLookupError, PermissionError, ValueError): pass
os.setpriority(os.PRIO_USER, os.getuid(), 19)
print("tried", len(hit))
"""
            [(exit_code, output, _, _)] = attack.run(["python3", "-c", code], timeout_s=60)
            assert (exit_code, "tried" in output) == (0, True), output
            assert victim.poll() is None
            assert _standing(victim.pid) == before
        finally:
            victim.kill()


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
    """Whatever a command leaves in its directory is neither setuid nor setgid: anybody out there could start it."""
    code = """
import os, ctypes, shutil
libc = ctypes.CDLL(None)
shutil.copy("/bin/true", "a")
for way in (lambda: os.chmod("a", 0o4755), lambda: os.chmod("a", 0o2755), lambda: os.fchmod(os.open("a", os.O_RDONLY), 0o6755),
            lambda: os.chmod("a", 0o4755, dir_fd=os.open(".", os.O_RDONLY)), lambda: os.open("b", os.O_CREAT | os.O_WRONLY, 0o4755),
            lambda: os.mknod("c", 0o104755), lambda: os.open(".", os.O_TMPFILE | os.O_RDWR, 0o4755),
            lambda: libc.syscall(452, -100, b"a", 0o4755, 0), lambda: libc.creat(b"d", 0o4755),
            lambda: libc.syscall(437, -100, b"e", (ctypes.c_uint64 * 3)(0o101, 0o4755, 0), 24)):
    try: way()
    except OSError: pass
os.mkdir("f", 0o6755)
"""
    attack.python(code)
    attack.run(
        "cp -p /usr/bin/su s; install -m 4755 /bin/true i; tar -C /usr/bin -cpf - su | tar -xpf -"
    )
    modes = {path.name: path.stat().st_mode & 0o7777 for path in attack.folder.rglob("*")}
    assert {"a", "f", "s"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o6000} == {}


@pytest.mark.stopped_by("session")
def test_the_operators_terminal_is_nobody_elses(attack: Attack) -> None:
    """A batchd that was started on a terminal: no command has it, by no name or descriptor, nor gets its signals."""
    master, slave = os.openpty()
    attempt = """
for fd in 0 1 2; do test -t $fd && echo "terminal on $fd"; done
(exec 3<>/dev/tty) 2>/dev/null && echo "it has a terminal"
ls -l /proc/self/fd | grep -E 'pts|tty'
ps -o tty= -p $$ 2>/dev/null | grep -v '?'
cut -d' ' -f7 /proc/self/stat
"""
    adopting = "import fcntl, os, sys, termios\nos.setsid()\nfcntl.ioctl(2, termios.TIOCSCTTY, 0)\nos.execvp(sys.argv[1], sys.argv[1:])"
    try:
        inside = Attack(["python3", "-c", adopting, *attack.python_command], attack.folder.parent)
        with inside.begin(attempt, stderr=slave) as process:
            said, _ = process.communicate(timeout=60)
    finally:
        os.close(slave)
        os.close(master)
    [(_, output, _, _)] = json.loads(said)
    assert output == "0\n"


@pytest.mark.stopped_by("pids", "everything")
def test_a_command_is_alone_in_its_processes(attack: Attack) -> None:
    """It sees itself, what started it, and nothing else; once it has ended nothing lives in its namespace."""
    [(_, output, _, _), (_, listed, _, _)] = attack.run(
        "readlink /proc/self/ns/pid", "cat /proc/[0-9]*/comm"
    )
    assert re.fullmatch(r"pid:\[\d+\]\n", output)
    assert living_in(output.strip()) == []
    assert set(listed.split()) <= {"bwrap", "bash", "cat", "setpriv", "prlimit"}
