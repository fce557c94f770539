"""Members of the group that may drop files:
what they may do beside the daemon's user, and by which socket.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
            place = service.folder / "lib/.batchd-group/control.sock"
            service.eventually(lambda: place.exists() or daemon.poll() is not None)
            assert daemon.poll() is None, (service.folder / "daemon.log").read_text()
            service.eventually(lambda: service.batchd("status").returncode == 0)
            yield service
        finally:
            daemon.terminate()


@_ROOT
def test_a_member_drops_waits_looks_and_reads(serving: Service) -> None:
    """`submit --wait` ends with the summary, `status` lists it,
    the results can be read; `check` says that all is well.
    """
    done = serving.member("submit", "t.json", "--wait")
    assert done.returncode == 0, done.stderr
    assert f"Results: {serving.folder}/lib/outbox/t/" in done.stdout
    said = serving.member("status", "--json")
    (batch,) = json.loads(said.stdout)["batches"]
    assert (batch["name"], batch["status"], batch["completed"]) == ("t", "completed", 1)
    assert batch["cost_usd"] > 0
    assert "t " in serving.member("status").stdout
    assert "completed" in serving.member("status", "t").stdout
    assert serving.member("status", "nothing").returncode == 2
    read = [*_as(_MEMBER, _DAEMON), "cat", str(serving.folder / "lib/outbox/t/001.json")]
    assert b'"completed"' in subprocess.run(read, capture_output=True, check=True).stdout
    checked = serving.member("check", "--json")
    lines = {line["what"]: line for line in json.loads(checked.stdout)}
    assert checked.returncode == 0, checked.stdout
    assert "the key was not tried" in lines["provider standin"]["detail"]
    assert f"{_MEMBER} may drop files and ask" in lines["this user"]["detail"]
    assert lines["group"]["verdict"] == "ok"


@_ROOT
def test_what_is_for_the_daemons_user_is_refused_by_name(serving: Service) -> None:
    """Each order, and all that reads the store: which file closes it,
    whose it is, and the command line that does it.
    """
    assert serving.member("submit", "t.json", "--wait").returncode == 0
    state = serving.folder / "lib/.batchd"
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
        assert f"{key} belongs to {name}, with mode 0600" in done.stderr
        assert fix in done.stderr


@_ROOT
def test_a_stranger_learns_which_group_it_takes(serving: Service) -> None:
    """Who is in no group of the service's is named the folder,
    the group, and how to get into it.
    """
    for words in ("status", "check", "submit t.json"):
        done = serving.by(_STRANGER, *words.split())
        assert done.returncode == 3, (words, done.stderr)
        assert (
            f"members of the group {_DAEMON}, which alone may enter {serving.folder}/lib"
            in done.stderr
        )
        assert f"`sudo usermod -aG {_DAEMON} {_STRANGER}`" in done.stderr


@_ROOT
def test_without_a_daemon_a_member_may_still_drop(service: Service) -> None:
    """The file waits; what needs a daemon says that there is none to ask."""
    state = service.folder / "lib/.batchd"
    state.mkdir(mode=0o700)
    os.chown(state, _DAEMON, _DAEMON)
    assert service.member("submit", "t.json").returncode == 0
    assert (service.folder / "lib/inbox/t.json").exists()
    for words in ("status", "submit t.json --wait", "check"):
        done = service.member(*words.split())
        assert done.returncode == 3, words
        assert "no daemon runs on " in done.stdout + done.stderr, words


@_ROOT
def test_no_other_user_is_asked_in_the_daemons_place(service: Service) -> None:
    """A socket that another user has put there gets no question."""
    place = service.folder / "lib/.batchd-group"
    state = service.folder / "lib/.batchd"
    for folder in (place, state):
        folder.mkdir(mode=0o700)
    os.chown(state, _DAEMON, _DAEMON)
    os.chown(place, _STRANGER, _DAEMON)
    place.chmod(0o710)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "control.sock"))
        (place / "control.sock").chmod(0o666)
        os.seteuid(_STRANGER)  # who listens is who it is that moment
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        done = service.member("status")
        connected, _ = listener.accept()
        with connected:
            assert connected.recv(99) == b""
    assert done.returncode == 3
    assert f"belongs to user {_STRANGER}, and the daemon to {_DAEMON}" in done.stderr


# The socket, which its own user may use as well


@pytest.fixture
def spool(short: Path, model_server: str) -> Spool:
    """A spool whose inbox its group may write."""
    (short / "config.toml").write_text(
        NO_REPORT + CONFIG.format(base_url=model_server, model="steps-2")
    )
    (short / "inbox").mkdir()
    (short / "inbox").chmod(0o3770)
    return Spool(short)


def _socket(spool: Spool) -> Path:
    return spool.folder / ".batchd-group/control.sock"


def _ask(spool: Spool, line: bytes) -> dict[str, Any]:
    """Return what the group's socket answers to a line."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(_socket(spool)))
        sock.sendall(line)
        with sock.makefile("rb") as stream:
            answer: dict[str, Any] = json.loads(stream.readline())
    return answer


