"""A built wheel on a machine without a checkout:
as the service of the system, and as the Containerfile installs it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed import KEY, PERSON, USER, drop, results, steps
from machine import ROOT, Machine, Service, booted
from ports import free_port

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can boot a machine"),
    pytest.mark.timeout(600),
]

#: Where the Containerfile has what it copies.
_COPIED = "/usr/local/src/batchd"
_GUIDE = "docs/operating.md"
#: What comes before commands of the pages;
#: and what has pip take the packages that batchd is tested with.
_HERE = f'sudo() {{ "$@"; }}\ncd {_COPIED}\n'
_EXACT = ("env", f"PIP_CONSTRAINT={_COPIED}/constraints.txt", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
_MODEL_UNIT = """\
[Service]
Environment=PYTHONPATH=/srv/tests
ExecStart=/opt/batchd/bin/python -m standin.server --no-count --port {port} --api-key {key}
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Machine]:
    """A machine that has the wheel and the constraints, and no batchd."""
    dist = tmp_path / "dist"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", dist]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = dist.iterdir()
    with booted(tmp_path) as machine:
        machine.run("mkdir", "-p", _COPIED)
        machine.path(f"{_COPIED}/{wheel.name}").write_bytes(wheel.read_bytes())
        machine.write(f"{_COPIED}/constraints.txt", (ROOT / "constraints.txt").read_text())
        yield machine


def _served(machine: Machine) -> str:
    """Start a stand-in model from the installation itself; return its address."""
    port = free_port()
    shutil.copytree(ROOT / "tests/standin", machine.path("/srv/tests/standin"))
    machine.write("/etc/systemd/system/model.service", _MODEL_UNIT.format(port=port, key=KEY))
    machine.run("systemctl", "enable", "--now", "model.service")
    return f"http://127.0.0.1:{port}/v1"


def test_it_is_the_systems_service(bare: Machine) -> None:
    """The guide's commands, which `init --systemd` names as the way out,
    make a service that works.
    """
    bare.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    install, init = steps(
        _GUIDE, "From the wheel, these commands make the system's service"
    ).rsplit("\nsudo ", 1)
    bare.shell(_HERE + install, *_EXACT)
    model = f"--model standin/steps-2 --base-url {_served(bare)}"
    bare.shell(f"{init.strip()} {model} --key-file /etc/batchd/standin.key --yes")
    bare.write("/etc/batchd/standin.key", KEY)
    bare.run("usermod", "-aG", "batchd", USER)
    bare.run("systemctl", "restart", "batchd")
    assert Service(bare).show("ActiveState") == "active"
    (result,) = results(drop(bare, "one", {"first_prompt": "one"}), bare.last_words)
    assert result["status"] == "completed"


def test_what_the_containerfile_runs_works(bare: Machine) -> None:
    """Its RUN lines install a batchd that makes a spool in its user's home,
    and works there as its ENV and USER say.
    """
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    for script in re.findall(r"^RUN (.+)$", text, flags=re.MULTILINE):
        bare.shell(script, "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
    (home,) = re.findall(r"^ENV HOME=(.+)$", text, flags=re.MULTILINE)
    (place,) = re.findall(r"^WORKDIR (.+)$", text, flags=re.MULTILINE)
    (user,) = re.findall(r"^USER (.+)$", text, flags=re.MULTILINE)
    model = f"--model standin/steps-2 --base-url {_served(bare)} --key-env MY_KEY"
    inside = ("runuser", "-u", user, "--", "env", f"HOME={home}", f"MY_KEY={KEY}")
    (program,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', text, flags=re.MULTILINE)
    bare.shell(f"cd {place}; {program} init . {model}", *inside)
    bare.shell(
        f"cd {place}; {program} serve & "
        "until [ -S .batchd/control.sock ]; do sleep 0.1; done; "
        f"{program} submit --wait --prompt one --check true; kill $!; wait $!",
        *inside,
    )


def test_the_readmes_way_to_a_first_task(bare: Machine) -> None:
    """By pipx of the distribution, for somebody without root:
    an installation, a spool, a check, and a task that ends.
    """
    bare.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    apt, *install = steps("README.md", "In the checkout: `make setup").splitlines()
    bare.shell(_HERE + apt.replace("install", "install -qq -y"), *_EXACT)
    bare.shell("\n".join([_HERE, *install]), *PERSON, *_EXACT)
    # The stand-in is started from an installation of the system's.
    bare.shell(
        f"python3 -m venv /opt/batchd; /opt/batchd/bin/pip install -q {_COPIED}/*.whl", *_EXACT
    )
    model = f"--model standin/steps-2 --base-url {_served(bare)} --key-env OPENAI_API_KEY"
    text = steps("README.md", "A **spool** is a directory").replace("…", KEY)
    lines = text.replace("init ~/spool", f"init ~/spool {model}").splitlines()
    assert len(lines) == 4
    # In place of `batchd serve`. The stand-in of this name writes no fizzbuzz.
    lines[-1] = "batchd run sample.json || test $? = 1"
    bare.shell(
        "\n".join(lines), *PERSON, *_EXACT[:2], f"PATH=/home/{USER}/.local/bin:/usr/bin:/bin"
    )
    assert bare.path(f"/home/{USER}/spool/outbox/sample/report.html").exists()
    assert "batchd.1" in bare.run(
        *PERSON, *_EXACT[:2], f"PATH=/home/{USER}/.local/bin:/usr/bin:/bin", "man", "-w", "batchd"
    )
