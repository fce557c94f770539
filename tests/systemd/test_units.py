"""The shipped units under a real systemd, installed as docs/operating.md and README.md say.

All tests share a machine; each leaves the daemon running. `make systemd-test` runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from installed import (
    HOME,
    KEY,
    PERSON,
    USER,
    as_a_service_of_ones_own,
    asked,
    drop,
    notes,
    reaching,
    results,
    under_way,
    went_on,
)
from machine import Machine, Service, until
from patience import PATIENCE_S
from ports import free_port

from batchd import control

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a machine"),
    pytest.mark.timeout(300),
]


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
    folder = drop(machine, "early", {"first_prompt": "early"})
    service.control("start")
    # A socket that answers is the last that a start makes;
    # there is none while the daemon is stopped.
    answer = control.request(machine.path(f"{HOME}/.batchd"), "status")
    assert str(answer["pid"]) == service.show("MainPID")
    assert service.show("Type") == "notify"
    assert results(folder, machine.last_words)[0]["status"] == "completed"


def _trials(machine: Machine, units: str, unit: str, check: Sequence[str]) -> list[str]:
    """Write units that check, each under one more of the lines
    that a unit says would break its sandbox; return these.

    The first has no such line.
    """
    text = machine.path(unit).read_text()
    named = text.partition("# Left out, because each breaks")[2].partition("# Left out for")[0]
    lines = ["", *re.findall(r"\b[A-Z]\w+=\w+", named)]
    command = f"ExecStart=\nExecStart={' '.join(check)}\nSuccessExitStatus=3\n"
    for number, line in enumerate(lines):
        trial = f"[Service]\nType=oneshot\nRestart=no\nStateDirectory=\n{command}{line}\n"
        machine.write(f"{units}/trial-{number}.service", text + trial)
    return lines


def _batchd(*arguments: str) -> list[str]:
    return ["/opt/batchd/.venv/bin/batchd", "--config", "/etc/batchd/config.toml", *arguments]


def test_a_sandbox_works_under_every_hardening_line(service: Service) -> None:
    """A command may do what work needs: git, a virtual environment,
    /tmp, all below its directory; and no more.
    """
    check = """
        set -ex
        no() { if "$@"; then exit 9; fi; }
        git init -q r; echo x > r/x; git -C r add x; git -C r commit -qm x
        python3 -m venv v
        v/bin/python -c 'print(1)'
        echo y > /tmp/y
        grep -x 'NoNewPrivs:\t1' /proc/self/status
        grep -x 'Seccomp:\t2' /proc/self/status
        for hidden in /var/lib/batchd /etc/batchd /run/credentials /home; do no test -e $hidden; done
        no touch /usr/x
        no unshare -U true
        test "$(ls /proc | grep -c '^[0-9]')" -lt 10
    """
    task = {
        "first_prompt": "hard",
        "check": textwrap.dedent(check),
        "limits": {"max_iterations": 1},
    }
    (result,) = results(drop(service.machine, "hard", task), service.machine.last_words)
    assert result["status"] == "completed", result["evaluation"]


def test_a_list_of_hosts_works_under_every_hardening_line(service: Service) -> None:
    """The helper may enter a command's network:
    the one host on the list is reached, and there is no other network.
    """
    task = reaching(service.machine)
    (result,) = results(drop(service.machine, "reach", task), service.machine.last_words)
    assert result["status"] == "completed", result["evaluation"]


def test_what_the_unit_leaves_out_would_break_the_sandbox(service: Service) -> None:
    """Each hardening line that the unit names as one that it cannot have:
    with it, `batchd check` finds no sandbox.
    """
    machine = service.machine
    unit = f"/etc/systemd/system/{service.name}"
    # With a state of its own: else it would ask the service, whose unit is as it should be.
    check = ["/usr/bin/env", "BATCHD_PATHS__STATE=/var/lib/batchd/trial", *_batchd("check")]
    lines = _trials(machine, "/run/systemd/system", unit, check)
    assert len(lines) == 8
    machine.run("systemctl", "start", *(f"trial-{number}.service" for number in range(len(lines))))
    for number, line in enumerate(lines):
        journal = Service(machine, f"trial-{number}.service").journal()
        (said,) = (x["MESSAGE"] for x in journal if "sandbox:" in x["MESSAGE"])
        assert said.startswith("failed sandbox:" if line else "ok     sandbox:"), (line, said)


def test_lines_have_their_priorities_in_the_journal(service: Service) -> None:
    """Each line is JSON, its fields in it, which `journalctl --grep` finds;
    its level is a priority, which `journalctl -p` finds.
    """
    tasks = {"first_prompt": "fields"}, {"first_prompt": "bad", "model": "standin/400+steps-1"}
    results(drop(service.machine, "fields", *tasks), service.machine.last_words)
    found = service.journal("--grep", '"batch":"fields","task":"001"')
    lines = [json.loads(line["MESSAGE"]) for line in found]
    events = [line["event"] for line in lines]
    assert events[0] == "task_started"
    assert events.count("model_called") == 2
    assert events[-1] == "task_finished"
    assert {(line["SYSLOG_IDENTIFIER"], line["PRIORITY"]) for line in found} == {("batchd", "6")}
    (called, _) = (line for line in lines if line["event"] == "model_called")
    assert called["gen_ai.usage.input_tokens"] > 0
    said = [json.loads(line["MESSAGE"]) for line in service.journal("-p", "warning")]
    assert "model_failed" in {line["event"] for line in said}
    assert {line["level"] for line in said} <= {"warning", "error", "critical"}


def test_a_frozen_daemon_is_started_again(service: Service) -> None:
    """A daemon that shows no sign of life within WatchdogSec (here two seconds) is replaced;
    its tasks go on.
    """
    machine = service.machine
    assert service.show("WatchdogUSec") == "1min"
    with _drop_in(service, "WatchdogSec=2"):
        folder = drop(machine, "frozen", *notes("frozen"))
        under_way(machine, "frozen")
        before = service.processes()
        os.kill(service.main, signal.SIGSTOP)
        until(lambda: service.show("NRestarts") == "1", machine.last_words)
        until(lambda: service.show("ActiveState") == "active", machine.last_words)
        assert not before.keys() & service.processes().keys()
        went_on(machine, folder, "frozen")
        assert service.show("NRestarts") == "1"
    assert machine.run("journalctl", "-u", service.name, "--grep=Watchdog timeout")


def test_a_killed_daemon_is_started_again(service: Service) -> None:
    """After SIGKILL, nothing of the old daemon lives;
    its tasks go on, and no answer is paid for twice.
    """
    machine = service.machine
    folder = drop(machine, "killed", *notes("killed"))
    under_way(machine, "killed")
    before = service.processes()
    os.kill(service.main, signal.SIGKILL)
    until(lambda: service.main not in {0, *before}, machine.last_words)
    until(lambda: not before.keys() & service.processes().keys(), machine.last_words)
    went_on(machine, folder, "killed")


def test_a_power_cut(service: Service) -> None:
    """The machine dies with all that runs on it; after the next boot the tasks go on."""
    machine = service.machine
    folder = drop(machine, "unplugged", *notes("unplugged"))
    under_way(machine, "unplugged")
    machine.unplug()
    went_on(machine, machine.path(f"{HOME}/outbox/{folder.name}"), "unplugged")


def test_a_command_without_memory_takes_nothing_else_along(service: Service) -> None:
    """The kernel kills a command for its memory:
    the task learns of it, and the daemon and its workers live on.
    """
    check = """
        python3 -c '
        import os, time
        open("begun", "x")
        while not os.path.exists("go"): time.sleep(0.05)
        much = bytearray(400 << 20)
        time.sleep(60)'
        test $? = 137
    """
    task = {
        "first_prompt": "greedy",
        "check": textwrap.dedent(check),
        "limits": {"max_iterations": 1},
    }
    folder = drop(service.machine, "greedy", task)
    until((folder / "001" / "begun").exists, service.machine.last_words)
    before, everyone = service.main, service.processes()
    with _little_memory(service, "python3 -c") as killed:
        (folder / "001" / "go").touch()
        until(killed, service.machine.last_words)
        (result,) = results(folder, service.machine.last_words)
    assert result["status"] == "completed", result["evaluation"]
    assert result["attempts"] == 1
    assert service.main == before
    workers = {pid for pid, command in everyone.items() if "forkserver" in command}
    assert workers
    assert workers <= service.processes().keys()
    # Where systemd sees such a death, it would stop the unit for it, unless it is set not to.
    assert service.show("OOMPolicy") == "continue"


def _running(service: Service, words: str) -> list[int]:
    """Return the processes of commands whose command lines begin with some words."""
    return [pid for pid, line in service.processes().items() if line.startswith(words)]


@contextlib.contextmanager
def _little_memory(service: Service, words: str) -> Iterator[Callable[[], object]]:
    """Put a command into a cgroup of little memory;
    yield what says whether the kernel has killed anything for it.

    A unit's own MemoryMax binds nothing where the memory controller belongs to version 1. Where it
    does not, the signal that the kernel would send is sent from here.
    """
    memory = Path("/sys/fs/cgroup/memory")
    if not memory.is_dir():
        yield lambda: [os.kill(pid, signal.SIGKILL) for pid in _running(service, words)]
        return
    group = memory / service.machine.cgroup.name
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(100 << 20))
        for pid in _running(service, words):
            (group / "cgroup.procs").write_text(str(pid))
        yield lambda: (group / "memory.oom_control").read_text().endswith("oom_kill 1\n")
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: not (group / "cgroup.procs").read_text(), service.machine.last_words)
        group.rmdir()


def test_stop_is_in_time_and_loses_nothing(service: Service) -> None:
    """A stop waits for `drain_s`, not for a command that takes longer;
    what it cut goes on at the next start.
    """
    machine = service.machine
    slow = {"first_prompt": "slow", "check": "test -e go || sleep 200"}
    folder = drop(machine, "stopped", slow)
    until(lambda: _running(service, "sleep 200"), machine.last_words)
    begun = time.monotonic()
    service.control("stop")
    assert 2 < time.monotonic() - begun < 100
    assert service.show("Result") == "success"
    assert service.processes() == {}
    assert not (folder / "001.json").exists()
    (folder / "001" / "go").touch()
    service.control("start")
    (result,) = results(folder, machine.last_words)
    assert result["status"] == "completed"
    assert len(asked(machine, "slow")) == result["usage"]["calls"] == 2


def test_the_key_is_a_credential(service: Service) -> None:
    """The daemon alone reads the key: it is in no environment,
    command line, log, database or result.
    """
    machine = service.machine
    results(drop(machine, "secret", *notes("secret", 1)), machine.last_words)
    assert {entry["status"] for entry in asked(machine, "secret")} == {200}  # it refuses other keys
    for pid in service.processes():
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert machine.try_("grep", "-r", KEY, HOME).returncode == 1
    assert KEY not in machine.run("journalctl", "-u", service.name)
    reading = (*PERSON, "cat", "/etc/batchd/openai.key")
    assert machine.try_(*reading).returncode == 1


def test_reload(service: Service) -> None:
    """`systemctl reload` reads the configuration again;
    a wrong one is reported, and the old one stays.
    """
    config = service.machine.path("/etc/batchd/config.toml")
    good, before = config.read_text(), service.main
    try:
        for text, kept in ((f"{good}\nnonsense = 1\n", True), (good, None)):
            config.write_text(text)
            line = _reloaded(service)
            assert (line.get("kept_old"), line["level"]) == (kept, "error" if kept else "info")
    finally:
        config.write_text(good)
    assert service.main == before


def _reloaded(service: Service) -> dict[str, Any]:
    """Reload; return the line that the daemon then writes."""
    before = len(service.logged("config_reloaded"))
    service.control("reload")
    lines: list[dict[str, Any]] = []

    def written() -> bool:
        lines[:] = service.logged("config_reloaded")[before:]
        return bool(lines)

    until(written, service.machine.last_words)
    return lines[0]


def test_systemd_finds_no_fault(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    """The unit as installed: nothing to say for `verify`, and an exposure of 3.0 at most."""
    done = service.machine.try_("systemd-analyze", "verify", f"/etc/systemd/system/{service.name}")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    report = service.machine.run("systemd-analyze", "security", "--no-pager", service.name)
    exposure = re.search(r"Overall exposure level for .*: ([\d.]+)", report)
    assert exposure, report
    record_property("systemd-analyze security", exposure[1])
    assert float(exposure[1]) <= 3.0


def test_the_page_beside_the_daemon(service: Service) -> None:
    """Its unit runs under every hardening line: it makes its token,
    reads the store, asks the daemon, writes nothing else.
    """
    results(drop(service.machine, "paged", *notes("paged", 1)), service.machine.last_words)
    machine, name = service.machine, "batchd-web.service"
    listen = f"127.0.0.1:{free_port()}"
    machine.run("cp", f"/opt/batchd/systemd/{name}", "/etc/systemd/system/")
    machine.write(
        f"/etc/systemd/system/{name}.d/port.conf",
        f"[Service]\nEnvironment=BATCHD_WEB__LISTEN={listen}\n",
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", name)

    def answer_of(path: str) -> Any:
        token = machine.path(f"{HOME}/.batchd/web.token").read_text().strip()
        asked = urllib.request.Request(
            f"http://{listen}/api/{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def up() -> bool:
        with contextlib.suppress(OSError):
            return bool(answer_of("overview"))
        return False

    until(up, machine.last_words)
    assert str(answer_of("overview")["daemon"]["pid"]) == service.show("MainPID")
    assert answer_of("batches/paged/001")["task"]["status"] == "completed"
    machine.run("systemctl", "stop", name)
    assert machine.run("systemctl", "show", "-P", "Result", name).strip() == "success"


def test_the_unit_of_a_user(machine: Machine) -> None:
    """Without root it works in a sandbox, is started again after SIGKILL,
    logs fields, and leaves nothing behind.

    It is as hardened as it can be:
    each line that it names as one that it cannot have leaves no sandbox.
    """
    service = as_a_service_of_ones_own(machine)
    home = f"/home/{USER}/batchd"
    task = {"first_prompt": "own", "check": "test -d /task && ! touch /usr/x"}

    def works(name: str, task: dict[str, Any]) -> None:
        machine.write(f"/tmp/{name}.json", json.dumps(task))
        machine.run(*PERSON, "cp", f"/tmp/{name}.json", f"{home}/inbox/")
        (result,) = results(machine.path(f"{home}/outbox/{name}"), machine.last_words)
        assert result["status"] == "completed", result["evaluation"]
        assert service.logged("task_finished", batch=name)

    works("before", task)
    works("reaching", reaching(machine))
    before = service.processes()
    os.kill(service.main, signal.SIGKILL)
    until(lambda: service.main not in {0, *before}, machine.last_words)
    works("after", task)
    assert service.orphans() == {}
    assert service.show("OOMPolicy") == "continue"
    service.control("stop")
    assert service.processes() == {}
    units = f"/home/{USER}/.config/systemd/user"
    analyze = (*service.systemctl[:-2], "systemd-analyze", "--user")
    done = machine.try_(*analyze, "verify", f"{units}/batchd.service")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    report = machine.run(*analyze, "security", "--no-pager", service.name)
    exposure = re.search(r"Overall exposure level for .*: ([\d.]+)", report)
    assert exposure, report
    assert float(exposure[1]) <= 3.4
    check = ("%h/batchd/.venv/bin/batchd", "--config", "%h/batchd/config.toml", "check")
    lines = _trials(machine, units, f"{units}/batchd.service", check)
    assert len(lines) == 6
    names = [f"trial-{number}.service" for number in range(len(lines))]
    machine.run(*service.systemctl, "daemon-reload")
    machine.run(*service.systemctl, "start", *names)
    for name, line in zip(names, lines, strict=True):
        (said,) = (x["MESSAGE"] for x in replace(service, name=name).journal() if "sandbox:" in x["MESSAGE"])  # fmt: skip
        assert said.startswith("failed sandbox:" if line else "ok     sandbox:"), (line, said)
