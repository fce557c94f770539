"""The shipped units under a real systemd, installed as README.md says.

All tests share a machine, which boots in a second; each leaves the daemon running. `make systemd-test` runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import ROOT, Machine, Service, booted, until
from verdict import judge

KEY = "sk-of-the-operator-0815-4711"
HOME = "/var/lib/batchd"
#: Somebody who may drop files, and who also runs a daemon of their own.
USER = "alice"

_MODEL_UNIT = """\
[Service]
ExecStart=/opt/batchd/.venv/bin/python -m batchd.demo.server --no-count --port {port} --api-key {key} --log /var/log/model.jsonl
[Install]
WantedBy=multi-user.target
"""
_CONFIG = """
[providers.standin]
base_url = "http://127.0.0.1:{port}/v1"
api_key_file = "openai"
"""
#: What the README leaves to whoever edits a file: the key, and the name of a model.
_SUDOEDIT = """\
sudoedit() {{
    case $1 in
    *.key) echo {key} >"$1" ;;
    *) sed -i 's|^model = .*|model = "standin/steps-2"|; s|^drain_s = .*|drain_s = 3|' "$1"; cat /run/more.toml >>"$1" ;;
    esac
}}
sudo() {{ "$@"; }}
cd /srv/source
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a machine"),
    pytest.mark.timeout(300),
]


