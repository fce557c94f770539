"""Workers on machines that share the disks: each one here is in namespaces of its own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from loglines import logged
from machines import LEASE_S, clients, command, parent_of, processes_there, spool_with, strike
from patience import PATIENCE_S
from pools import asked, drop, nodes, running, summary

from batchd import control
from batchd.pool import shared_folders
from batchd.pool.remote import clock_problem
from batchd.records import SandboxPolicy
from tests.conftest import Spool, stand_in

pytestmark = [
    pytest.mark.in_turns,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes namespaces"),
]


def troubles(spool: Spool) -> str:
    """Return what the daemon says is wrong."""
    found = control.request(spool.folder / ".batchd", "status")["troubles"]
    return "\n".join(each["message"] for each in found)


def right(spool: Spool, base_url: str, tasks: int, *, again: int) -> None:
    """Hold a batch to what it must be: each task done once, what is recorded never paid again."""
    assert summary(spool)["counts"]["completed"] == tasks
    results = [spool.result("b", f"{n:03}") for n in range(1, tasks + 1)]
    assert [each["usage"]["calls"] for each in results] == [3] * tasks
    assert 3 * tasks <= sum(asked(base_url).values()) <= 3 * tasks + again


def test_a_worker_of_a_machine_does_the_work(tmp_path: Path, slow_server: str) -> None:
    """Its tasks end as on this machine, with result, transcript and money; the log names it."""
    spool = spool_with(tmp_path, slow_server, "node7")
    with spool.serving():
        spool.eventually(lambda: "node7" in nodes(spool))
        drop(spool, 3)
        right(spool, slow_server, 3, again=0)
        assert (spool.folder / "outbox/b/001.jsonl").exists()
        listening = subprocess.check_output(["ss", "-ltnp"], text=True)
        daemon = logged(spool.folder / "daemon.log", "daemon_started")[0]["pid"]
        assert f"pid={daemon}," not in listening
    started = logged(spool.folder / "daemon.log", "worker_started")
    assert [line["node"] for line in started] == ["node7"]
    ended = logged(spool.folder / "daemon.log", "task_finished")
    assert {line["node"] for line in ended} == {"node7"}
    assert "model standin/steps-3, on node7" in spool.batchd("logs", "b/001").stdout
    spool.eventually(lambda: not processes_there(spool))
    assert not list((spool.folder / "outbox").glob(".batchd-proof-*"))


@pytest.mark.parametrize("struck", ["worker", "parent", "client", "all"])
def test_what_is_killed_goes_on_elsewhere(tmp_path: Path, slow_server: str, struck: str) -> None:
    """Each task has one result, no recorded answer is paid again, and nothing is left."""
    spool = spool_with(tmp_path, slow_server, "one", "two")
    with spool.serving():
        spool.eventually(lambda: len(nodes(spool)) == 2)
        drop(spool, 4)
        spool.eventually(lambda: "one" in running(spool).values())
        worker = nodes(spool)["one"]
        parent = parent_of(worker)
        pids = {
            "worker": [worker],
            "parent": [parent],
            "client": [pid for pid in clients(spool)],
            "all": [*clients(spool), parent, worker],
        }
        strike(pids[struck])
        right(spool, slow_server, 4, again=2 if struck in {"client", "all"} else 1)
        spool.eventually(lambda: worker not in processes_there(spool))
        spool.eventually(lambda: len(nodes(spool)) == 2)
    spool.eventually(lambda: not processes_there(spool))


def test_a_parent_that_sees_its_worker_die_frees_its_tasks_at_once(
    tmp_path: Path, slow_server: str
) -> None:
    """The lease protects nothing any more: the task goes on,
    though the lease is longer than this test waits for anything.
    """
    spool = spool_with(tmp_path, slow_server, "one", "two")
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace(f"= {LEASE_S}", f"= {2 * PATIENCE_S}"))
    with spool.serving():
        spool.eventually(lambda: len(nodes(spool)) == 2)
        drop(spool, 2)
        spool.eventually(lambda: len(running(spool)) == 2)
        strike([nodes(spool)["one"]])
        assert summary(spool)["counts"]["completed"] == 2
    assert "one" in [line["node"] for line in logged(spool.folder / "daemon.log", "worker_died")]


@pytest.mark.parametrize("frozen", ["worker", "parent", "machine", "client"])
def test_what_is_frozen_beyond_its_lease_writes_nothing_once_its_task_goes_on(
    tmp_path: Path, slow_server: str, frozen: str
) -> None:
    """A command that writes all the time has written its last before the next attempt begins,
    whatever goes on when.
    """
    spool = spool_with(tmp_path, slow_server, "one", "two")
    folder = spool.folder / "work"
    folder.mkdir()
    # Bash reads it before each command: the first one never ends.
    loop = "test -e /task/begun || { touch /task/begun; while :; do echo >>/task/beats; sleep 0.02; done; }"
    (folder / "first.sh").write_text(loop)
    os.chown(folder, 65534, 65534)
    with spool.serving():
        spool.eventually(lambda: len(nodes(spool)) == 2)
        drop(spool, 1, dir="work", env={"BASH_ENV": "/task/first.sh"})
        spool.eventually((folder / "beats").exists)
        (node,) = running(spool).values()
        worker = nodes(spool)[node]
        there = _tree(worker)
        pids = {
            "worker": [worker],
            "parent": [parent_of(worker)],
            "machine": [parent_of(worker), *there],
            "client": clients(spool),
        }[frozen]
        strike(pids, signal.SIGSTOP)
        log = spool.folder / "daemon.log"
        spool.eventually(lambda: _attempts(log) == [1, 2])
        begun = time.time()
        strike(pids, signal.SIGCONT)
        assert summary(spool)["counts"]["completed"] == 1
        assert (folder / "beats").stat().st_mtime < begun
    spool.eventually(lambda: not processes_there(spool))


def _attempts(log: Path) -> list[int]:
    return [
        line.get("attempt", 1)
        for kind in ("task_started", "task_resumed")
        for line in logged(log, kind)
    ]


def _tree(pid: int) -> list[int]:
    """Return a process and all below it but its guard, which sees to the end of the others."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*"):
            below = map(int, (task / "children").read_text().split())
            found += [one for one in below if not _guards(one)]
    return found


