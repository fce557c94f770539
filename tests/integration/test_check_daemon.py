"""`batchd check` beside a daemon:
what counts is what the daemon sees, and how that differs from here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest
from loglines import logged
from sockets import bind

from batchd import control
from batchd.errors import SandboxUnavailableError
from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

_KEY = "sk-hush-4711-0815"


def _checked(spool: Spool, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = spool.batchd("check", "--json", *arguments)
    return done.returncode, json.loads(done.stdout)


def _of(lines: list[dict[str, Any]], what: str) -> str:
    """Return all that is said of something."""
    return "\n".join(f"{x['verdict']}: {x['detail']}" for x in lines if x["what"] == what)


def test_keys_count_where_the_daemon_has_them(spool: Spool) -> None:
    """Who checks has no key, and the daemon does:
    nothing fails, the model is looked for, and no key is said.
    """
    config = spool.folder / "config.toml"
    text = config.read_text()
    config.write_text(text.replace("[providers.standin]", '[providers.standin]\napi_key_env = "K"'))
    assert _checked(spool)[0] == 3
    with spool.serving(K=_KEY) as daemon:
        code, lines = _checked(spool)
        assert code == 0, lines
        assert "the key was not tried" in _of(lines, "provider standin")
        assert "standin/steps-2 is there" in _of(lines, "agent model")
        assert f"process {daemon.pid}, " in _of(lines, "daemon")
        assert f"(uid {os.geteuid()}), groups " in _of(lines, "daemon")
        assert _KEY not in json.dumps(lines)


def test_a_provider_that_is_parked_fails_the_check(spool: Spool, model_server: str) -> None:
    """What calls have found, the daemon says, whatever the provider's list of models says."""
    config = spool.folder / "config.toml"
    text = config.read_text()
    config.write_text(text.replace(model_server, "http://127.0.0.1:1/v1"))
    with spool.serving():
        spool.batchd("submit", spool.write("a.json", [{"first_prompt": "x"}]))
        spool.eventually(lambda: "(next try: " in spool.batchd("status").stdout)
        (wait,) = json.loads(spool.batchd("status", "--json").stdout)["parked"]
        assert 0 < wait["again_at"] - time.time() < 60
        done = spool.batchd("check", "--offline")
        assert done.returncode == 3
        assert "failed provider standin: its tasks wait, provider_unavailable: " in done.stdout
        assert "batchd resume --provider standin" in done.stdout
        spool.batchd("cancel", "a")


def test_a_configuration_in_force_is_held_against_its_file(spool: Spool) -> None:
    """What a reload would take over, what takes a start,
    what `tune` changed, and a file that is wrong by now.
    """
    config = spool.folder / "config.toml"
    text = config.read_text()
    with spool.serving() as daemon:
        assert _of(_checked(spool)[1], "config") == f"ok: {config}"
        config.write_text(
            text.replace("max_retries = 1", "max_retries = 2") + '[log]\nlevel = "error"\n'
        )
        spool.batchd("tune", "pool.processes=1")
        code, lines = _checked(spool)
        said = _of(lines, "config")
        assert code == 0
        assert "note: the file has governor.max_retries otherwise than the daemon" in said
        assert "note: the file has log otherwise than the daemon" in said
        assert "note: `batchd tune` has changed pool.processes = 1" in said
        daemon.send_signal(signal.SIGHUP)
        spool.eventually(lambda: "max_retries" not in _of(_checked(spool)[1], "config"))
        # It is set up at the start alone, reload or not.
        assert "the file has log otherwise" in _of(_checked(spool)[1], "config")
        # From here another file is read: the daemon's own is wrong by now.
        config.write_text("[pool]\nprocesses = 0\n")
        other = spool.folder / "other.toml"
        other.write_text(text)
        done = spool.batchd("check", "--json", "--config", other)
        assert done.returncode == 3
        said = _of(json.loads(done.stdout), "config")
        assert "failed: it is wrong by now, and the daemon keeps what it has" in said
        assert f"note: this command has read {other}, the daemon {config}" in said


def test_an_older_daemon_that_cannot_look_is_said_to_be_one(spool: Spool) -> None:
    """It knows no such question: how to have one of this version stands above its refusal."""
    state = spool.folder / ".batchd"
    state.mkdir(mode=0o700)

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, client.makefile("rwb") as stream:
            stream.readline()
            refusal = {"ok": False, "exit_code": 2, "error": "not a request; the verbs are …"}
            stream.write(json.dumps({**refusal, "batchd": "0.0.9"}).encode() + b"\n")

    with socket.socket(socket.AF_UNIX) as listener:
        bind(listener, state / "control.sock")
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        done = spool.batchd("check")
        thread.join()
    assert done.returncode == 2
    assert "not a request" in done.stderr
    assert "0.0.9" in done.stderr
    assert "restart the daemon" in done.stderr


def test_many_who_check_at_once_have_one_look_in_common(spool: Spool) -> None:
    """A trial of the sandbox and a question to each provider are made once for all of them;
    each has its answer.
    """
    answers: list[control.Checked] = []
    state = spool.folder / ".batchd"

    def ask() -> None:
        answers.append(control.ask(state, control.Check(), timeout_s=120))

    with spool.serving():
        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 50
    assert all(any(line.what == "sandbox" for line in answer.lines) for answer in answers)


def test_a_cgroup_that_is_required_and_not_there_is_refused_with_the_fix(spool: Spool) -> None:
    """At the start and by the check, with the reason; else the log says what holds commands."""
    path = spool.folder / "config.toml"
    path.write_text(path.read_text() + '[sandbox]\ncgroup = "none"\n')
    with spool.serving():
        pass
    assert logged(spool.folder / "daemon.log", "daemon_started")[0]["limits"] == "measured"
    path.write_text(path.read_text() + "require_cgroup = true\n")
    served, checked = spool.batchd("serve"), spool.batchd("check", "--offline")
    why = 'no cgroup of version 2 for commands (cgroup is "none")'
    for said in (served.stderr, checked.stdout):
        assert f"[sandbox] require_cgroup: batchd has {why}" in said
        assert "or name a cgroup of its own in [sandbox] cgroup" in said
    assert (served.returncode, checked.returncode) == (3, 3)
    with pytest.raises(SandboxUnavailableError, match='backend is "none"'):
        Sandbox(SandboxPolicy(backend="none", require_cgroup=True))