def _steps(head: str) -> str:
    """Return the block of commands that follows a line of the README."""
    text = (ROOT / "README.md").read_text().partition(f"\n{head}")[2]
    return textwrap.dedent(re.search(r"\n\n((    .*\n)+)", text)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which batchd is installed as a system service, by the README's own commands."""
    with booted(tmp_path_factory.mktemp("machine")) as machine, socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
        machine.write("/run/more.toml", _CONFIG.format(port=port))
        machine.write("/etc/systemd/system/model.service", _MODEL_UNIT.format(port=port, key=KEY))
        lines = _steps("As a system service").replace("journalctl -u batchd -f", "")
        machine.shell(_SUDOEDIT.format(key=KEY) + lines, "env", f"USER={USER}")
        machine.run("systemctl", "enable", "--now", "model.service")
        yield machine


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """The daemon under the shipped unit. Whatever a test does to it, nothing is left that is not its child."""
    service = Service(machine)
    assert service.show("ActiveState") == "active"
    yield service
    until(lambda: service.show("ActiveState") == "active", machine.last_words)
    assert service.orphans() == {}


def _drop(machine: Machine, name: str, *tasks: dict[str, Any]) -> Path:
    """Drop a file as a member of the group would; return its folder in the outbox."""
    machine.write(f"/tmp/{name}.json", json.dumps({"evaluator": "none", "tasks": tasks}))
    machine.run("runuser", "-u", USER, "--", "cp", f"/tmp/{name}.json", f"{HOME}/inbox/")
    return machine.path(f"{HOME}/outbox/{name}")


def _notes(name: str, count: int = 2) -> list[dict[str, Any]]:
    """Return tasks of seven calls and six commands each, which take some two seconds."""
    model = "standin/latency-0.2+notes-6"
    return [{"first_prompt": f"{name} {i}", "model": model} for i in range(count)]


def _asked(machine: Machine, name: str = "") -> list[dict[str, Any]]:
    """Return what the model was asked about a batch, by its own log, oldest first."""
    lines = machine.path("/var/log/model.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return sorted(
        (e for e in entries if e["prompt"].startswith(name)), key=lambda e: float(e["at"])
    )


def _results(folder: Path, why: Callable[[], str]) -> list[dict[str, Any]]:
    """Return the results of a batch, at its end."""
    until((folder / "summary.json").exists, why)
    return [json.loads(x) for x in (folder / "results.jsonl").read_text().splitlines()]


def _under_way(machine: Machine, name: str) -> None:
    """Wait until a batch is in the middle of its work."""
    until(lambda: len(_asked(machine, name)) >= 4, machine.last_words)


def _went_on(machine: Machine, folder: Path, name: str) -> None:
    """Hold a batch that was interrupted to what is promised: all done, nothing paid or run twice."""
    _results(folder, machine.last_words)
    figures = judge(folder, _asked(machine, name), 2)
    assert figures.statuses == {"completed": 2}
    assert figures.repeated <= figures.unsettled <= 2


@contextlib.contextmanager
def _drop_in(service: Service, text: str) -> Iterator[None]:
    """Change the unit for a while."""
    file = f"/run/systemd/system/{service.name}.d/test.conf"
    service.machine.write(file, f"[Service]\n{text}\n")
    try:
        service.machine.run("systemctl", "daemon-reload")
        service.control("restart")
        yield
    finally:
        service.machine.path(file).unlink()
        service.machine.run("systemctl", "daemon-reload")
        service.control("restart")


def test_started_means_ready(service: Service) -> None:
    """`systemctl start` returns when the daemon answers and watches its inbox, no sooner."""
    machine = service.machine
    service.control("stop")
    folder = _drop(machine, "early", {"first_prompt": "early"})
    service.control("start")
    machine.run(
        "setpriv", "--reuid=batchd", "--clear-groups", "--regid=batchd", "--", *_batchd("status")
    )
    assert service.show("Type") == "notify"
    assert _results(folder, machine.last_words)[0]["status"] == "completed"


def _batchd(*arguments: str) -> list[str]:
    return ["/opt/batchd/.venv/bin/batchd", "--config", "/etc/batchd/config.toml", *arguments]


def test_a_sandbox_works_under_every_hardening_line(service: Service) -> None:
    """A command may do what work needs: git, a virtual environment, /tmp, all below its directory; and no more."""
    check = """
        set -ex
        git init -q r; echo x > r/x; git -C r add x; git -C r commit -qm x
        python3 -m venv v && v/bin/python -c 'print(1)'
        echo y > /tmp/y && grep y /tmp/y
        grep -x 'NoNewPrivs:\t1' /proc/self/status && grep -x 'Seccomp:\t2' /proc/self/status
        ! ls /var/lib/batchd /etc/batchd /run/credentials
        ! touch /usr/x
        ! unshare -U true
        test "$(ls /proc | grep -c '^[0-9]')" -lt 10
    """
    task = {
        "first_prompt": "hard",
        "check": textwrap.dedent(check),
        "limits": {"max_iterations": 1},
    }
    (result,) = _results(_drop(service.machine, "hard", task), service.machine.last_words)
    assert result["status"] == "completed", result["evaluation"]


def test_lines_are_fields_of_the_journal(service: Service) -> None:
    """Each line has its fields, under one prefix; a priority; and a message for people."""
    _results(_drop(service.machine, "told", {"first_prompt": "told"}), service.machine.last_words)
    lines = service.journal("BATCHD_BATCH=told", "BATCHD_TASK=001")
    events = [line["BATCHD_EVENT"] for line in lines]
    assert events[0] == "task_started"
    assert events.count("model_called") == 2
    assert events[-1] == "task_finished"
    for line in lines:
        assert line["_TRANSPORT"] == "journal"
        assert (line["SYSLOG_IDENTIFIER"], line["PRIORITY"]) == ("batchd", "6")
        assert line["MESSAGE"].startswith(f"{line['BATCHD_EVENT']} batch=told task=001 ")
    (called, _) = (line for line in lines if line["BATCHD_EVENT"] == "model_called")
    assert int(called["BATCHD_GEN_AI_USAGE_INPUT_TOKENS"]) > 0


def test_a_frozen_daemon_is_started_again(service: Service) -> None:
    """A daemon that shows no sign of life within WatchdogSec (here two seconds) is replaced; its tasks go on."""
    machine = service.machine
    with _drop_in(service, "WatchdogSec=2"):
        folder = _drop(machine, "frozen", *_notes("frozen"))
        _under_way(machine, "frozen")
        before = service.processes()
        os.kill(service.main, signal.SIGSTOP)
        until(lambda: service.show("NRestarts") == "1", machine.last_words)
        until(lambda: service.show("ActiveState") == "active", machine.last_words)
        assert not before.keys() & service.processes().keys()
        _went_on(machine, folder, "frozen")
        assert service.show("NRestarts") == "1"
    assert machine.run("journalctl", "-u", service.name, "--grep=Watchdog timeout")


def test_a_killed_daemon_is_started_again(service: Service) -> None:
    """After SIGKILL, nothing of the old daemon lives; its tasks go on, and no answer is paid for twice."""
    machine = service.machine
    folder = _drop(machine, "killed", *_notes("killed"))
    _under_way(machine, "killed")
    before = service.processes()
    os.kill(service.main, signal.SIGKILL)
    until(lambda: service.main not in {0, *before}, machine.last_words)
    until(lambda: not before.keys() & service.processes().keys(), machine.last_words, timeout_s=5)
    _went_on(machine, folder, "killed")


def test_a_power_cut(service: Service) -> None:
    """The machine dies with all that runs on it; after the next boot the tasks go on."""
    machine = service.machine
    folder = _drop(machine, "unplugged", *_notes("unplugged"))
    _under_way(machine, "unplugged")
    machine.unplug()
    _went_on(machine, machine.path(f"{HOME}/outbox/{folder.name}"), "unplugged")


def test_a_command_without_memory_takes_nobody_along(service: Service) -> None:
    """The kernel kills a command for its memory: the task is told, and the daemon and its workers live on."""
    check = """
        until [ -e go ]; do sleep 0.05; done
        python3 -c 'bytearray(400 << 20)'
        test $? = 137
    """
    task = {
        "first_prompt": "greedy",
        "check": textwrap.dedent(check),
        "limits": {"max_iterations": 1},
    }
    folder = _drop(service.machine, "greedy", task)
    until(
        lambda: any("[ -e go ]" in c for c in service.processes().values()),
        service.machine.last_words,
    )
    before, everyone = service.main, service.processes()
    with _little_memory(service) as killed:
        (folder / "001" / "go").touch()
        (result,) = _results(folder, service.machine.last_words)
        assert killed() == 1
    assert result["status"] == "completed", result["evaluation"]
    assert result["attempts"] == 1
    assert service.main == before
    workers = {pid for pid, command in everyone.items() if "forkserver" in command}
    assert workers <= service.processes().keys()
    # Where systemd sees such a death, it would stop the unit for it, unless it is told not to.
    assert service.show("OOMPolicy") == "continue"


@contextlib.contextmanager
def _little_memory(service: Service) -> Iterator[Callable[[], int]]:
    """Put the running command into a cgroup of little memory; tell how many the kernel has killed for it.

    A unit's own MemoryMax binds nothing in this machine, where the memory controller belongs to version 1.
    """
    group = Path("/sys/fs/cgroup/memory") / service.machine.cgroup.name
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(100 << 20))
        for pid, command in service.processes().items():
            if "[ -e go ]" in command and not command.startswith("batchd-"):
                (group / "cgroup.procs").write_text(str(pid))
        yield lambda: int((group / "memory.oom_control").read_text().split()[-1])
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), service.machine.last_words)
        group.rmdir()


