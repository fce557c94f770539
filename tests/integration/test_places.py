"""A place of its own: without a configuration nothing in the working directory becomes a spool; `init` makes one; `config` says what counts."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from patience import until

from batchd import config, control
from batchd.config import trust
from batchd.errors import ConfigError, NoDaemonError


@dataclass(frozen=True)
class Person:
    """Somebody with a home, and an empty directory to work in."""

    folder: Path

    @property
    def home(self) -> Path:
        """Their home."""
        return self.folder / "home"

    @property
    def here(self) -> Path:
        """Where they run commands."""
        return self.folder / "here"

    @property
    def own(self) -> Path:
        """The spool of their own."""
        return self.home / ".local/share/batchd"

    @property
    def environment(self) -> dict[str, str]:
        """What tells where they are at home."""
        return {**os.environ, "HOME": str(self.home), "PYTHONPATH": str(warm.ROOT)}

    def batchd(
        self, *arguments: str | Path, cwd: Path | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        command = [sys.executable, "-m", "batchd", *map(str, arguments)]
        return warm.run(command, env={**self.environment, **more}, cwd=cwd or self.here)


@pytest.fixture
def person(short: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Somebody on a machine without a configuration."""
    person = Person(short)
    person.home.mkdir()
    person.here.mkdir()
    monkeypatch.setattr(trust, "SYSTEM", short / "etc")
    return person


def _paths(environ: dict[str, str]) -> set[str]:
    found = config.load(None, environ).paths
    return {found.inbox, found.outbox, found.state}


def test_without_a_configuration_the_spool_is_the_users_own(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in ~/.local/share/batchd, or where XDG_DATA_HOME says absolutely; variables say otherwise, key by key."""
    monkeypatch.chdir(person.here)
    home = {"HOME": str(person.home)}
    names = ("inbox", "outbox", ".batchd")
    assert _paths(home) == {str(person.own / name) for name in names}
    data = {**home, "XDG_DATA_HOME": "/data"}
    assert _paths(data) == {f"/data/batchd/{name}" for name in names}
    assert _paths({**data, "XDG_DATA_HOME": "data"}) == _paths(home)
    state = {**home, "BATCHD_PATHS__STATE": "state"}
    assert config.load(None, state).paths.state == str(person.here / "state")
    assert config.load(None, state).paths.inbox == str(person.own / "inbox")


def test_who_has_no_home_learns_what_to_do(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is not there is none, as those of services' accounts; all folders by variables need none."""
    monkeypatch.chdir(person.here)
    homeless = {"HOME": "/nonexistent"}
    with pytest.raises(ConfigError, match=r"no home for a spool .*\(set HOME, or name a config"):
        config.load(None, homeless)
    named = {f"BATCHD_PATHS__{key}": f"/x/{key}" for key in ("INBOX", "OUTBOX", "STATE")}
    assert _paths({**homeless, **named}) == {"/x/INBOX", "/x/OUTBOX", "/x/STATE"}


def test_submit_without_a_spool_drops_nothing(person: Person) -> None:
    """It says that there is none and how to make one, with exit code 3; nothing is written, here or at home."""
    done = person.batchd("submit", "--prompt", "hello")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no spool here, and nothing was dropped" in done.stderr
    assert "batchd init DIR" in done.stderr
    assert [*person.here.iterdir(), *person.home.iterdir()] == []
    # Where variables name one, it is one.
    named = {f"BATCHD_PATHS__{key}": key for key in ("INBOX", "OUTBOX", "STATE")}
    assert person.batchd("submit", "--prompt", "hello", **named).returncode == 0
    assert [p.name for p in person.here.glob("INBOX/*")] == ["prompt.json"]


def test_commands_say_which_spool_they_mean_where_nothing_names_it(person: Person) -> None:
    """`status` and `serve` name the user's own; while a daemon works there, `submit` drops there."""
    said = f"batchd: no configuration is found; the spool is your own, {person.own}\n"
    done = person.batchd("status")
    assert (done.returncode, done.stderr) == (0, said)
    command = [sys.executable, "-m", "batchd", "serve"]
    log = person.folder / "daemon.log"
    with (
        log.open("wb") as stderr,
        warm.Popen(command, stderr=stderr, env=person.environment, cwd=person.here) as daemon,
    ):
        try:
            until(lambda: _answers(person.own / ".batchd") or daemon.poll() is not None)
            assert log.read_text().startswith(said)
            done = person.batchd("submit", "--prompt", "hello")
            assert (done.returncode, done.stdout) == (
                0,
                f"{person.own}/inbox/prompt.json: 1 task\n",
            )
        finally:
            daemon.terminate()
    assert [*person.here.iterdir()] == []


def _answers(state: Path) -> bool:
    try:
        control.request(state, "status")
    except NoDaemonError:
        return False
    return True


def test_what_an_earlier_version_left_here_is_not_forgotten(person: Person) -> None:
    """A store in the working directory, without a config.toml, is named, with the one command that goes on with it."""
    (person.here / ".batchd").mkdir()
    sqlite3.connect(person.here / ".batchd/batchd.db").close()
    done = person.batchd("status")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{person.here}/.batchd/batchd.db: a spool without a config.toml" in done.stderr
    assert f"`batchd init {person.here}`" in done.stderr
    # The user's own spool is no such thing, and neither is what a variable names.
    person.own.mkdir(parents=True)
    (person.here / ".batchd").rename(person.own / ".batchd")
    assert "a spool without" not in person.batchd("status", cwd=person.own).stderr


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("[build]\njobs = 4\n[net]\noffline = true\n", True),
        ('baseURL = "https://example.org"\n', True),
        ("[build]\n[pool]\nprocesses = 1\n", False),
        ('[agnet]\nmodel = "a/b"\n', False),
        ("", False),
        ("[build\n", False),
    ],
)
def test_another_programs_config_toml_is_called_that(
    person: Person, text: str, foreign: bool
) -> None:
    """One without a table of ours is named as foreign, trusted or not, with what to do; a misspelt table of ours is ours."""
    (person.here / "config.toml").write_text(text)
    done = person.batchd("status")
    assert done.returncode == 2
    assert ("is another program's" in done.stderr) == foreign
    assert ("is not trusted" in done.stderr) != foreign
    assert ("batchd init DIR" in done.stderr) == foreign
    assert person.batchd("trust", person.here).returncode == (3 if foreign else 0)
    assert ("is another program's" in person.batchd("status").stderr) == foreign
