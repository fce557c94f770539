"""What commands see of the machine: by default, by ``show`` and ``hide``;
and that nothing of batchd's own is among it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loglines import logged

from batchd import config
from batchd.config import operator_files
from batchd.errors import SandboxError, SandboxUnavailableError
from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox, bwrap, check, shown
from batchd.sandbox.findings import Finding
from batchd.silent_paths import mounts
from tests.conftest import Spool

pytestmark = pytest.mark.in_turns

#: A file below /usr that every machine has, and that no command here needs.
FILE = "/usr/bin/tac"


def ran(folder: Path, policy: SandboxPolicy, *commands: str) -> list[tuple[int | None, str]]:
    """Run commands in a fresh directory; return how each ended."""

    async def visit() -> list[tuple[int | None, str]]:
        opening = Sandbox(policy).open(str(folder / "001"), fresh=True, network=False, env={})
        async with await opening as place:
            ends = [await place.shell(command, timeout_s=60) for command in commands]
        return [(end.exit_code, end.output) for end in ends]

    return asyncio.run(visit())


def _view(policy: SandboxPolicy) -> Finding:
    (found,) = (finding for finding in check(policy) if finding.name == "sandbox view")
    return found


def _files(folder: str, but: Collection[str] = ()) -> Iterator[Path]:
    """Yield texts in a folder and below that every user may read, by their real paths."""
    for path in sorted(Path(folder).rglob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            plain = path.is_file() and path == path.resolve() and path.name not in but
            if plain and path.stat().st_mode & 0o004 and path.read_text():
                yield path


def test_nothing_of_opt_and_little_of_etc_is_there_unless_it_is_shown(tmp_path: Path) -> None:
    """A link is there with what it leads to; nothing of it can be written."""
    link, plain = "/etc/os-release", str(next(_files("/etc", {"passwd", "group", "hosts"})))
    (default,) = ran(tmp_path, SandboxPolicy(), f"ls -A /opt; cat {link} {plain}")
    assert default[1].count("No such file") == 3
    shown, also, still = ran(
        tmp_path,
        SandboxPolicy(show=(link, plain, "/opt/missing")),
        f"cat {link}",
        f"cat {plain}",
        f"touch /etc/x {plain}",
    )
    assert shown == (0, Path(link).read_text())
    assert also == (0, Path(plain).read_text())
    assert still[0] != 0


def test_what_is_hidden_is_empty_but_for_what_is_shown_in_it(tmp_path: Path) -> None:
    """A folder, a file, what is always there otherwise; `check` shows it."""
    file = next(path for path in _files("/usr/share") if len(path.parts) > 4)
    policy = SandboxPolicy(
        hide=("/usr/share", FILE, "/etc/ssl", "/usr/missing"), show=(str(file), "/usr/missing/too")
    )
    listed, shown, hidden, away = ran(
        tmp_path,
        policy,
        "find /usr/share -type f; touch /usr/share/x",
        f"cat {file}",
        f"cat {FILE}",
        "ls /etc/ssl",
    )
    assert listed[1].startswith(f"{file}\ntouch: ")
    assert "Read-only file system" in listed[1]
    assert shown == (0, file.read_text())
    assert "Permission denied" in hidden[1]
    assert "No such file" in away[1]
    (view,) = [found for found in check(policy) if found.name == "sandbox view"]
    assert view.ok
    assert f"commands see /usr, a little of /etc, {file}; not /usr/share, " in view.detail
    assert "/usr/missing/too of show: nothing is there" in view.detail


def test_what_no_program_starts_without_is_not_hidden(tmp_path: Path) -> None:
    """The trial at the start fails, and says what to look at."""
    with pytest.raises(SandboxUnavailableError, match=r"take out of \[sandbox\] hide what"):
        Sandbox(SandboxPolicy(hide=("/usr/bin", "/usr/sbin")))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def above(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the machine's, /opt or /usr/local, for which only root can be."""
    if not os.access(request.param, os.W_OK):
        pytest.skip("only root writes there")
    with tempfile.TemporaryDirectory(prefix="batchd-", dir=request.param) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("above", ["/opt"], indirect=True)
