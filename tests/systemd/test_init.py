"""`batchd init --systemd` on a machine of its own:
what it installs works as the documented service does, and goes as it came.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import HOME, KEY, PERSON, USER, drop, results
from machine import Machine, Service, booted, until
from ports import free_port

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a machine"),
    pytest.mark.timeout(300),
]

_BATCHD = "/opt/batchd/.venv/bin/batchd"
_MODEL_UNIT = """\
[Service]
Environment=PYTHONPATH=/opt/batchd/tests
ExecStart=/opt/batchd/.venv/bin/python -m standin.server --no-count --port {port} --api-key {key} --log /var/log/model.jsonl
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, str]]:
    """A machine with the program in /opt/batchd, a person and a model that wants a key,
    and no service; the model's address.
    """
    port = free_port()
    with booted(tmp_path_factory.mktemp("machine")) as machine:
        machine.shell(
            "git config --global safe.directory '*'; git clone -q /srv/source /opt/batchd; "
            "make -C /opt/batchd setup PYTHON=/usr/bin/python3"
        )
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
        unit = _MODEL_UNIT.format(port=port, key=KEY)
        machine.write("/etc/systemd/system/model.service", unit)
        machine.run("systemctl", "enable", "--now", "model.service")
        yield machine, f"http://127.0.0.1:{port}/v1"


def _tree(machine: Machine) -> set[str]:
    """Return all that an installation might leave."""
    places = ("/etc/batchd", "/etc/systemd/system", HOME, "/etc/passwd", "/etc/group")
    found = machine.run("find", *(p for p in places if machine.path(p).exists()))
    users = machine.path("/etc/passwd").read_text() + machine.path("/etc/group").read_text()
    return {*found.splitlines(), *users.splitlines()}


def test_the_system_s_service_comes_and_goes(bare: tuple[Machine, str]) -> None:
    """It works once the key is there, takes what a member of the group drops;
    its units are removed, and all that it worked with stays.
    """
    machine, address = bare
    before = _tree(machine)
    model = ("--model", "standin/steps-2", "--base-url", address)
    install = (_BATCHD, "init", "--systemd", *model, "--key-file", "/etc/batchd/standin.key")
    shown = machine.run(*install)
    assert f"ExecStart={_BATCHD} --config /etc/batchd/config.toml serve" in shown
    assert _tree(machine) == before
    assert "systemctl restart batchd" in machine.run(*install, "--yes")
    machine.write("/etc/batchd/standin.key", KEY)
    machine.run("usermod", "-aG", "batchd", USER)
    machine.run("systemctl", "restart", "batchd")
    service = Service(machine)
    assert (service.show("ActiveState"), service.show("UnitFileState")) == ("active", "enabled")
    (result,) = results(drop(machine, "one", {"first_prompt": "one"}), machine.last_words)
    assert result["status"] == "completed"
    said = machine.run(_BATCHD, "init", "--systemd", "--remove", "--yes")
    assert f"stays: /etc/batchd, {HOME} and the user batchd." in said
    left = _tree(machine) - before
    assert not [line for line in left if line.endswith((".service", ".conf"))]
    assert machine.path(f"{HOME}/outbox/one/summary.json").exists()
    assert any(line.startswith("batchd:") for line in left)


def test_a_service_of_ones_own_comes_and_goes(bare: tuple[Machine, str]) -> None:
    """It serves the spool that `init` made, without root, a timer drops a file there, and they
    leave nothing but that spool and what holds the key behind.
    """
    machine, address = bare
    machine.run("loginctl", "enable-linger", USER)
    runtime = f"/run/user/{machine.run('id', '-u', USER).strip()}"
    until(machine.path(f"{runtime}/systemd/private").exists, machine.last_words)
    person = (*PERSON, f"XDG_RUNTIME_DIR={runtime}")
    spool = f"/home/{USER}/spool"
    model = ("--model", "standin/steps-2", "--base-url", address, "--key-env", "MY_KEY")
    machine.run(*person, _BATCHD, "init", *model, spool)
    home = machine.path(f"/home/{USER}")
    before = {*home.rglob("*")}
    (home / ".config/batchd/env").write_text(f"MY_KEY={KEY}\n")
    said = machine.run(*person, _BATCHD, "init", "--systemd", "--user", "--yes", spool)
    assert "systemctl" not in said.partition("Next:")[2]
    service = Service(machine, systemctl=(*person, "systemctl", "--user"), slice="user.slice")
    until(lambda: service.show("ActiveState") == "active", machine.last_words)
    task = f"cd {spool} && {_BATCHD} submit --wait sample.json"
    done = machine.try_(*person, "bash", "-c", task)
    assert done.returncode in {0, 1}, done.stderr  # the stand-in of this name writes no fizzbuzz
    nightly = ("--every", "Mon..Fri 02:00", f"{spool}/sample.json")
    machine.run(*person, _BATCHD, "init", "--systemd", "--user", *nightly, "--yes", spool)
    user = (*person, "systemctl", "--user")
    assert machine.run(*user, "is-active", "batchd-every-sample.timer") == "active\n"
    machine.run(*user, "start", "batchd-every-sample.service")
    until((home / "spool/outbox/sample-2/summary.json").exists, machine.last_words)
    machine.run(*person, _BATCHD, "init", "--systemd", "--user", "--remove", "--yes")
    (home / ".config/batchd/env").unlink()
    left = {path for path in {*home.rglob("*")} - before if not path.is_relative_to(home / "spool")}
    # systemd remembers for itself when a timer was due last.
    assert [path.name for path in left if not path.is_dir()] == ["stamp-batchd-every-sample.timer"]
    assert service.show("LoadState") == "not-found"


def test_an_installation_below_a_home_is_refused(bare: tuple[Machine, str]) -> None:
    """The system's unit hides homes: the message says what it cannot reach, and both ways out."""
    machine, _ = bare
    machine.shell("cp -r /opt/batchd /root/batchd")
    program = Path("/root/batchd/.venv/bin/python")
    done = machine.try_(str(program), "-m", "batchd", "init", "--systemd", "--yes")
    assert done.returncode == 3
    assert "ProtectHome=yes" in done.stderr
    assert "init --systemd --user" in done.stderr
