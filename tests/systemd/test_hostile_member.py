"""A hostile member of the group that may drop files,
on a machine where batchd is installed as docs/operating.md says.

They have an account, a manager of their own that runs without a login, and the right that the page
gives them: to drop files, and to read results. What they run stands in ``hostile.py``.
Another member goes on working meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from installed import HOME, KEY, drop, notes, results, under_way, went_on
from machine import ROOT, Machine, Service, until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a machine"),
    pytest.mark.timeout(300),
]

#: The hostile member. Accounts of the machine that it is a copy of are there as well.
NAME = "batchd-eve"
AS_THEM = ("runuser", "-u", NAME, "--", "env", f"HOME=/home/{NAME}")
BATCHD = ("/opt/batchd/.venv/bin/batchd", "--config", "/etc/batchd/config.toml")
INBOX = f"{HOME}/inbox"
#: What every user of the machine may write: folders for all, devices,
#: and sockets of services that ask who speaks to them.
_OPEN_TO_ALL = (
    *(
        "/dev/",
        "/tmp",
        "/var/tmp",
        "/run/lock",
        "/run/dbus/system_bus_socket",
        "/run/systemd/notify",
    ),
    *("/run/systemd/journal/", "/run/systemd/io.systemd.", "/run/systemd/userdb/io.systemd."),
)


@pytest.fixture(scope="module")
def account(machine: Machine) -> str:
    """Their account, in the group as the page says."""
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", NAME)
    machine.run("usermod", "-aG", "batchd", NAME)
    machine.run("loginctl", "enable-linger", NAME)
    uid = machine.run("id", "-u", NAME).strip()
    until(machine.path(f"/run/user/{uid}/systemd/private").exists, machine.last_words)
    return NAME


@pytest.fixture
def member(service: Service, account: str) -> Iterator[Service]:
    """The daemon that they attack.

    Afterwards it is the same one, serves others, and nothing of theirs lies anywhere.
    """
    machine, before = service.machine, (service.main, service.show("NRestarts"))
    yield service
    _attempt(machine, "clear")
    assert (service.main, service.show("NRestarts")) == before
    _served(machine)
    assert _names(machine, f"{HOME}/.batchd/claimed") == set()
    own = f"find / -xdev -user {account} ! -path '/home/{account}*' ! -path '/tmp/*' ! -path '/var/lib/systemd/*'"
    left = {*machine.shell(own).splitlines()}
    # Of what they dropped, the file that became a batch's request stays theirs.
    assert all(Path(x).match(f"{HOME}/outbox/*/request*") for x in left), left


def _attempt(machine: Machine, what: str, *arguments: str) -> Any:
    """Have them try something; return what they managed."""
    program = ("/usr/bin/python3", "/srv/source/tests/systemd/hostile.py")
    return json.loads(machine.run(*AS_THEM, *program, what, *arguments))


@contextlib.contextmanager
def _trying(machine: Machine, what: str, *arguments: str) -> Iterator[None]:
    """Have them try something all the while."""
    stop = f"/tmp/stop-{what}"
    program = ("/usr/bin/python3", "/srv/source/tests/systemd/hostile.py")
    inside = ("nsenter", "-t", str(machine.leader), "-m", "-p", "-C", "-u", "-i", "--wdns=/")
    with subprocess.Popen(
        [*inside, *AS_THEM, *program, what, *arguments, stop], stdout=subprocess.PIPE
    ) as trying:
        try:
            yield
        finally:
            machine.write(stop, "")
            out, _ = trying.communicate()
            machine.path(stop).unlink()
    assert trying.returncode == 0
    assert json.loads(out) > 0


def _served(machine: Machine) -> None:
    """Hold that what another member drops is worked on."""
    name = f"served-{secrets.token_hex(4)}"
    (result,) = results(drop(machine, name, {"first_prompt": name}), machine.last_words)
    assert result["status"] == "completed"


def _page() -> str:
    """Return the page that says what members may do, in one line."""
    return " ".join((ROOT / "docs/operating.md").read_text().split())


def _names(machine: Machine, folder: str) -> set[str]:
    return {path.name for path in machine.path(folder).iterdir()}


def _summary(machine: Machine, batch: str) -> dict[str, Any]:
    """Return the summary of a batch, once it is there."""
    file = machine.path(f"{HOME}/outbox/{batch}/summary.json")
    until(file.exists, machine.last_words)
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def test_they_read_results_and_nothing_else(member: Service) -> None:
    """What a member may read and write is what the page gives them;
    keys, store, log and processes are closed.
    """
    machine = member.machine
    secret = "hush-hush-4711"
    task = {
        "first_prompt": "quiet",
        "check": f'test "$TOKEN" = {secret[:4]}-hush-4711; echo $TOKEN; exit 0',
    }
    folder = drop(machine, "honest", {**task, "env": {"TOKEN": {"secret": secret}}})
    (result,) = results(folder, machine.last_words)
    assert result["status"] == "completed", result
    managed = _attempt(machine, "writable", *("/etc", "/opt", "/run", "/var", "/home", "/root", "/dev", "/tmp", "/usr/local"))  # fmt: skip
    assert [x for x in managed if not x.startswith(_OPEN_TO_ALL)] == [INBOX]
    seen = _attempt(machine, "readable", HOME, "/etc/batchd", "/run/credentials")
    spool = (
        HOME,
        INBOX,
        f"{HOME}/outbox",
        "/run/credentials",
        "/etc/batchd",
        "/etc/batchd/config.toml",
    )
    assert all(x in spool or x.startswith(f"{HOME}/outbox/") for x in seen)
    assert f"{HOME}/outbox/honest/001.json" in seen
    for file in machine.path(f"{HOME}/outbox/honest").rglob("*.json*"):
        # The dropped file is what its dropper made of it.
        assert file.name == "request.json" or secret not in file.read_text("utf-8", "replace")
        assert KEY not in file.read_text("utf-8", "replace")
    assert not machine.try_(*AS_THEM, "journalctl", "-q", "-u", member.name).stdout
    assert "may drop files and read results" in _page()
    assert "Members of the group can read what the others drop, and the results" in _page()


def test_a_member_drops_waits_and_looks(member: Service) -> None:
    """What the page says that a member gets, by the page's own installation."""
    machine = member.machine
    machine.write("/tmp/asked.json", json.dumps({"tasks": [{"first_prompt": "asked"}]}))
    ended = machine.run(*AS_THEM, *BATCHD, "submit", "/tmp/asked.json", "--wait")
    assert f"Results: {HOME}/outbox/asked/" in ended
    assert json.loads(machine.run(*AS_THEM, "cat", f"{HOME}/outbox/asked/001.json"))["status"]
    assert "asked" in machine.run(*AS_THEM, *BATCHD, "status")