def test_what_a_link_leads_to_elsewhere_is_not_shown(above: Path, tmp_path: Path) -> None:
    """By its real path: at the start, in `check`, and where the link is changed while tasks run."""
    (above / "tools").mkdir()
    (above / "tools/file").write_text("of a tool")
    (above / "link").symlink_to(above / "tools")
    policy = SandboxPolicy(show=(f"{above}/link",))

    async def visit() -> None:
        sandbox = Sandbox(policy)
        opening = sandbox.open(str(tmp_path / "001"), fresh=True, network=False, env={})
        async with await opening as place:
            found = await place.shell(f"cat {above}/link/file; ls {above}", timeout_s=60)
            assert found.output == "of a toollink\ntools\n"
        (above / "link").unlink()
        (above / "link").symlink_to(tmp_path)
        with pytest.raises(SandboxError, match="leads to"):
            await sandbox.open(str(tmp_path / "002"), fresh=True, network=False, env={})

    asyncio.run(visit())
    with pytest.raises(SandboxUnavailableError, match=rf"{above}/link leads to {tmp_path}"):
        Sandbox(policy)
    assert not _view(policy).ok
    assert "take it out" in _view(policy).fix


@pytest.mark.parametrize("above", ["/opt"], indirect=True)
def test_more_sockets_than_can_be_hidden_stop_commands(above: Path, tmp_path: Path) -> None:
    """With the fix, which is enough; what is left over stops none. The check names them."""
    # In a folder that only these commands see: below /usr they would stop those of other tests.
    policy = SandboxPolicy(show=(str(above),))
    with contextlib.ExitStack() as stack:
        for number in range(251):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(f"{above}/{number}")
            if not number:
                assert f"hidden: the sockets {above}/0" in _view(policy).detail
        with pytest.raises(SandboxError, match=r"and only 250 can be hidden: .* \[sandbox\] hide"):
            ran(tmp_path, policy, "true")
        assert not _view(policy).ok
        assert "[sandbox] hide" in _view(policy).fix
        hiding = replace(policy, hide=(str(above),))
        assert ran(tmp_path, hiding, f"ls -A {above} 2> /dev/null | wc -l") == [(0, "0\n")]
    assert ran(tmp_path, policy, "true") == [(0, "")]


def restart(paths: Sequence[Path]) -> None:
    """Stop and start services: each takes its socket away, and makes it again."""
    for path in paths:
        path.unlink(missing_ok=True)
        time.sleep(0.0005)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(str(path))
            listener.listen()
            time.sleep(0.0005)


@pytest.mark.parametrize("above", ["/usr/local"], indirect=True)
@pytest.mark.parametrize("network", [False, ("a.example",)], ids=["no network", "a list of hosts"])
def test_services_that_come_and_go_end_no_task(
    above: Path, tmp_path: Path, network: bool | tuple[str, ...]
) -> None:
    """What goes, or is made again, while it is covered is looked at once more,
    and the command begins then.
    """
    paths = [above / str(number) for number in range(10)]
    services = [threading.Thread(target=restart, args=(paths[n::2] * 150,)) for n in range(2)]

    async def visit() -> None:
        sandbox = Sandbox(SandboxPolicy(network=network))
        for number in itertools.count():
            if not any(service.is_alive() for service in services):
                break
            folder = str(tmp_path / str(number))
            opening = sandbox.open(folder, fresh=True, network=network, env={})
            async with await opening as place:
                ran = await asyncio.gather(*(place.shell("echo x", timeout_s=60) for _ in range(4)))
                assert [end.output for end in ran] == ["x\n"] * 4

    for service in services:
        service.start()
    try:
        asyncio.run(visit())
    finally:
        for service in services:
            service.join()


