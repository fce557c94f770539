"""Which configuration counts: what is named, what lies in a trusted directory,
the user's own, the system's; in this order.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from loglines import logged
from patience import until

from batchd import config
from batchd.cli import main
from batchd.config import trust
from batchd.errors import ConfigError

pytestmark = pytest.mark.in_turns

#: A user who is neither root nor the one who runs these tests.
_OTHER = 65534
_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@dataclass(frozen=True)
class Ground:
    """A home, and directories with configurations beside it."""

    folder: Path

    @property
    def home(self) -> Path:
        """The user's home."""
        return self.folder / "home"

    @property
    def list(self) -> Path:
        """The user's list of trusted directories."""
        return self.home / ".config/batchd/trusted"

    @property
    def environment(self) -> dict[str, str]:
        """What says where it is."""
        return {"HOME": str(self.home)}

    def configured(self, name: str) -> Path:
        """Return a directory with a configuration in it."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text("")
        return folder

    def batchd(
        self, *arguments: str | Path, cwd: Path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        environ = {**os.environ, **self.environment, "PYTHONPATH": str(warm.ROOT), **more}
        command = [sys.executable, "-m", "batchd", *map(str, arguments)]
        return warm.run(command, env=environ, cwd=cwd)

    def trust(self, directory: Path, *more: str) -> str:
        """Trust a directory; return what was said."""
        done = self.batchd("trust", directory, *more, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def found(self, cwd: Path, environ: Mapping[str, str] | None = None) -> str:
        """Return the configuration that counts in a directory, or why none does."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd)
            try:
                return config.load(None, self.environment if environ is None else environ).file
            except ConfigError as error:
                return str(error)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """A home without anything in it, on a machine without a configuration."""
    ground = Ground(tmp_path)
    ground.home.mkdir()
    monkeypatch.setattr(trust, "SYSTEM", tmp_path / "etc")
    return ground


def test_the_order_of_the_search(ground: Ground) -> None:
    """What is named, by option or variable; a trusted working directory;
    the user's folder; the system's; else the defaults.
    """
    here, bare = ground.configured("here"), ground.folder
    assert ground.found(bare) == ""
    system = ground.configured("etc") / "config.toml"
    assert ground.found(bare) == str(system)
    own = ground.configured("home/.config/batchd") / "config.toml"
    assert ground.found(bare) == str(own)
    ground.trust(here)
    assert ground.found(here) == str(here / "config.toml")
    named = ground.configured("named") / "config.toml"
    environ = {**ground.environment, "BATCHD_CONFIG": str(named)}
    assert ground.found(here, environ) == str(named)
    assert config.load(own, environ).file == str(own)
    # It is set to nothing where it is not meant.
    assert ground.found(here, {**environ, "BATCHD_CONFIG": ""}) == str(here / "config.toml")


def test_one_that_is_not_trusted_is_refused_and_not_passed_over(ground: Ground) -> None:
    """The error names the file, what it could do, and the one command; after that, it counts."""
    ground.configured("home/.config/batchd")
    here = ground.configured("my spool")
    done = ground.batchd("status", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"batchd: {here}/config.toml: its directory is not trusted, and it decides where keys are sent and what runs "
        f"as you (read it; if it is yours: `batchd trust '{here}'`, or name the file with --config or BATCHD_CONFIG)\n"
    )
    (command,) = re.findall("`batchd (.*?)`", done.stderr)
    subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m batchd {command}'],
        env={**os.environ, **ground.environment, "PYTHONPATH": str(warm.ROOT)},
        check=True,
    )
    assert ground.batchd("status", cwd=here).returncode == 0


def test_no_name_becomes_part_of_the_command_that_is_offered(ground: Ground) -> None:
    """Who copies it runs nothing else: names are quoted,
    and of one that an error would cut there is none.
    """
    odd = ground.configured("$(touch mark);'`touch mark`")
    (command,) = re.findall("yours: `(batchd trust .*)`, or name", ground.found(odd))
    assert shlex.split(command) == ["batchd", "trust", str(odd)]
    long = ground.configured("/".join(["'" * 100] * 8))
    assert "yours: `batchd trust DIR`, or name" in ground.found(long)
    assert "[…" not in ground.found(long).partition("(read it")[2]


