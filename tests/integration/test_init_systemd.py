"""`batchd init --systemd --user` where no systemd runs:
what it writes, what it refuses, and that all of it can be taken back.

tests/systemd has it, and the system's service, on a machine that runs one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm

#: What a unit's own /tmp hides.
_HIDDEN = ("/tmp", "/var/tmp")

pytestmark = pytest.mark.skipif(
    any(path.startswith(_HIDDEN) for path in map(os.path.realpath, (warm.ROOT, sys.prefix))),
    reason="no unit could reach this checkout",
)


@dataclass(frozen=True)
class Home:
    """A home with a spool in it, which is not below /tmp."""

    folder: Path

    @property
    def spool(self) -> Path:
        """Where the spool is, its path one that a unit must quote."""
        return self.folder / "my %h spool"

    @property
    def unit(self) -> Path:
        """Where the unit goes."""
        return self.folder / ".config/systemd/user/batchd.service"

    @property
    def env(self) -> Path:
        """Where the key goes."""
        return self.folder / ".config/batchd/env"

    def batchd(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command where no systemctl is found: that of this machine is somebody's."""
        environ = {**os.environ, "HOME": str(self.folder), "PYTHONPATH": str(warm.ROOT)}
        command = [sys.executable, "-m", "batchd", *map(str, arguments)]
        return warm.run(command, env={**environ, "PATH": "/nonexistent"}, cwd=self.folder)

    def systemd(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Make a service of the spool."""
        return self.batchd("init", "--systemd", "--user", *more, self.spool)

    def tree(self) -> set[Path]:
        """Return all that is there."""
        return {*self.folder.rglob("*")}


@pytest.fixture
def home() -> Iterator[Home]:
    """A home with a new spool."""
    with tempfile.TemporaryDirectory(prefix="batchd-", dir="/dev/shm") as folder:
        home = Home(Path(folder))
        assert home.batchd("init", home.spool).returncode == 0
        yield home


def test_it_shows_writes_and_takes_the_unit_back(home: Home) -> None:
    """Nothing is written without a yes; what is left to do is said; a unit that was changed since
    stays beside the new one; `--remove` removes the unit, and names what stays.
    """
    before = home.tree()
    shown = home.systemd()
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"write {home.unit} (mode 0644)" in shown.stdout
    assert home.tree() == before
    done = home.systemd("--yes")
    assert done.returncode == 0, done.stderr
    for said in (
        "  systemctl --user enable --now batchd\n",
        f"  echo OPENAI_API_KEY=… >> {home.env}\n  systemctl --user restart batchd\n",
    ):
        assert said in done.stdout
    text = home.unit.read_text()
    place = str(home.spool).replace("%", "%%")
    assert f' --config "{place}/config.toml" serve\n' in text
    assert f"\nWorkingDirectory={place}\n" in text
    assert f'\nReadWritePaths="{place}"\n' in text
    assert f"\nEnvironmentFile=-{home.env}\n" in text
    assert (home.env.stat().st_mode & 0o777, home.env.read_text()) == (
        0o600,
        "# OPENAI_API_KEY=…\n",
    )
    # Once more, as after an upgrade; and the key is there now.
    with home.env.open("a") as file:
        file.write("OPENAI_API_KEY=sk-0123456789\n")
    assert "restart" not in home.systemd("--yes").stdout
    assert home.unit.read_text() == text
    home.unit.write_text(f"{text}Nice=5\n")
    assert home.systemd("--yes").returncode == 0
    old = home.unit.with_suffix(".service.old")
    assert old.read_text() == f"{text}Nice=5\n"
    old.unlink()
    assert home.unit.read_text() == text
    assert "Nothing is done yet" in home.systemd("--remove").stdout
    removed = home.systemd("--remove", "--yes")
    assert f"stays: {home.env.parent}." in removed.stdout
    assert {path for path in home.tree() - before if path.is_file()} == {home.env}
    assert home.systemd("--remove", "--yes").returncode == 3


def test_a_timer_drops_a_file_at_set_times(home: Home) -> None:
    """It makes up for a time at which the machine was off; a time that nobody can check, a file
    with errors and a second file of the same name are refused; `--remove` takes it back.
    """
    nightly = home.spool / "sample.json"
    timer = home.unit.parent / "batchd-every-sample.timer"
    for when, file in (("2 o'clock", nightly), ("02:00", home.spool / "config.toml")):
        assert home.systemd("--every", when, str(file), "--yes").returncode == 2
    before = home.tree()
    every = ("--every", "Mon 02:00", str(nightly))
    shown = home.systemd(*every)
    assert (shown.returncode, shown.stderr, home.tree()) == (0, "", before)
    assert "enable --now batchd-every-sample.timer" in shown.stdout
    assert home.systemd(*every, "--yes").returncode == 0
    assert "\nOnCalendar=Mon 02:00\n" in timer.read_text()
    assert "\nPersistent=true\n" in timer.read_text()
    place = str(home.spool).replace("%", "%%")
    run = f' --config "{place}/config.toml" submit "{place}/sample.json"\n'
    assert run in timer.with_suffix(".service").read_text()
    other = home.folder / "sample.json"
    other.write_bytes(nightly.read_bytes())
    refused = home.systemd("--every", "02:00", str(other), "--yes")
    assert (refused.returncode, "drops another file of that name" in refused.stderr) == (3, True)
    other.unlink()
    assert home.systemd(*every, "--remove", "--yes").returncode == 0
    assert {path for path in home.tree() - before if path.is_file()} == set()


def test_it_refuses_what_it_has_not_made_and_what_is_not_trusted(home: Home) -> None:
    """A unit that somebody wrote stays;
    a directory without a spool, or one that is not trusted, is none to serve.
    """
    home.unit.parent.mkdir(parents=True)
    home.unit.write_text("[Service]\n")
    done = home.systemd("--yes")
    assert (done.returncode, home.unit.read_text()) == (3, "[Service]\n")
    assert f"{home.unit} is there already" in done.stderr
    home.unit.unlink()
    assert home.batchd("trust", "--remove", home.spool).returncode == 0
    done = home.systemd("--yes")
    assert (done.returncode, "is not trusted" in done.stderr) == (2, True)
    done = home.batchd("init", "--systemd", "--user", home.folder)
    assert (done.returncode, "makes one" in done.stderr) == (2, True)
    assert not home.unit.exists()


def test_a_spool_that_the_unit_hides_is_refused(home: Home, short: Path) -> None:
    """A unit has a /tmp of its own:
    what lies in the other one it cannot reach, and the message says so.
    """
    assert home.batchd("init", short / "spool").returncode == 0
    done = home.batchd("init", "--systemd", "--user", "--yes", short / "spool")
    assert (done.returncode, "PrivateTmp=yes" in done.stderr) == (3, True)
    assert not home.unit.exists()


def test_the_wheel_holds_the_units(tmp_path: Path) -> None:
    """Who installs batchd from a wheel has what is filled in."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=warm.ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    units = {path.name for path in (warm.ROOT / "systemd").iterdir()}
    assert {name.rpartition("/")[2] for name in names if "data/systemd/" in name} == units