def _lines(spool: Spool, event: str) -> list[dict[str, Any]]:
    found = map(json.loads, (spool.folder / "daemon.log").read_text().splitlines())
    return [line for line in found if line["event"] == event]


def test_the_socket_is_there_as_long_as_the_group_may_drop(spool: Spool) -> None:
    """Closed to all others; made again where it, or its folder, is lost;
    gone with the right, and with the daemon.
    """
    place, inbox = _socket(spool), spool.folder / "inbox"
    with spool.serving():
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place)]
        assert modes == [0o710, 0o660]
        assert place.stat().st_gid == place.parent.stat().st_gid == inbox.stat().st_gid
        place.unlink()
        spool.eventually(place.exists)
        shutil.rmtree(place.parent)
        spool.eventually(place.exists)
        assert _ask(spool, b'{"verb": "status"}\n')["ok"]
        place.parent.chmod(0o777)
        spool.eventually(lambda: stat.S_IMODE(place.parent.stat().st_mode) == 0o710)
        inbox.chmod(0o700)
        spool.eventually(lambda: not place.exists())
        inbox.chmod(0o3770)
        spool.eventually(place.exists)
    assert not place.exists()


def test_where_it_cannot_be_made_the_daemon_works_and_says_so(spool: Spool) -> None:
    """What stands in its place is left alone; the log has one line, and `check` says what to do."""
    place = spool.folder / ".batchd-group"
    place.symlink_to("inbox")
    task = spool.write("t.json", [{"first_prompt": "x"}])
    with spool.serving():
        assert spool.batchd("submit", task, "--wait").returncode == 0
        lines = json.loads(spool.batchd("check", "--offline", "--json").stdout)
        (group,) = (line for line in lines if line["what"] == "group")
        assert group["verdict"] == "note"
        assert f"{place} has no socket" in group["detail"]
        (line,) = _lines(spool, "control_trouble")
        assert str(place) in line["message"]
    assert place.is_symlink()
    assert not (spool.folder / "inbox/control.sock").exists()


def test_it_takes_no_order_and_shows_no_work(spool: Spool) -> None:
    """Every verb but two is refused, with whose it is;
    the log says once who tried; nothing of a prompt is in an answer.
    """
    held = spool.write("held.json", _HOLD)
    with spool.serving():
        spool.batchd("submit", held)
        spool.eventually(lambda: "running" in spool.batchd("status", "held/001").stdout)
        for _ in range(3):
            for order in (
                {"verb": "cancel", "target": "held"},
                {"verb": "pause", "scope": "all"},
                {"verb": "resume"},
                {"verb": "priority", "target": "held", "priority": 7},
                {"verb": "retry", "target": "held"},
                {"verb": "prune"},
                {"verb": "tune", "changes": {"pool.processes": "9"}},
                {"verb": "tune"},
            ):
                answer = _ask(spool, json.dumps(order).encode() + b"\n")
                assert (answer["ok"], answer["exit_code"]) == (False, 3), order
                assert f"who alone may enter {spool.folder}/.batchd" in answer["error"]
        tried = [line["verb"] for line in _lines(spool, "command_refused")]
        assert sorted(tried) == sorted({*tried})
        assert len(tried) == 7
        for question in (
            b'{"verb": "status", "last": 9}\n',
            b'{"verb": "status", "batch": "held"}\n',
            b'{"verb": "check", "offline": true}\n',
        ):
            answer = _ask(spool, question)
            assert answer["ok"], answer
            assert "secret-prompt" not in json.dumps(answer)
        standing = _ask(spool, b'{"verb": "status", "last": 9}\n')
        assert standing["running"] == []
        (row,) = standing["rows"]
        assert (row["name"], row["running"], row["tasks"]) == ("held", 1, 1)
        assert "running" in spool.batchd("status", "held/001").stdout
        spool.batchd("cancel", "held")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"\xff\xfe\0\n",
        b"[" * 10_000 + b"\n",
        b'{"verb": ["status"]}\n',
        b'{"verb": "status", "last": -1e400}\n',
        b'{"verb": "status", "batch": "../../x"}\n',
        b"x" * (1 << 15) + b"\n",
    ],
)
def test_garbage_is_refused_and_nothing_else(spool: Spool, line: bytes) -> None:
    """Each has its answer, and the next question too; no line of the log is made by it."""
    with spool.serving():
        assert _ask(spool, line)["ok"] is False
        assert _ask(spool, b'{"verb": "status"}\n')["ok"]
        assert _lines(spool, "command_refused") == []