def test_named_ones_need_no_trust(ground: Ground) -> None:
    """`--config` and BATCHD_CONFIG count whatever lies in the working directory,
    and say where nothing is there.
    """
    here, other = ground.configured("here"), ground.configured("other")
    file = str(other / "config.toml")
    assert ground.batchd("--config", "config.toml", "status", cwd=here).returncode == 0
    assert ground.batchd("status", cwd=here, BATCHD_CONFIG=file).returncode == 0
    done = ground.batchd("status", cwd=here, BATCHD_CONFIG="/nowhere/config.toml")
    assert (done.returncode, done.stderr) == (
        2,
        "batchd: /nowhere/config.toml: the file cannot be read: No such file or directory\n",
    )


def test_a_variable_means_one_file_wherever_it_is_used(ground: Ground) -> None:
    """A relative BATCHD_CONFIG is refused: it would be what a task left, in a task's directory."""
    here = ground.configured("here")
    done = ground.batchd("status", cwd=here, BATCHD_CONFIG="config.toml")
    assert done.returncode == 2
    assert "BATCHD_CONFIG: 'config.toml': it must be an absolute path" in done.stderr


def test_only_the_real_path_counts(ground: Ground) -> None:
    """Neither what lies below a trusted directory, nor above,
    nor beside it with a name that begins alike.
    """
    top = ground.configured("top/spool")
    ground.trust(top)
    (ground.folder / "link").symlink_to(top)
    assert ground.found(ground.folder / "link") == str(top / "config.toml")
    for name in ("top/spool/outbox/games/001", "top/spool2", "top"):
        assert "is not trusted" in ground.found(ground.configured(name)), name
    # A link on the list is as good as none: who may move it would choose what counts.
    ground.list.write_text(f"{ground.folder}/link\n")
    assert "is not trusted" in ground.found(top)


def test_a_link_counts_where_both_ends_are_trusted(ground: Ground) -> None:
    """Relative paths in it mean the place of the link,
    and its content comes from where that leads.
    """
    here, there = ground.configured("here"), ground.configured("there")
    (here / "config.toml").unlink()
    (here / "config.toml").symlink_to("../there/config.toml")
    ground.trust(there)
    assert f"{here}/config.toml: its directory" in ground.found(here)
    ground.batchd("trust", there, "--remove", cwd=here)
    assert ground.batchd("trust", here, cwd=here).returncode == 3
    assert f"{there}/config.toml: its directory" in ground.found(here)
    ground.trust(there)
    assert ground.found(here) == str(here / "config.toml")