def test_stop_is_in_time_and_loses_nothing(service: Service) -> None:
    """A stop waits for `drain_s`, not for a command that takes longer; what it cut goes on at the next start."""
    machine = service.machine
    slow = {"first_prompt": "slow", "check": "test -e go || sleep 200"}
    folder = _drop(machine, "stopped", slow)
    until(lambda: any("sleep 200" in c for c in service.processes().values()), machine.last_words)
    begun = time.monotonic()
    service.control("stop")
    assert 2 < time.monotonic() - begun < 10
    assert service.show("Result") == "success"
    assert service.processes() == {}
    assert not (folder / "001.json").exists()
    (folder / "001" / "go").touch()
    service.control("start")
    (result,) = _results(folder, machine.last_words)
    assert result["status"] == "completed"
    assert len(_asked(machine, "slow")) == result["usage"]["calls"] == 2


def test_the_key_is_a_credential(service: Service) -> None:
    """The daemon alone reads the key: it is in no environment, command line, log, database or result."""
    machine = service.machine
    _results(_drop(machine, "secret", *_notes("secret", 1)), machine.last_words)
    assert {entry["status"] for entry in _asked(machine, "secret")} == {
        200
    }  # it refuses other keys
    for pid in service.processes():
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert machine.try_("grep", "-r", KEY, HOME).returncode == 1
    assert KEY not in machine.run("journalctl", "-u", service.name)
    reading = ("runuser", "-u", USER, "--", "cat", "/etc/batchd/openai.key")
    assert machine.try_(*reading).returncode == 1


def test_reload(service: Service) -> None:
    """`systemctl reload` reads the configuration again; a wrong one is told of, and the old one stays."""
    config = service.machine.path("/etc/batchd/config.toml")
    good, before = config.read_text(), service.main
    try:
        for text, kept in ((f"{good}\nnonsense = 1\n", "true"), (good, None)):
            config.write_text(text)
            line = _reloaded(service)
            assert (line.get("BATCHD_KEPT_OLD"), line["PRIORITY"]) == (kept, "3" if kept else "6")
    finally:
        config.write_text(good)
    assert service.main == before


def _reloaded(service: Service) -> dict[str, Any]:
    """Reload; return the line that the daemon then writes."""
    before = len(service.journal("BATCHD_EVENT=config_reloaded"))
    service.control("reload")
    lines: list[dict[str, Any]] = []

    def told() -> bool:
        lines[:] = service.journal("BATCHD_EVENT=config_reloaded")[before:]
        return bool(lines)

    until(told, service.machine.last_words)
    return lines[0]


def test_systemd_finds_no_fault(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    """The unit as installed: nothing to say for `verify`, and an exposure of 3.0 at most."""
    done = service.machine.try_("systemd-analyze", "verify", f"/etc/systemd/system/{service.name}")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    told = service.machine.run("systemd-analyze", "security", "--no-pager", service.name)
    exposure = re.search(r"Overall exposure level for .*: ([\d.]+)", told)
    assert exposure, told
    record_property("systemd-analyze security", exposure[1])
    assert float(exposure[1]) <= 3.0