def test_the_daemon_is_out_of_reach(member: Service) -> None:
    """No signal, no trace, no socket, no cgroup;
    systemd takes neither orders nor signs of life from them.
    """
    machine = member.machine
    folder = drop(machine, "honest-work", *notes("honest-work"))
    under_way(machine, "honest-work")
    inside = [member.show("MainPID"), *machine.run("pgrep", "-u", "batchd").split()]
    assert _attempt(machine, "reach", *inside) == []
    assert _attempt(machine, "replace") == []
    for verb in ("stop", "restart", "kill", "reload", "freeze", "clean", "disable", "revert"):
        assert machine.try_(*AS_THEM, "systemctl", verb, member.name).returncode != 0, verb
    assert (
        machine.try_(*AS_THEM, "systemctl", "set-property", member.name, "CPUQuota=1%").returncode
        != 0
    )
    assert machine.try_(*AS_THEM, "systemd-run", "--system", "true").returncode != 0
    machine.try_(*AS_THEM, "NOTIFY_SOCKET=/run/systemd/notify", "systemd-notify", "--ready", "STOPPING=1", "MAINPID=1", "WATCHDOG=trigger")  # fmt: skip
    went_on(machine, folder, "honest-work")


@pytest.mark.parametrize(
    "order",
    [
        ("status", "honest/001"),
        ("cancel", "honest", "--yes"),
        ("retry", "honest"),
        ("pause",),
        ("resume",),
        ("tune", "sandbox.backend=none"),
        ("trust", "/tmp", "--system"),
        ("backup",),
        ("restore", "--new", "--yes"),
        ("prune", "--outbox", "--yes"),
        ("serve",),
        ("logs", "honest"),
        ("web",),
    ],
    ids=lambda order: order[0],
)
def test_orders_are_the_daemons_users(
    service: Service, account: str, order: tuple[str, ...]
) -> None:
    """Each command of batchd's that a member gives is refused in a sentence,
    and changes nothing.
    """
    machine, before = service.machine, service.main
    batches = _names(machine, f"{HOME}/outbox")
    done = machine.try_(*AS_THEM, *BATCHD, *order)
    said = done.stdout + done.stderr
    assert done.returncode in {2, 3}, (account, said)
    assert "Traceback" not in said
    assert said.strip()
    assert (service.main, _names(machine, f"{HOME}/outbox")) == (before, batches)
    assert not machine.path("/etc/batchd/trusted").exists()