def test_a_socket_with_the_name_of_a_descriptor_ends_no_task(tmp_path: Path) -> None:
    """In another process that name leads anywhere, and elsewhere from one moment to the next."""
    folder = os.open(tmp_path, os.O_PATH)
    # One that is given to nobody else here: of all free ones the lowest is.
    number, over = fcntl.fcntl(folder, fcntl.F_DUPFD, 500), threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            os.dup2(folder, number)
            os.close(number)

    other = threading.Thread(target=come_and_go)
    seen = shown.of(SandboxPolicy(), network=False)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as service:
        service.bind(f"/proc/self/fd/{number}/s")
        other.start()
        try:
            for _ in range(5000):
                assert str(tmp_path / "s") not in shown.sockets(seen)
        finally:
            over.set()
            other.join()
            os.close(folder)


_CALL = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize("above", ["/usr/local"], indirect=True)
def test_what_is_mounted_while_tasks_run_is_looked_at(above: Path, tmp_path: Path) -> None:
    """A folder with a service that is bound below /usr between two tasks,
    or goes there with its disk: it is hidden.
    """
    services = Path(tempfile.mkdtemp(prefix="batchd-", dir="/mnt"))
    services.chmod(0o755)
    place = above / "bound"
    place.mkdir()
    sandbox, names = Sandbox(SandboxPolicy()), itertools.count()

    async def call() -> str:
        opening = sandbox.open(str(tmp_path / str(next(names))), fresh=True, network=False, env={})
        async with await opening as room:
            return (await room.run(["python3", "-c", _CALL, f"{place}/s"], timeout_s=60)).output

    def called() -> str:
        return asyncio.run(call())

    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"{services}/s")
        listener.listen()
        (services / "s").chmod(0o777)
        try:
            assert "FileNotFoundError" in called()
            subprocess.run(["mount", "--bind", services, place], check=True)
            try:
                assert "ConnectionRefusedError" in called()
            finally:
                subprocess.run(["umount", "-l", place], check=True)
            assert "FileNotFoundError" in called()
        finally:
            shutil.rmtree(services)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_every_thread_learns_of_what_is_mounted(tmp_path: Path) -> None:
    """Whatever its path holds, and however many ask at the same time."""
    names = [tmp_path / f"with blank and \x0b {number}" for number in range(20)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        for path in names:
            path.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "batchd-test", path], check=True)
            stack.callback(subprocess.run, ["umount", "-l", path], check=True)
            asked = [threads.submit(mounts) for _ in range(8)]
            for table in asked:
                assert str(path) in {mount.place for mount in table.result()}
    assert not {mount.place for mount in mounts()} & set(map(str, names))


def test_another_trouble_is_reported_at_once(tmp_path: Path) -> None:
    """Only what goes is looked at again:
    what cannot be covered for another reason ends the task, with bwrap's words.
    """

    async def visit() -> None:
        # Other tests have services that come and go there.
        sandbox = Sandbox(SandboxPolicy(hide=("/usr/local",)))
        opening = sandbox.open(str(tmp_path / "001"), fresh=True, network=False, env={})
        async with await opening as place:
            cover = place._setting.cover
            assert cover is not None
            calls = iter([["--ro-bind", os.devnull, "/usr/is/not/there"]])
            cover.options = lambda: next(calls)  # type: ignore[method-assign]
            with pytest.raises(SandboxError, match="/usr/is"):
                await place.shell("true", timeout_s=60)

    asyncio.run(visit())


# Of batchd's own


