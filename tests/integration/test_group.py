"""Members of the group that may drop files:
what they may do beside the daemon's user, and what they see.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import warm
from attacking import NOBODY, ordinary_user

from tests.conftest import CONFIG, NO_REPORT, Spool

pytestmark = pytest.mark.in_turns

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs other users")
_DAEMON, _MEMBER, _STRANGER = 4801, 4802, 4803
_HOLD = [{"first_prompt": "secret-prompt", "model": "standin/hang"}]


def _as(uid: int, *groups: int) -> list[str]:
    """Return what runs a program as another user,
    for whom this Python and this checkout are there.
    """
    kept = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    way = ordinary_user()[: -len(NOBODY)]
    masked = ["sh", "-c", 'umask 027; exec "$@"', "sh"]
    return [*way, *masked, "setpriv", f"--reuid={uid}", f"--regid={uid}", kept, "--"]


@dataclass(frozen=True)
class Service(Spool):
    """A spool that is installed as docs/operating.md says:
    its daemon has a user, and that user's group may drop.
    """

    def command(self, *arguments: str | Path) -> list[str]:
        """Return a command line of the daemon's user."""
        return [*_as(_DAEMON), *super().command(*arguments)]

    def by(self, uid: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as somebody else; a member has the daemon's group."""
        prefix = _as(uid, _DAEMON) if uid == _MEMBER else _as(uid)
        command = [*prefix, *Spool.command(self, *arguments)]
        return warm.run(command, env=self.environment, cwd=self.folder)

    def member(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command as a member."""
        return self.by(_MEMBER, *arguments)


def _configured(folder: Path, base_url: str) -> None:
    text = NO_REPORT + CONFIG.format(base_url=base_url, model="steps-2")
    key = 'api_key_file = "lib/key"\n'
    paths = '[paths]\ninbox = "lib/inbox"\noutbox = "lib/outbox"\nstate = "lib/.batchd"\n'
    text = text.replace("[models.", f"{key}[models.", 1)
    (folder / "config.toml").write_text(f'{paths}[workspace]\nroot = "lib"\n{text}')


@pytest.fixture
def service(short: Path, model_server: str) -> Service:
    """A service, not begun."""
    short.chmod(0o755)
    _configured(short, model_server)
    for name, mode in (("lib", 0o750), ("lib/inbox", 0o3770), ("lib/outbox", 0o750)):
        (short / name).mkdir()
        os.chown(short / name, _DAEMON, _DAEMON)
        (short / name).chmod(mode)
    (short / "lib/key").write_text("sk-hush-4711")
    os.chown(short / "lib/key", _DAEMON, _DAEMON)
    (short / "lib/key").chmod(0o600)
    (short / "t.json").write_text('{"tasks": [{"first_prompt": "x"}]}')
    return Service(short)


@pytest.fixture
def serving(service: Service) -> Iterator[Service]:
    """Its daemon runs."""
    log = (service.folder / "daemon.log").open("wb")
    environ = {**service.environment, "TMPDIR": "/tmp"}
    with log, warm.Popen(service.command("serve"), stderr=log, env=environ) as daemon:
        try:
            place = service.folder / "lib/outbox/status.json"
            service.eventually(lambda: place.exists() or daemon.poll() is not None)
            assert daemon.poll() is None, (service.folder / "daemon.log").read_text()
            service.eventually(lambda: service.batchd("status").returncode == 0)
            yield service
        finally:
            daemon.terminate()


@_ROOT
def test_a_member_drops_waits_looks_and_reads(serving: Service) -> None:
    """`submit --wait` ends with the summary, `status` lists it,
    the results can be read; `check` is for the daemon's user.
    """
    done = serving.member("submit", "t.json", "--wait")
    assert done.returncode == 0, done.stderr
    assert f"Results: {serving.folder}/lib/outbox/t/" in done.stdout
    said = serving.member("status", "--json")
    (batch,) = json.loads(said.stdout)["batches"]
    assert (batch["batch"], batch["status"], batch["counts"]) == (
        "t",
        "completed",
        {"completed": 1},
    )
    assert batch["cost"] > 0
    assert "t " in serving.member("status").stdout
    assert " running: 0 tasks at work, 0 queued" in serving.member("status").stdout
    assert "completed" in serving.member("status", "t").stdout
    named = json.loads(serving.member("status", "t", "--json").stdout)
    assert (named["name"], named["status"], named["completed"]) == ("t", "completed", 1)
    assert serving.member("status", "nothing").returncode == 2
    program = "import batchd; print(*(r.status for r in batchd.submit('t.json', config='config.toml').wait()))"
    command = [*_as(_MEMBER, _DAEMON), sys.executable, "-c", program]
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=serving.environment,
        cwd=serving.folder,
    )
    assert (found.stdout, found.stderr) == ("completed\n", "")
    read = [*_as(_MEMBER, _DAEMON), "cat", str(serving.folder / "lib/outbox/t/001.json")]
    assert b'"completed"' in subprocess.run(read, capture_output=True, check=True).stdout
    checked = serving.member("check")
    assert checked.returncode == 3
    assert f"what `batchd check` looks at is for the user {_DAEMON}" in checked.stderr


@_ROOT
def test_what_is_for_the_daemons_user_is_refused_by_name(serving: Service) -> None:
    """Each order, and all that reads the store: which file closes it,
    whose it is, and the command line that does it.
    """
    state = serving.folder / "lib/.batchd"
    # The socket is closed to them; below, the commands refuse by themselves.
    knock = f"import socket; socket.socket(socket.AF_UNIX).connect({str(state / 'control.sock')!r})"
    for who, why in ((_as(_DAEMON), ""), (_as(_MEMBER, _DAEMON), "PermissionError")):
        tried = subprocess.run(
            [*who, sys.executable, "-c", knock], capture_output=True, check=False
        )
        assert tried.stderr.decode().strip().rpartition("\n")[2].partition(":")[0] == why
    assert serving.member("submit", "t.json", "--wait").returncode == 0
    for words in (
        *("cancel t", "pause --all", "resume", "retry t", "priority t 5", "tune"),
        *("logs t", "cost", "top --once", "report t", "backup", "prune", "estimate t.json"),
        "status t/001",
    ):
        done = serving.member(*words.split())
        assert done.returncode == 3, (words, done.stderr)
        assert str(state) in done.stderr, words
        assert f"sudo -u '#{_DAEMON}' batchd --config " in done.stderr, words
        assert done.stderr.endswith(f" {words}\n"), words
        assert "Traceback" not in done.stderr
        assert "Permission denied" not in done.stderr, words


@_ROOT
def test_a_key_of_anothers_is_refused_by_name(service: Service) -> None:
    """A `run` whose key the service keeps for itself says whose file it is, and who may;
    root's wants to be given away.
    """
    text = (service.folder / "config.toml").read_text()
    own = text.replace('"lib/inbox"', '"my/in"').replace('"lib/outbox"', '"my/out"')
    own = own.replace('"lib/.batchd"', '"my/.batchd"').replace('root = "lib"', 'root = "my"')
    (service.folder / "config.toml").write_text(own)
    (service.folder / "my").mkdir()
    os.chown(service.folder / "my", _MEMBER, _MEMBER)
    key = service.folder / "lib/key"
    for owner, fix in (
        (_DAEMON, f"sudo -u '#{_DAEMON}' batchd "),
        (0, f"sudo chown {_MEMBER} {key}"),
    ):
        os.chown(key, owner, owner)
        done = service.member("run", "t.json")
        assert done.returncode == 3, done.stderr
        name = "root" if owner == 0 else owner
        assert f"{key} belongs to {name}, group {name}, with mode 0600" in done.stderr
        assert fix in done.stderr


@_ROOT
def test_a_stranger_learns_which_group_it_takes(serving: Service) -> None:
    """Who is in no group of the service's is named the folder, and the group."""
    for words in ("status", "submit t.json"):
        done = serving.by(_STRANGER, *words.split())
        assert done.returncode == 3, (words, done.stderr)
        assert f"{serving.folder}/lib belongs to {_DAEMON}, group {_DAEMON}" in done.stderr


@_ROOT
def test_without_a_daemon_a_member_may_still_drop(service: Service) -> None:
    """The file waits; what needs a daemon says that there is none to ask."""
    state = service.folder / "lib/.batchd"
    state.mkdir(mode=0o700)
    os.chown(state, _DAEMON, _DAEMON)
    assert service.member("submit", "t.json").returncode == 0
    assert (service.folder / "lib/inbox/t.json").exists()
    for words in ("status", "submit t.json --wait"):
        done = service.member(*words.split())
        assert done.returncode == 3, words
        assert "o daemon " in done.stdout + done.stderr, words
        assert "Traceback" not in done.stderr


@_ROOT
def test_a_batch_that_is_listed_no_more_is_shown_by_its_summary(serving: Service) -> None:
    """The file lists the newest that have ended; an older one lies in the outbox."""
    assert serving.member("submit", "t.json", "--wait").returncode == 0
    (serving.folder / "lib/outbox/old").mkdir()
    summary = (serving.folder / "lib/outbox/t/summary.json").read_text()
    moved = serving.folder / "lib/outbox/old/summary.json"
    moved.write_text(summary.replace('"batch": "t"', '"batch": "old"'))
    done = serving.member("status", "old")
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout


@_ROOT
def test_no_other_user_is_believed_in_the_daemons_place(service: Service) -> None:
    """A file that another user has put there says nothing, nor does a link."""
    state, place = service.folder / "lib/.batchd", service.folder / "lib/outbox/status.json"
    state.mkdir(mode=0o700)
    os.chown(state, _DAEMON, _DAEMON)
    place.write_text("{}")
    os.chown(place, _STRANGER, _DAEMON)
    done = service.member("status")
    assert done.returncode == 3
    assert f"{place} is not the daemon's" in done.stderr
    place.unlink()
    place.symlink_to(service.folder / "t.json")
    done = service.member("status")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