def test_what_they_drop_leads_nowhere(member: Service) -> None:
    """Links, FIFOs, sockets, folders, others' files, odd names:
    nothing is followed, opened or shown raw.
    """
    machine = member.machine
    before = _names(machine, f"{HOME}/outbox")
    machine.write("/home/alice/private", "hers")
    machine.run("chmod", "600", "/home/alice/private")
    machine.run("chown", "-R", "alice:", "/home/alice/private")
    script = f"""
        cd {INBOX}
        ln -s /etc/shadow a.json; ln -s /home/alice/private b.json; ln -s {HOME}/.batchd .claimed; ln -s . c.json
        mkfifo d.json; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("e.json")'
        mkdir -p f.json/g; ln /etc/passwd h.json || ln /home/alice/private h.json || true
        mknod i.json b 8 0 || true; mknod j.json c 1 8 || true; unshare -Ur mknod k.json c 1 8 || true
        truncate -s 1T l.json; install -m 4755 /bin/true m.json; install -m 0 /dev/null n.json
        python3 -c 'print("[" * 10**6)' >o.json; python3 -c 'print("{{\\"a\\":" * 10**5)' >p.json
        printf '{{"first_prompt": 1}}' | tee -- $'q\\n\\e[2J\\e]0;x\\a.json' $'r\\nBATCHD_EVENT=task_finished\\nPRIORITY=0.json' \\
            $'\\xff\\xfe.json' '$(touch t).json' '`id`.json' "'; rm -rf ;'.json" '-rf.json' '..json.json' >/dev/null
        echo '[paths]' >config.toml; echo 'import os; os.system("id >/tmp/ran")' | tee usercustomize.py x.pth >/dev/null
    """
    machine.run(*AS_THEM, "bash", "-c", script)
    left = {*"abcdef"}
    until(
        lambda: {Path(x).stem for x in _names(machine, INBOX) if x[0] != "."} == left,
        machine.last_words,
    )
    until(lambda: not _names(machine, f"{HOME}/.batchd/claimed"), machine.last_words)
    batches = _names(machine, f"{HOME}/outbox") - before
    assert len(batches) >= 15
    assert all(name.isprintable() and name[0] not in ".-" for name in batches)
    assert {_summary(machine, name)["status"] for name in batches} == {"rejected"}
    lines = member.logged("task_finished")
    assert all("task" in line and line["level"] == "info" for line in lines)
    said = machine.run("runuser", "-u", "batchd", "--", *BATCHD, "status")
    said += machine.run("journalctl", "-u", member.name, "-o", "cat", "--no-pager")
    assert "\x1b" not in said
    assert "\a" not in said
    assert not machine.path("/tmp/ran").exists()
    (private,) = machine.run("stat", "-c", "%U %a %s", "/home/alice/private").splitlines()
    assert private == "alice 600 4"


