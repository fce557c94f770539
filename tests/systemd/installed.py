"""batchd on a machine with systemd, installed by the documentation's own commands;
and how its work is followed.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import ROOT, Machine, Service, until
from ports import free_port
from verdict import judge

KEY = "sk-of-the-operator-0815-4711"
HOME = "/var/lib/batchd"
#: Somebody who may drop files, and who also runs a daemon of their own.
USER = "alice"
#: Puts a command into their hands.
PERSON = ("runuser", "-u", USER, "--", "env", f"HOME=/home/{USER}")

_MODEL_UNIT = """\
[Service]
Environment=PYTHONPATH=/opt/batchd/tests
ExecStart=/opt/batchd/.venv/bin/python -m standin.server --no-count --port {port} --api-key {key} --log /var/log/model.jsonl
[Install]
WantedBy=multi-user.target
"""
_CONFIG = """
[providers.standin]
base_url = "http://127.0.0.1:{port}/v1"
api_key_file = "openai"
"""
#: What the documentation leaves to the user who edits a file:
#: the key, the name of a model, the one host that tasks may ask for.
_SUDOEDIT = """\
sudoedit() {{
    case $1 in
    *.key) echo {key} >"$1" ;;
    *) sed -i 's|^model = .*|model = "standin/steps-2"|; s|^drain_s = .*|drain_s = 3|' "$1"
       sed -i "s|^network = .*|$(cat /srv/network)|" "$1"; cat /srv/more.toml >>"$1" ;;
    esac
}}
sudo() {{ "$@"; }}
cd /srv/source
"""
_OWN_CONFIG = """
[providers.standin]
base_url = "http://127.0.0.1:{port}/v1"
api_key_env = "OPENAI_API_KEY"
"""
#: What is done by hand before: the checkout, whose packages are those of the system service.
_CHECKOUT = """
git config --global safe.directory '*'
git clone -q /opt/batchd ~/batchd
ln -s /opt/batchd/.venv ~/batchd/.venv
sed -i 's|^model = .*|model = "standin/steps-2"|' ~/batchd/config.toml
sed -i "s|^network = .*|$(cat /srv/network)|" ~/batchd/config.toml
cat /srv/own.toml >>~/batchd/config.toml
cd ~/batchd
"""


def steps(page: str, head: str) -> str:
    """Return the block of commands that follows a line of a page."""
    text = (ROOT / page).read_text().partition(f"\n{head}")[2]
    return textwrap.dedent(re.search(r"\n\n((    .*\n)+)", text)[1])  # type: ignore[index]


def as_a_system_service(machine: Machine) -> Service:
    """Install it for the system, with a model that takes one key alone, and start both."""
    port = free_port()
    machine.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    machine.write("/srv/more.toml", _CONFIG.format(port=port))
    machine.write("/srv/network", f'network = ["127.0.0.1:{port}"]')
    machine.write("/srv/own.toml", _OWN_CONFIG.format(port=port))
    machine.write("/etc/systemd/system/model.service", _MODEL_UNIT.format(port=port, key=KEY))
    lines = steps("docs/operating.md", "As a system service").replace("journalctl -u batchd -f", "")
    machine.shell(_SUDOEDIT.format(key=KEY) + lines, "env", f"USER={USER}")
    machine.run("systemctl", "enable", "--now", "model.service")
    return Service(machine)


def as_a_service_of_ones_own(machine: Machine) -> Service:
    """Install it for a user who has never logged in:
    root says once that their manager runs all the same.
    """
    machine.run("loginctl", "enable-linger", USER)
    runtime = f"/run/user/{machine.run('id', '-u', USER).strip()}"
    until(machine.path(f"{runtime}/systemd/private").exists, machine.last_words)
    lines = (
        steps("docs/operating.md", "As a service of your own")
        .replace("…", KEY)
        .partition("loginctl")[0]
    )
    machine.shell(_CHECKOUT + lines, *PERSON, f"XDG_RUNTIME_DIR={runtime}")
    manager = (*PERSON, f"XDG_RUNTIME_DIR={runtime}", "systemctl", "--user")
    return Service(machine, systemctl=manager, slice="user.slice")


def reaching(machine: Machine) -> dict[str, Any]:
    """Return a task whose commands may reach the model's server, do so, and find nothing else."""
    (listed,) = re.findall(r'"(.*)"', machine.path("/srv/network").read_text())
    check = f"""
        set -ex
        get() {{ python3 -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=20)' "$1"; }}
        get http://{listed}/totals
        if get http://127.0.0.1:1/; then exit 9; fi
        test "$(wc -l </proc/net/dev)" = 3
        grep -x 'Seccomp:\t2' /proc/self/status
    """
    limits = {"max_iterations": 1}
    task = {"first_prompt": "reach", "check": textwrap.dedent(check), "limits": limits}
    return {**task, "network": [listed]}


def drop(machine: Machine, name: str, *tasks: dict[str, Any]) -> Path:
    """Drop a file as a member of the group would; return its folder in the outbox."""
    machine.write(f"/tmp/{name}.json", json.dumps({"evaluator": "none", "tasks": tasks}))
    machine.run(*PERSON, "cp", f"/tmp/{name}.json", f"{HOME}/inbox/")
    return machine.path(f"{HOME}/outbox/{name}")


def notes(name: str, count: int = 2, latency_s: float = 0.2) -> list[dict[str, Any]]:
    """Return tasks of seven calls and six commands each,
    which take some two seconds, or ``latency_s`` for each call.
    """
    model = f"standin/latency-{latency_s:g}+notes-6"
    return [{"first_prompt": f"{name} {i}", "model": model} for i in range(count)]


def asked(machine: Machine, name: str = "") -> list[dict[str, Any]]:
    """Return what the model was asked about a batch, by its own log, oldest first."""
    lines = machine.path("/var/log/model.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return sorted(
        (e for e in entries if e["prompt"].startswith(name)), key=lambda e: float(e["at"])
    )


def results(folder: Path, why: Callable[[], str]) -> list[dict[str, Any]]:
    """Return the results of a batch, at its end."""
    until((folder / "summary.json").exists, why)
    return [json.loads(x) for x in (folder / "results.jsonl").read_text().splitlines()]


def under_way(machine: Machine, name: str) -> None:
    """Wait until a batch is in the middle of its work."""
    until(lambda: len(asked(machine, name)) >= 4, machine.last_words)


def went_on(machine: Machine, folder: Path, name: str) -> None:
    """Hold a batch that was interrupted to what is promised:
    all done, nothing paid or run twice.
    """
    results(folder, machine.last_words)
    figures = judge(folder, asked(machine, name), 2)
    assert figures.statuses == {"completed": 2}
    assert figures.repeated <= figures.unsettled <= 2