def _guards(pid: int) -> bool:
    return b"read -r nothing" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("mount -t tmpfs none {outbox}", "{outbox} is not the daemon's"),
        ("mount -t tmpfs none {state}/tmp", "{state}/tmp is not the daemon's"),
        ("mount -o bind,ro {outbox} {outbox} && mount -o remount,bind,ro {outbox}", "cannot write to {outbox}"),
        ("mount -t tmpfs -o size=1m none /mnt && export TMPDIR=/mnt", "its own disk is full"),
        ("false", "`sh … worker` ended with"),
        ("{{ echo sk-canary-0123456789 >&2; exit 7; }}", "[secret]"),
        ("cd /nowhere", "/nowhere"),
        ("exec yes", "no worker is among them"),
    ],
)  # fmt: skip
def test_a_machine_that_does_not_fit_gets_no_task(
    tmp_path: Path, slow_server: str, before: str, said: str
) -> None:
    """Status says why, with the fix; other workers do its tasks."""
    places = {"outbox": tmp_path / "outbox", "state": tmp_path / ".batchd"}
    (tmp_path / "outbox").mkdir()
    quoted = {name: shlex.quote(str(path)) for name, path in places.items()}
    before = before.format(**quoted)
    bad = command(tmp_path, "bad", before)
    spool = spool_with(tmp_path, slow_server, processes=1, commands=[("bad", bad)])
    config = spool.folder / "config.toml"
    key = tmp_path / "key"
    key.write_text("sk-canary-0123456789\n")
    key.chmod(0o600)
    config.write_text(
        config.read_text().replace("[models.", f'api_key_file = "{key}"\n[models.', 1)
    )
    with spool.serving():
        spool.eventually(lambda: "bad: " in troubles(spool))
        assert said.format(**places) in troubles(spool)
        assert "sk-canary" not in troubles(spool)
        drop(spool, 1)
        assert summary(spool)["counts"]["completed"] == 1
    assert {line.get("node") for line in logged(spool.folder / "daemon.log", "task_started")} == {
        None
    }