def test_they_choose_no_directory_of_others(member: Service) -> None:
    """A task's `dir` is refused outside of the workspace, and for all that batchd owns;
    a link in the inbox is no way round.
    """
    machine = member.machine
    directories = [
        *(
            "/home/alice",
            "/home/alice/.ssh",
            "/root",
            "/",
            "/etc",
            "/etc/batchd",
            "/etc/systemd/system",
        ),
        *(
            "/etc/systemd/system/batchd.service.d",
            "/run/systemd/system",
            "/opt/batchd",
            "/opt/batchd/.venv",
        ),
        *("/opt/batchd/outbox", ".", "..", "inbox", "outbox", "outbox/honest/001", ".batchd"),
        *(
            ".batchd/claimed",
            "/tmp",
            "/run/credentials/batchd.service",
            "../../../home/alice",
            "inbox/way",
        ),
        *(
            "outbox/../.batchd",
            "/proc/self/cwd",
            "/proc/1/root",
            ".ssh",
            ".config",
            ".config/batchd",
        ),
        *(".local/share/systemd", f"/home/{NAME}", "a\nb", "\x1b[2J", "x" * 5000),
    ]
    machine.run(*AS_THEM, "ln", "-s", "/home/alice", f"{INBOX}/way")
    tasks = [{"first_prompt": "x", "dir": each} for each in directories]
    machine.write("/tmp/chosen.json", json.dumps({"tasks": tasks}))
    machine.run(*AS_THEM, "cp", "/tmp/chosen.json", INBOX)
    summary = _summary(machine, "chosen")
    assert summary["status"] == "rejected"
    places = {problem["place"] for problem in summary["errors"]}
    # Those outside of the workspace are one error, which names some and counts the rest.
    others = r"so do those of ((?:tasks\[\d+\](?:, )?)+)(?: and (\d+) more)?"
    ((named, more),) = re.findall(others, json.dumps(summary["errors"]))
    assert len(places) + named.count("tasks[") + int(more or 0) == len(directories)


def test_a_race_for_a_name(member: Service) -> None:
    """A file, a link, a FIFO and a folder take each other's place as it is claimed,
    and others are leased: others' files go on.
    """
    machine = member.machine
    with _trying(machine, "race"), _trying(machine, "lease", "100"):
        until(lambda: len(_races(machine)) >= 400, machine.last_words)
        _served(machine)
    until(lambda: not _names(machine, f"{HOME}/.batchd/claimed"), machine.last_words)
    for name in _races(machine):
        (request,) = machine.path(f"{HOME}/outbox/{name}").glob("request*")
        assert request.is_file()
        assert not request.is_symlink()
    troubles = [line["message"] for line in member.logged("inbox_trouble")]
    assert not [x for x in troubles if "cannot be worked on" in x]


def _races(machine: Machine) -> list[str]:
    return [x for x in _names(machine, f"{HOME}/outbox") if x.startswith(("race", "leased"))]


def test_a_request_is_theirs_and_is_not_believed(member: Service) -> None:
    """The dropped file stays their own in the outbox:
    after `prune`, a retry does not believe what it says by then.
    """
    machine = member.machine
    machine.write(
        "/tmp/mine.json", json.dumps({"evaluator": "none", "tasks": [{"first_prompt": "mine"}]})
    )
    machine.run(*AS_THEM, "cp", "/tmp/mine.json", INBOX)
    (result,) = results(machine.path(f"{HOME}/outbox/mine"), machine.last_words)
    assert result["status"] == "completed"
    assert _attempt(machine, "exchange", "mine") == ["request.json"]
    ordering = ("runuser", "-u", "batchd", "--", *BATCHD)
    machine.run(*ordering, "prune", "--older-than", "0", "--yes")
    again = machine.try_(*ordering, "retry", "mine", "--yes")
    assert "somebody else" in again.stdout + again.stderr
    assert again.returncode != 0
    assert not [x for x in _names(machine, f"{HOME}/outbox") if x.startswith("mine-")]


def test_a_flood_of_names(member: Service) -> None:
    """A hundred thousand names in the inbox
    that are no files keep no one's file from being taken.
    """
    machine = member.machine
    assert _attempt(machine, "litter", "100000") == 100_000
    _served(machine)
    assert len(_names(machine, INBOX)) >= 100_000


