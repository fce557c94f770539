"""A built wheel is a whole batchd: installed by pip, pipx and uv, with no checkout in sight.

Packages come from wherever this machine's pip and uv have them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
#: The fix for the page of `batchd web` stands behind it.
_NEEDS = "batchd: the page needs starlette and uvicorn: "


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as it is built without a network."""
    return _built(tmp_path_factory.mktemp("dist"), "wheel")


def _built(folder: Path, target: str) -> Path:
    _done(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], ROOT, os.environ
    )
    (found,) = folder.iterdir()
    return found


def _done(command: Sequence[str | Path], cwd: Path, environ: Mapping[str, str]) -> str:
    """Run a command to its good end; return what it printed."""
    done = _ended(command, cwd, environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _ended(
    command: Sequence[str | Path], cwd: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@dataclass(frozen=True)
class Machine:
    """An ordinary user's: a home, and none of this checkout's surroundings."""

    folder: Path
    #: The exact versions of packages.
    constraints: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """What all that is started has:
        the packages' exact versions, and all places in the folder.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "BATCHD_"))}
        mine = {
            "HOME": self.folder,
            "PIP_CONSTRAINT": self.constraints,
            "PIP_NO_COMPILE": "1",
            "UV_CONSTRAINT": self.constraints,
            "PATH": f"{self.folder / 'tools/bin'}:{self.folder / '.local/bin'}:{os.environ['PATH']}",
        }
        return {**kept, **{name: str(value) for name, value in mine.items()}}

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run a command to its good end; return what it printed."""
        return _done(command, cwd or self.folder, self.environ)

    def environment(self, name: str) -> Path:
        """Make a virtual environment; return its Python."""
        self.run(sys.executable, "-m", "venv", self.folder / name)
        return self.folder / name / "bin/python"

    def tool(self, name: str) -> None:
        """Install a program that installs others."""
        self.run(self.environment("tools"), "-m", "pip", "install", "-q", name)


@pytest.fixture
def machine(tmp_path: Path, short: Path) -> Machine:
    """A fresh one; pip takes a space in a file's path for two files."""
    shutil.copy(ROOT / "constraints.txt", short)
    return Machine(tmp_path, short / "constraints.txt")


def _is_whole(machine: Machine, batchd: str | Path, python: Path, model_server: str) -> None:
    """Hold that it does what a checkout does, and says, from where it is, how to have the rest."""
    assert machine.run(batchd, "--version").startswith("batchd ")
    spool = machine.folder / "spool"
    model = ("--model", "standin/steps-3", "--base-url", model_server, "--no-key")
    machine.run(batchd, "init", spool, *model)
    task = {"first_prompt": "Try it out", "check": 'test "$PWD" = /task'}
    (spool / "games.json").write_text(json.dumps({"tasks": [task]}))
    assert machine.run(batchd, "run", "games.json", cwd=spool) == "Done.\n"
    report = spool / "outbox/games/report.html"
    assert "Try it out" in report.read_text("utf-8")
    assert json.loads(machine.run(batchd, "schema", "task"))["$schema"]
    assert "complete " in machine.run(batchd, "completion", "bash")
    assert machine.run(batchd, "config", "--sample") == (ROOT / "config.toml").read_text("utf-8")
    _shows_its_unit(machine, batchd, spool)
    page = _ended([batchd, "web"], spool, machine.environ)
    assert (page.returncode, page.stderr[: len(_NEEDS)]) == (3, _NEEDS)
    machine.run("sh", "-c", page.stderr.removeprefix(_NEEDS))
    machine.run(python, "-P", "-c", "import starlette, uvicorn, batchd.web.serving")


def _shows_its_unit(machine: Machine, batchd: str | Path, spool: Path) -> None:
    """A service is shown, and not made;
    or it is said how one has batchd where a unit reaches it.
    """
    done = _ended([batchd, "init", "--systemd", "--user", spool], machine.folder, machine.environ)
    if os.path.realpath(machine.folder).startswith(("/tmp/", "/var/tmp/")):
        assert (done.returncode, "the unit cannot reach " in done.stderr) == (3, True)
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert "batchd.service (mode 0644)" in done.stdout
    assert not (machine.folder / ".config/systemd").exists()


def test_wheel_and_sdist_are_whole(wheel: Path, tmp_path: Path) -> None:
    """Units, sample, schemas, completions and man page are in both, as files;
    what shells and man look for lies where they do.
    """
    names = {str(p.relative_to(ROOT)) for p in (ROOT / "batchd/data").rglob("*") if p.is_file()}
    names |= {f"batchd/data/systemd/{p.name}" for p in (ROOT / "systemd").iterdir()}
    assert len(names) >= 12
    with zipfile.ZipFile(wheel) as file:
        for name in names:
            assert file.read(name) == (ROOT / name).read_bytes()
        shared = {n.partition(".data/data/")[2] for n in file.namelist()}
    assert shared >= {
        "share/bash-completion/completions/batchd",
        "share/zsh/site-functions/_batchd",
        "share/man/man1/batchd.1",
        "share/doc/batchd/docs/operating.md",
    }
    with tarfile.open(_built(tmp_path, "sdist")) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for name in (*names, *(f"systemd/{p.name}" for p in (ROOT / "systemd").iterdir())):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()


@pytest.mark.long
def test_pip_makes_a_whole_one(machine: Machine, wheel: Path, model_server: str) -> None:
    """`pip install WHEEL` in a bare virtual environment."""
    python = machine.environment("own")
    machine.run(python, "-m", "pip", "install", "-q", wheel)
    assert (machine.folder / "own/share/man/man1/batchd.1").is_file()
    _is_whole(machine, machine.folder / "own/bin/batchd", python, model_server)


@pytest.mark.long
def test_uv_makes_a_whole_one(machine: Machine, wheel: Path, model_server: str) -> None:
    """`uv tool install WHEEL`."""
    machine.tool("uv")
    machine.run("uv", "tool", "install", "-q", "--python", sys.executable, wheel)
    python = machine.folder / ".local/share/uv/tools/batchd/bin/python"
    _is_whole(machine, "batchd", python, model_server)


@pytest.mark.long
def test_pipx_makes_a_whole_one(machine: Machine, wheel: Path, model_server: str) -> None:
    """`pipx install WHEEL`; it also puts the man page where `man` looks."""
    machine.tool("pipx")
    machine.run("pipx", "install", "--python", sys.executable, wheel)
    assert (machine.folder / ".local/share/man/man1/batchd.1").is_file()
    python = machine.folder / ".local/share/pipx/venvs/batchd/bin/python"
    _is_whole(machine, "batchd", python, model_server)