def test_a_greeting_is_skipped(tmp_path: Path, slow_server: str) -> None:
    """Whatever a shell prints before the worker speaks, to 64 KB."""
    greeting = 'python3 -c "print(chr(27) * 60_000)"'
    commands = [("node7", command(tmp_path, "node7", greeting))]
    spool = spool_with(tmp_path, slow_server, commands=commands)
    with spool.serving():
        drop(spool, 1)
        assert summary(spool)["counts"]["completed"] == 1


def test_a_task_may_name_its_machine(tmp_path: Path, slow_server: str) -> None:
    """It works there and nowhere else; a name that there is not is refused with those there are."""
    spool = spool_with(tmp_path, slow_server, "one", "two", processes=1)
    with spool.serving():
        spool.eventually(lambda: len(nodes(spool)) == 3)
        drop(spool, 3, machine="two")
        assert summary(spool)["counts"]["completed"] == 3
        refused = spool.batchd(
            "submit", spool.write("x.json", [{"first_prompt": "x", "machine": "twoo"}])
        )
    started = logged(spool.folder / "daemon.log", "task_started")
    assert {line["node"] for line in started} == {"two"}
    assert "no machine 'twoo' is configured" in refused.stderr
    assert "do you mean two?" in refused.stderr


def _exporting(folder: Path, key: str) -> str:
    """Return what gives a machine a key in a variable of its own."""
    (folder / "key.sh").write_text(f"export STANDIN_KEY={key}\n")
    return f". {shlex.quote(f'{folder}/key.sh')}"


def keyed(spool: Spool, key: str) -> None:
    """Have the spool's provider want a key, which the daemon has in a variable."""
    config = spool.folder / "config.toml"
    table = f'api_key_env = "{key}"\n[models.'
    config.write_text(config.read_text().replace("[models.", table, 1))


def test_a_machine_without_a_key_gets_no_task_of_its_provider(tmp_path: Path) -> None:
    """It has its own variables; the daemon's do not come to it."""
    with stand_in("--latency", "0.1", "--api-key", "sk-right-123456") as base_url:
        there = _exporting(tmp_path, "sk-right-123456")
        commands = [
            ("with", command(tmp_path, "with", there)),
            ("without", command(tmp_path, "without")),
        ]
        spool = spool_with(tmp_path, base_url, commands=commands)
        keyed(spool, "STANDIN_KEY")
        with spool.serving(STANDIN_KEY="sk-right-123456"):
            spool.eventually(lambda: len(nodes(spool)) == 2)
            drop(spool, 4)
            assert summary(spool)["counts"]["completed"] == 4
    started = logged(spool.folder / "daemon.log", "task_started")
    assert {line["node"] for line in started} == {"with"}


def test_a_refused_key_of_a_machine_parks_nothing(tmp_path: Path) -> None:
    """Where it is another one than the daemon's, it gets no more of these tasks."""
    with stand_in("--latency", "0.1", "--api-key", "sk-right-123456") as base_url:
        wrong = command(tmp_path, "wrong", _exporting(tmp_path, "sk-wrong-123456"))
        spool = spool_with(tmp_path, base_url, commands=[("wrong", wrong)])
        keyed(spool, "STANDIN_KEY")
        with spool.serving(STANDIN_KEY="sk-right-123456") as daemon:
            spool.eventually(lambda: "wrong" in nodes(spool))
            drop(spool, 2)
            spool.eventually(lambda: "wrong: standin refuses its key" in troubles(spool))
            assert not control.request(spool.folder / ".batchd", "status")["parked"]
            for _ in range(3):  # the key there is the same one, whatever else is changed
                daemon.send_signal(signal.SIGHUP)
                time.sleep(0.3)
            assert len(logged(spool.folder / "daemon.log", "model_failed")) <= 2
            spool.batchd("tune", "pool.processes=1")
            assert summary(spool)["counts"]["completed"] == 2