def test_nothing_of_theirs_is_run(service: Service, account: str) -> None:
    """Python's and systemd's own places to load from, where they may write:
    at a restart, at an operator's command in their folder.
    """
    machine, ran = service.machine, "/tmp/ran-theirs"
    machine.shell(f"rm -f {ran}; install -m 666 /dev/null {ran}")
    script = f"""
        cd ~; mkdir -p .config/systemd/user/batchd.service.d .config/environment.d .config/batchd lure/batchd
        evil='import os; open("{ran}", "a").write(f"{{os.getuid()}}\\n")'
        for place in ~/lure {INBOX} /tmp /var/tmp /dev/shm; do
            mkdir -p $place/batchd 2>/dev/null || true
            for name in json re asyncio usercustomize sitecustomize multiprocessing batchd/__init__; do
                echo "$evil" >$place/$name.py
            done
            echo "$evil" >$place/evil.pth
            printf '[notify.x]\\nkind = "command"\\ncommand = ["/bin/sh", "-c", "id -u >>{ran}"]\\n' >$place/config.toml
            ln -sfn /etc $place/pymp-x; ln -sfn {HOME}/.batchd/batchd.db $place/tmp; echo 'PYTHONPATH={INBOX}' >$place/.env
        done
        echo 'PYTHONPATH={INBOX}' >.config/environment.d/x.conf
        printf '[Service]\\nExecStartPre=/bin/sh -c "id -u >>{ran}"\\n' >.config/systemd/user/batchd.service.d/x.conf
        printf '[Service]\\nType=oneshot\\nExecStart=/bin/sh -c "id -u >>{ran}"\\n' >.config/systemd/user/batchd.service
        export XDG_RUNTIME_DIR=/run/user/$(id -u)
        systemctl --user daemon-reload; systemctl --user set-environment PYTHONPATH={INBOX} PYTHONSTARTUP={INBOX}/json.py
        systemctl --user start batchd || true
    """
    try:
        machine.shell(script, *AS_THEM)
        service.control("restart")
        _served(machine)
        daemon = service.show("MainPID")
        for folder in ("/tmp", "/var/tmp"):
            there, here = machine.run(
                "stat", "-c", "%d:%i", f"/proc/{daemon}/root{folder}", folder
            ).split()
            assert there != here
        for order in (("status",), ("check",), ("notify", "--test"), ("status",)):
            lured = f'cd /home/{account}/lure 2>/dev/null || cd /var/tmp; exec "$@"'
            for command in ((*BATCHD, *order), (BATCHD[0], *order)):
                as_operator = ("runuser", "-u", "batchd", "--", "sh", "-c", lured, "sh")
                machine.try_(*as_operator, *command)
                machine.try_("sh", "-c", lured, "sh", *command)
        # Their own manager ran their own, as themselves; that is theirs to do.
        assert {*machine.path(ran).read_text().split()} == {
            machine.run("id", "-u", account).strip()
        }
    finally:
        machine.shell(f"rm {ran}; find /tmp /var/tmp /dev/shm -user {account} -delete")
        clear = f"rm -rf ~/lure ~/.config; find {INBOX} -mindepth 1 -user {account} -delete"
        runtime = f"XDG_RUNTIME_DIR=/run/user/{machine.run('id', '-u', account).strip()}"
        machine.shell(f"systemctl --user stop batchd || true; {clear}", *AS_THEM, runtime)


@pytest.mark.parametrize("what", ["bytes", "names"])
def test_a_full_disk(service: Service, account: str, what: str) -> None:
    """A member can fill the disk that the spool shares with the inbox:
    what waits is kept, over a restart too, and goes on.
    """
    machine = service.machine
    with _small_disk(service):
        # On a busy machine a disk is not full within two seconds.
        folder = drop(machine, f"full-{what}", *notes(f"full-{what}", latency_s=2.0))
        under_way(machine, f"full-{what}")
        assert _attempt(machine, "fill", what) == what
        ordering = ("runuser", "-u", "batchd", "--", *BATCHD)
        until(lambda: "Trouble" in machine.run(*ordering, "status"), machine.last_words)
        # No daemon starts without room for its store; systemd tries again and again.
        machine.try_(*service.systemctl, "restart", service.name)
        assert not (folder / "summary.json").exists(), account
        assert _attempt(machine, "clear") > 0
        until(lambda: service.show("ActiveState") == "active", machine.last_words)
        went_on(machine, folder, f"full-{what}")
    assert "A member can fill the disk that inbox and state share" in _page()


@contextlib.contextmanager
def _small_disk(service: Service) -> Iterator[None]:
    """Give the spool a small disk of its own for a while."""
    machine = service.machine
    service.control("stop")
    options = "size=64m,nr_inodes=3000,uid=$(id -u batchd),gid=$(id -g batchd),mode=750"
    machine.shell(f"mount -t tmpfs -o {options} tmpfs {HOME}")
    try:
        machine.run("install", "-d", "-o", "batchd", "-g", "batchd", "-m", "3770", INBOX)
        service.control("start")
        yield
    finally:
        service.control("stop")
        machine.run("umount", HOME)
        service.control("start")