def test_homes_that_are_none(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative HOME or XDG_CONFIG_HOME would be another in each directory:
    then the list of users has the home, or nothing.
    """
    here = ground.configured("here")
    for name in (".config/batchd", "batchd"):
        (here / name).mkdir(parents=True)
        (here / name / "trusted").write_text(f"{here}\n")
        (here / name / "config.toml").write_text("")
    entry = pwd.struct_passwd(("me", "x", 1, 1, "", str(ground.home), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    for environ in ({}, {"HOME": ""}, {"HOME": "."}, {"XDG_CONFIG_HOME": "."}):
        assert "is not trusted" in ground.found(here, environ), environ
    ground.trust(here)
    for environ in ({}, {"HOME": "."}, {"XDG_CONFIG_HOME": "."}):
        assert ground.found(here, environ) == str(here / "config.toml")
    assert ground.found(ground.folder, {"XDG_CONFIG_HOME": str(here)}) == str(here / "batchd/config.toml")  # fmt: skip

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert "is not trusted" in ground.found(here, {})
    monkeypatch.delenv("HOME")
    assert main(["trust", str(here)]) == 3


#: What lets others decide what counts, and the words of the refusal.
_OPEN: Mapping[str, tuple[Callable[[Ground, Path], object], str]] = {
    "the file": (lambda _, here: (here / "config.toml").chmod(0o666), "chmod o-w .*/config.toml"),
    "its folder": (lambda _, here: here.chmod(0o777), "chmod o-w .*/here"),
    "the list": (lambda ground, _: ground.list.chmod(0o646), "chmod o-w .*/trusted"),
    "the list, a group": (lambda ground, _: ground.list.chmod(0o660), "chmod g-w .*/trusted"),
    "the list's folder": (
        lambda ground, _: ground.list.parent.chmod(0o777),
        r"chmod o-w .*\.config/batchd",
    ),
    "a list that is no file": (
        lambda ground, _: (ground.list.unlink(), ground.list.mkdir()),
        "Is a directory",
    ),
}
_GIVEN: Mapping[str, tuple[Callable[[Ground, Path], object], str]] = {
    "the file": (lambda _, here: os.chown(here / "config.toml", _OTHER, -1), f"user {_OTHER}"),
    "its folder": (lambda _, here: os.chown(here, _OTHER, -1), "is not trusted"),
    "the list": (lambda ground, _: os.chown(ground.list, _OTHER, -1), f"user {_OTHER}"),
    "the list's folder": (
        lambda ground, _: os.chown(ground.list.parent, _OTHER, -1),
        f"user {_OTHER}",
    ),
}


@pytest.mark.parametrize("what", _OPEN)
def test_what_everybody_can_write_does_not_count(ground: Ground, what: str) -> None:
    """A user who may write file, folder or list would decide:
    it is refused with the fix, trusted or not.
    """
    here = ground.configured("here")
    ground.trust(here)
    change, words = _OPEN[what]
    change(ground, here)
    assert re.search(words, ground.found(here))


@_root_only
@pytest.mark.parametrize("what", _GIVEN)
def test_what_belongs_to_somebody_else_does_not_count(ground: Ground, what: str) -> None:
    """Nor does a trusted directory that was removed, and recreated by another user."""
    here = ground.configured("here")
    ground.trust(here)
    change, words = _GIVEN[what]
    change(ground, here)
    assert re.search(words, ground.found(here))


@_root_only
def test_the_users_own_configuration_is_the_users(ground: Ground) -> None:
    """Under a HOME that sudo left as it was,
    root takes no orders from its owner, and makes nothing there.
    """
    own = ground.configured("home/.config/batchd") / "config.toml"
    here = ground.configured("here")
    for path in (own, own.parent, own.parent.parent, ground.home):
        os.chown(path, _OTHER, -1)
    assert f"{own}: it belongs to user {_OTHER}" in ground.found(ground.folder)
    assert "sudo -H" in ground.found(ground.folder)
    done = ground.batchd("trust", here, cwd=here)
    assert done.returncode == 3
    assert "sudo -H" in done.stderr
    assert not ground.list.exists()


@_root_only
def test_a_directory_of_somebody_elses_is_trusted_with_its_owner(ground: Ground) -> None:
    """What root trusts in a user's checkout counts as long as it is that user's;
    one command is enough.
    """
    here = ground.configured("here")
    for path in (here, here / "config.toml"):
        os.chown(path, _OTHER, -1)
    assert f"user {_OTHER}" in ground.trust(here)
    assert f"{_OTHER} {here}" in ground.list.read_text().splitlines()
    assert ground.found(here) == str(here / "config.toml")
    os.chown(here / "config.toml", 12345, -1)
    assert "it belongs to user 12345" in ground.found(here)


def test_the_list_is_private_and_keeps_what_was_written_by_hand(ground: Ground) -> None:
    """A line is added once, also behind one without an end;
    removal takes that line alone, and leaves mode and comments.
    """
    here, other = ground.configured("here"), ground.configured("other")
    ground.trust(here)
    assert stat.S_IMODE(ground.list.stat().st_mode) == 0o600
    ground.list.write_text(f"# mine\n\nnonsense\n{here}/")
    ground.list.chmod(0o640)
    ground.trust(here)
    ground.trust(other)
    assert ground.list.read_text() == f"# mine\n\nnonsense\n{here}/\n{other}\n"
    ground.trust(here, "--remove")
    assert ground.list.read_text() == f"# mine\n\nnonsense\n{other}\n"
    assert stat.S_IMODE(ground.list.stat().st_mode) == 0o640
    assert [*ground.list.parent.iterdir()] == [ground.list]
    assert "is not trusted" in ground.found(here)


def test_what_is_gone_can_be_removed(ground: Ground) -> None:
    """A directory that no longer exists is named by its path;
    one that is not on the list is wrong use.
    """
    here = ground.configured("here")
    ground.trust(here)
    here.rename(ground.folder / "moved")
    assert "it is gone" in ground.batchd("trust", cwd=ground.folder).stdout
    ground.trust(here, "--remove")
    done = ground.batchd("trust", here, "--remove", cwd=ground.folder)
    assert (done.returncode, done.stderr) == (2, f"batchd: {here} is not on {ground.list}\n")
    assert ground.batchd("trust", "--remove", cwd=ground.folder).returncode == 2


def test_what_is_trusted_is_shown(ground: Ground) -> None:
    """A line a directory, with its list and what is wrong with it; for programs too."""
    here = ground.configured("here")
    assert ground.batchd("trust", cwd=here).stdout == "No directory is trusted.\n"
    assert ground.trust(here) == (
        f"{here} is trusted by {ground.list}: its config.toml counts when batchd runs there\n"
    )
    (here / "config.toml").chmod(0o666)
    (row,) = json.loads(ground.batchd("trust", "--json", cwd=here).stdout)
    problem = row.pop("problem")
    assert row == {"directory": str(here), "owner": None, "list": str(ground.list)}
    assert f"chmod o-w {shlex.quote(f'{here}/config.toml')}" in problem
    shown = ground.batchd("trust", cwd=here).stdout.splitlines()
    assert shown[0].split() == ["DIRECTORY", "PROBLEM"]
    assert re.split(" {2,}", shown[1])[0] == str(here)


def test_what_cannot_be_on_the_list(ground: Ground) -> None:
    """A file, nothing, and names that are no line."""
    here = ground.configured("here")
    for name in ("here/config.toml", "nowhere"):
        assert ground.batchd("trust", name, cwd=ground.folder).returncode == 2
    odd = ground.configured(f"two\n{here}")
    assert ground.batchd("trust", odd, cwd=here).returncode == 2
    assert not ground.list.exists()


def test_many_at_once_lose_no_line(ground: Ground) -> None:
    """Several checkouts may be set up at the same time."""
    places = [ground.configured(f"spool{n}") for n in range(6)]
    environ = {**os.environ, **ground.environment, "PYTHONPATH": str(warm.ROOT)}
    command = [sys.executable, "-m", "batchd", "trust"]
    with open(os.devnull, "w") as nothing:
        running = [warm.Popen([*command, str(p)], env=environ, stdout=nothing) for p in places]
        assert [process.wait() for process in running] == [0] * len(places)
    assert {*map(str, places)} <= {*ground.list.read_text().splitlines()}


def test_a_list_of_the_system_counts_no_longer(
    ground: Ground, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions had one for all users: what it held is refused, with what to do instead."""
    here = ground.configured("here")
    (ground.configured("etc") / "trusted").write_text(f"{here}\n")
    assert f"yours: `batchd trust {shlex.quote(str(here))}`" in ground.found(here)
    monkeypatch.setenv("HOME", str(ground.home))
    assert main(["trust", "--system", str(here)]) == 2
    assert "--system is gone: each user" in capsys.readouterr().err


def test_setting_a_checkout_up_trusts_it() -> None:
    """`make setup`, which every target begins with, puts it on the list."""
    done = subprocess.run(
        ["make", "-n", "setup"], cwd=warm.ROOT, check=True, capture_output=True, text=True
    )
    assert f"batchd trust '{warm.ROOT}'" in done.stdout


def test_the_folders_of_configurations_need_no_line(ground: Ground) -> None:
    """A user who stands in ~/.config/batchd
    or /etc/batchd finds the configuration that counts there anyway.
    """
    for name in ("home/.config/batchd", "etc"):
        place = ground.configured(name)
        assert ground.found(place) == str(place / "config.toml")


def test_a_reload_takes_up_nothing_that_was_left_meanwhile(ground: Ground) -> None:
    """A daemon that began without a configuration keeps the defaults,
    and says why, where one turns up that is not trusted.
    """
    place = ground.folder / "bare"
    place.mkdir()
    log = ground.folder / "log"
    environ = {**os.environ, **ground.environment, "PYTHONPATH": str(warm.ROOT)}
    environ |= {"BATCHD_LOG__FORMAT": "json", "BATCHD_SANDBOX__BACKEND": "none"}
    command = [sys.executable, "-m", "batchd", "serve"]
    with log.open("wb") as stderr, warm.Popen(command, env=environ, cwd=place, stderr=stderr) as daemon:  # fmt: skip
        try:
            until(lambda: logged(log, "worker_started"), log.read_text)
            (place / "config.toml").write_text("[limits]\nmax_calls = 9999\n")
            daemon.send_signal(signal.SIGHUP)
            until(lambda: logged(log, "config_reloaded"), log.read_text)
        finally:
            daemon.terminate()
    (line,) = logged(log, "config_reloaded")
    assert line["kept_old"] is True
    assert f"`batchd trust {shlex.quote(str(place))}`" in line["message"]


def test_a_pipe_in_the_place_of_a_configuration_is_not_passed_over(ground: Ground) -> None:
    """It cannot be read again: that is said, and the built-in defaults do not take its place."""
    folder = ground.configured("spool")
    ground.trust(folder)
    (folder / "config.toml").unlink()
    os.mkfifo(folder / "config.toml")
    done = ground.batchd("status", cwd=folder)
    assert done.returncode == 2
    assert "it is a pipe, which cannot be read again" in done.stderr