def test_a_judge_without_a_key_on_a_machine_parks_nothing(tmp_path: Path) -> None:
    """A machine that has the key of a task's model, and not that of its judge, gets no task."""
    with stand_in("--latency", "0.1", "--api-key", "sk-right-123456") as base_url:
        spool = spool_with(tmp_path, base_url, "poor", processes=1)
        config = spool.folder / "config.toml"
        text = config.read_text().replace('by = "none"', 'by = "judge"\njudge_model = "j/steps-3"')
        text += f'[providers.j]\nbase_url = "{base_url}"\napi_key_env = "J_KEY"\n'
        config.write_text(text.replace("[models.", f'api_key_file = "{tmp_path}/key"\n[models.', 1))
        (tmp_path / "key").write_text("sk-right-123456\n")
        with spool.serving(J_KEY="sk-right-123456"):
            spool.eventually(lambda: len(nodes(spool)) == 2)
            drop(spool, 3)
            summary(spool)
            assert not control.request(spool.folder / ".batchd", "status")["parked"]
    started = logged(spool.folder / "daemon.log", "task_started")
    assert {line.get("node") for line in started} == {None}


def test_a_reload_brings_and_takes_machines(tmp_path: Path, slow_server: str) -> None:
    """What is gone gives its tasks back; what is new gets some."""
    spool = spool_with(tmp_path, slow_server, "one")
    config = spool.folder / "config.toml"
    with spool.serving() as daemon:
        spool.eventually(lambda: "one" in nodes(spool))
        drop(spool, 4)
        spool.eventually(lambda: running(spool))
        spool_with(tmp_path, slow_server, "two")
        assert '"two"' in config.read_text()
        daemon.send_signal(signal.SIGHUP)
        assert summary(spool)["counts"]["completed"] == 4
        spool.eventually(lambda: set(nodes(spool)) == {"two"})


def test_a_machine_that_is_asked_to_end_gives_its_tasks_back(
    tmp_path: Path, slow_server: str
) -> None:
    """SIGTERM to what runs there, as from a scheduler: no call is lost."""
    spool = spool_with(tmp_path, slow_server, "one")
    with spool.serving():
        spool.eventually(lambda: "one" in nodes(spool))
        drop(spool, 2)
        spool.eventually(lambda: running(spool))
        strike([parent_of(nodes(spool)["one"])], signal.SIGTERM)
        right(spool, slow_server, 2, again=0)
    assert len(logged(spool.folder / "daemon.log", "worker_started")) == 2


def test_a_daemon_that_dies_takes_its_workers_along(tmp_path: Path, slow_server: str) -> None:
    """The next one waits until nothing there can change a task's directory."""
    spool = spool_with(tmp_path, slow_server, "one")
    with pytest.raises(AssertionError), spool.serving() as daemon:
        spool.eventually(lambda: "one" in nodes(spool))
        drop(spool, 2)
        spool.eventually(lambda: running(spool))
        daemon.kill()
        spool.eventually(lambda: not processes_there(spool))
        raise AssertionError
    with spool.serving():
        right(spool, slow_server, 2, again=2)


def test_a_worker_that_the_daemon_never_greets_ends_by_itself(tmp_path: Path) -> None:
    """Its lease counts from its start, also where nothing is heard of the daemon any more."""
    program = "from batchd.pool import elsewhere; elsewhere._START_S = 1.0; elsewhere.main()"
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.wait(PATIENCE_S) == 3