#: What lies below /usr: the lines that say so, and how the refusal begins.
BELOW = {
    "key": (
        f'[providers.mine]\nbase_url = "http://127.0.0.1:1/v1"\napi_key_file = "{FILE}"\n',
        "[providers.mine] api_key_file",
    ),
    "link": ('[web]\ntoken_file = "link"\n', "[web] token_file"),
    "secret": (f'[secrets]\nfiles = {{ npm = "{FILE}" }}\n', "[secrets.files] npm"),
    "mail": (
        f'[notify.me]\nkind = "webhook"\nurl_file = "{FILE}"\n',
        "[notify.me] url_file",
    ),
    "outbox": ('[paths]\noutbox = "/usr/batchd-results"\n', "[paths] outbox"),
    "state": ('[paths]\nstate = "/usr/batchd-state"\n', "[paths] state"),
    "etc": ('[traces]\nheaders_file = "/etc/ssl/certs/key"\n', "[traces] headers_file"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", BELOW)
def test_what_is_batchds_own_is_not_shown_to_commands(spool: Spool, case: str) -> None:
    """The check says where it lies and what to do, and the daemon does not start;
    with that done, neither minds.
    """
    lines, key = BELOW[case]
    (spool.folder / "link").symlink_to(FILE)
    path = spool.folder / "config.toml"
    path.write_text(path.read_text() + lines)
    checked = spool.batchd("check", "--offline")
    assert checked.returncode == 3
    begin = f"failed sandbox view: {key}: "
    (line,) = [line for line in checked.stdout.splitlines() if line.startswith(begin)]
    assert ", which commands see" in line
    served = spool.batchd("serve")
    assert served.returncode == 2
    assert f"config.toml: {key}: " in served.stderr
    fix = served.stderr.partition("hide = ")[2].partition("]")[0] + "]"
    path.write_text(path.read_text() + f"[sandbox]\nhide = {fix}\n")
    assert f"failed sandbox view: {key}" not in spool.batchd("check", "--offline").stdout
    path.write_text(path.read_text() + 'backend = "none"\n')
    assert "failed sandbox view" not in spool.batchd("check", "--offline").stdout


#: What makes something in the spool, or in the outbox.
MAKING = {
    "run": ("run", "tasks.json"),
    "serve": ("serve",),
    "submit": ("submit", "tasks.json"),
    "web": ("web", "--listen", "127.0.0.1:0"),
    "restore": ("restore", "--new", "--yes"),
    "order": ("pause", "--all"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("command", MAKING)
@pytest.mark.parametrize("above", ["/usr/local"], indirect=True)
def test_nothing_is_made_where_commands_would_see_it(
    above: Path, spool: Spool, command: str
) -> None:
    """Every command that would make a spool,
    or a token below /usr refuses first, with the fix.
    """
    path = spool.folder / "config.toml"
    kept = [f'{name} = "{above}/{name}"' for name in ("inbox", "outbox", "state")]
    path.write_text("\n".join((path.read_text(), "[paths]", *kept)))
    spool.write("tasks.json", [{"first_prompt": "x"}])
    refused = spool.batchd(*MAKING[command])
    assert refused.returncode == 2, refused.stderr
    assert f"[paths] state: {above}/state lies in /usr" in refused.stderr
    assert f'hide = ["{above}/state"]' in refused.stderr
    assert not list(above.iterdir())


def test_a_reload_is_as_strict_as_a_start(spool: Spool) -> None:
    """SIGHUP keeps what there is, and says why; `tune` refuses; what is right is taken."""
    path = spool.folder / "config.toml"
    text = path.read_text()
    with spool.serving() as daemon:
        path.write_text(text + BELOW["secret"][0])
        daemon.send_signal(signal.SIGHUP)
        log = spool.folder / "daemon.log"

        def reloads() -> list[dict[str, Any]]:
            return [line for line in logged(log) if line["event"] == "config_reloaded"]

        spool.eventually(reloads)
        assert reloads()[0]["kept_old"] is True
        assert f"[secrets.files] npm: {FILE} lies in /usr" in reloads()[0]["message"]
        tuned = spool.batchd("tune", f"providers.standin.api_key_file={FILE}")
        assert (tuned.returncode, f'hide = ["{FILE}"]' in tuned.stderr) == (2, True)
        assert spool.batchd("tune", f'sandbox.hide=["{FILE}"]').returncode == 0
        daemon.send_signal(signal.SIGHUP)
        spool.eventually(lambda: len(reloads()) == 2)
        assert "kept_old" not in reloads()[1]
        # Without what hides it, the secret would be shown.
        assert spool.batchd("tune", "--reset").returncode == 2


def test_code_may_be_read_and_what_is_kept_from_others_may_not(tmp_path: Path) -> None:
    """Programs of notifications are code, unless others cannot read them;
    a configuration counts where it holds keys.
    """
    tool = tmp_path / "notifier"
    tool.write_text("#!/bin/sh\nTOKEN=some-secret\n")
    tool.chmod(0o700)
    path = tmp_path / "config.toml"
    path.write_text(
        f'[notify.a]\nkind = "command"\ncommand = ["{FILE}", "sh"]\n'
        f'[notify.b]\nkind = "command"\ncommand = ["/bin/sh", "{tool}"]\n'
    )
    loaded = config.load(path, {})
    found = {kept.key: kept.path for kept in operator_files.kept(loaded, loaded.file)}
    assert found.keys() == {
        *(f"[paths] {name}" for name in ("inbox", "outbox", "state")),
        "[workspace] mirrors",
        "[notify.b] command",
    }
    assert found["[notify.b] command"] == str(tool)
    path.write_text(
        '[providers.x]\nbase_url = "http://x/v1"\nheaders = { X-Token = "s3cret-value" }\n'
    )
    loaded = config.load(path, {})
    assert str(path) in [kept.path for kept in operator_files.kept(loaded, loaded.file)]


def test_what_tasks_work_on_is_better_not_shown(spool: Spool) -> None:
    """A workspace, or a home, below /usr: `check` and the log say so, and all goes on."""
    path = spool.folder / "config.toml"
    path.write_text(path.read_text() + '[workspace]\nroot = "/usr/share"\nallow = ["/"]\n')
    checked = spool.batchd("check", "--offline")
    why = "[workspace] root: /usr/share lies in /usr, which commands see"
    assert f"note   sandbox view: {why}" in checked.stdout
    assert "[workspace] allow" not in checked.stdout
    with spool.serving():
        pass
    (line,) = [line for line in logged(spool.folder / "daemon.log") if line["event"] == "exposed"]
    assert line["message"] in why
    assert 'hide = ["/usr/share"]' in line["mend"]


def test_small_files_of_etc_are_as_the_machine_has_them(tmp_path: Path) -> None:
    """Commands read what stands there, and change nothing;
    also where they may write little themselves.
    """
    policy = SandboxPolicy(max_file_bytes=1 << 16)
    names = [
        name for name in ("services", "ld.so.cache", "localtime") if Path("/etc", name).is_file()
    ]
    digests = [hashlib.sha256(Path("/etc", name).read_bytes()).hexdigest() for name in names]

    async def read() -> str:
        opening = Sandbox(policy).open(str(tmp_path / "task"), fresh=True, network=False, env={})
        async with await opening as room:
            paths = " ".join(f"/etc/{name}" for name in names)
            return (
                await room.shell(f"sha256sum {paths}; > {paths.split()[0]}", timeout_s=60)
            ).output

    said = asyncio.run(read())
    assert [line.split()[0] for line in said.splitlines()[: len(names)]] == digests
    assert "Read-only file system" in said or "Permission denied" in said


def test_what_is_not_for_all_is_not_copied(tmp_path: Path) -> None:
    """A file that only some may read, a large one, and what is no file:
    to open a pipe takes no waiting.
    """
    path = tmp_path / "f"
    path.write_text("x")
    path.chmod(0o640)
    assert bwrap.opened(str(path)) is None
    path.chmod(0o644)
    descriptor = bwrap.opened(str(path))
    assert descriptor is not None
    os.close(descriptor)
    os.truncate(path, bwrap.MOST_COPIED + 1)
    assert bwrap.opened(str(path)) is None
    os.mkfifo(tmp_path / "p", 0o644)
    assert bwrap.opened(str(tmp_path / "p")) is None
    assert bwrap.opened(str(tmp_path / "none")) is None