def test_a_command_of_a_task_cannot_turn_a_proof_into_another_file(tmp_path: Path) -> None:
    """Who may write in a shared folder may put a pipe, or a link, where an answer is to be."""
    tmp_path.chmod(0o777)
    (proof, word), *_ = shared_folders.ask([str(tmp_path)], SandboxPolicy()).items()
    place = tmp_path / proof.name
    os.mkfifo(place / "answer")
    assert "is no file" in shared_folders.problem(proof, word, SandboxPolicy())
    (place / "answer").unlink()
    (place / "answer").symlink_to("/etc/passwd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_folders, "_PATIENCE_S", 0.1)
        assert "not seen here" in shared_folders.problem(proof, word, SandboxPolicy())


def test_ssh_forwards_nothing_and_asks_nobody(tmp_path: Path, slow_server: str) -> None:
    """Its options are in front of the user's, and its environment has no key."""
    bin = tmp_path / "bin"
    bin.mkdir()
    ssh = bin / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$@" >"{tmp_path}/options"; env >"{tmp_path}/environ"\n'
        f'exec "{sys.executable}" -m batchd worker\n'
    )
    ssh.chmod(0o755)
    spool = spool_with(
        tmp_path, slow_server, commands=[("", [str(ssh), "node7", "batchd", "worker"])]
    )
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace('name = "", ', ""))
    with spool.serving(SOME_API_KEY="sk-canary-0123456789", PATH=f"{bin}:{os.environ['PATH']}"):
        drop(spool, 1, machine="node7")
        assert summary(spool)["counts"]["completed"] == 1
    options = (tmp_path / "options").read_text()
    assert options.startswith("-a -x -T -o BatchMode=yes -o ClearAllForwardings=yes")
    assert "-o StrictHostKeyChecking=yes node7 batchd worker" in options
    assert "canary" not in (tmp_path / "environ").read_text()


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ('[{command = ["srun", "batchd", "worker"]}]', "it has no name"),
        ('[{command = ["ssh", "a"]}, {command = ["ssh", "u@a"]}]', "another machine is called a"),
        ('[{name = "k", command = ["env", "OPENAI_API_KEY=sk-1", "worker"]}]', "OPENAI_API_KEY"),
        ('[{name = "k", command = ["srun", "--export=ALL,A_TOKEN=sk-1", "worker"]}]', "A_TOKEN"),
        ('[{name = "k", command = ["sh", "-c", "export X_KEY=sk-1; batchd worker"]}]', "X_KEY"),
        ('[{name = "k", command = []}]', "machines"),
    ],
)
def test_a_wrong_machine_is_refused(
    tmp_path: Path, slow_server: str, machines: str, said: str
) -> None:
    """With what is wrong, and no key of it."""
    spool = spool_with(tmp_path, slow_server)
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace("machines = []", f"machines = {machines}"))
    done = spool.batchd("config")
    assert said in done.stderr
    assert "sk-1" not in done.stderr


def test_a_clock_that_is_off_is_said() -> None:
    """By a minute or more."""
    assert not clock_problem(time.time() + 50)
    assert "off by -61 s" in clock_problem(time.time() - 61)


def test_the_machines_of_a_configuration_are_shown_without_their_arguments(
    tmp_path: Path, slow_server: str
) -> None:
    """The program and the last word of a command alone."""
    hidden = ["ssh", "-i", "/secret/path", "node7", "batchd", "worker"]
    spool = spool_with(tmp_path, slow_server, commands=[("node7", hidden)])
    for form in ((), ("--json",)):
        shown = spool.batchd("config", *form).stdout
        assert "node7" in shown
        assert "/secret/path" not in shown
    rows: list[dict[str, Any]] = json.loads(spool.batchd("config", "--json").stdout)["values"]
    (value,) = (row["value"] for row in rows if row["key"] == "pool.machines")
    assert value == [{"name": "node7", "command": ["ssh", "…", "worker"], "processes": 1}]
