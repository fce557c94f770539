"""The sandbox at work: commands and their ends, their output, their directory;
as the user who runs the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

from batchd import trees
from batchd.errors import FolderError, SandboxError, SandboxUnavailableError
from batchd.records import FileChanges, SandboxPolicy
from batchd.sandbox import Sandbox, Workplace, check, directory
from batchd.sandbox.command_user import CommandUser
from batchd.sandbox.process_table import OpenFiles, ProcessTable

pytestmark = pytest.mark.in_turns

AS_ROOT = os.geteuid() == 0
HERE = Path(__file__).parents[2]
#: Without namespaces the kernel counts all processes of this user, those of other tests too.
PLAIN = SandboxPolicy(backend="none", max_processes=20_000)

Body = Callable[[Workplace], Awaitable[Any]]


async def visit(
    folder: Path,
    body: Body,
    policy: SandboxPolicy | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Let ``body`` work in a fresh directory."""
    sandbox = Sandbox(policy or SandboxPolicy())
    opening = sandbox.open(str(folder / "001"), fresh=True, network=False, env=env or {})
    async with await opening as place:
        return await body(place)


def command_lines(marker: str) -> list[str]:
    """Return the command lines on this machine that hold ``marker``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if marker in line and "pytest" not in line:
            found.append(line)
    return found


def a_marker() -> str:
    """Return a duration for ``sleep`` that no other process uses: it finds its process."""
    return f"1000.{uuid.uuid4().int % 10**12}"


def children(state: str = "") -> dict[int, str]:
    """Return the children of this process, all or those in a state, and their names."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            now, parent = rest.split()[:2]
            if parent == str(os.getpid()) and now.startswith(state):
                found[int(path.parent.name)] = name
    return found


def zombies() -> dict[int, str]:
    """Return the children that are dead and not waited for, and their names."""
    return children("Z")


def descriptors() -> set[str]:
    """Return what this process has open, the listing itself apart."""
    numbers = set(os.listdir("/proc/self/fd"))
    return {number for number in numbers if Path("/proc/self/fd", number).exists()}


def bury() -> None:
    """Wait for the children that are dead."""
    for pid in zombies():
        os.waitpid(pid, 0)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test may leave a child that was not waited for."""
    # A process that runs commands adopts orphans;
    # those of daemons that earlier tests killed are not meant here.
    bury()
    before = children()
    yield
    assert {pid: name for pid, name in zombies().items() if pid not in before} == {}


def test_a_command_has_its_directory_its_variables_and_its_exit_code(tmp_path: Path) -> None:
    """It runs in /task as the directory's owner, can write there and at home,
    reads nothing, and its end is reported.
    """

    async def body(place: Workplace) -> None:
        ran = await place.shell(
            'pwd; echo "$GREETING"; cat; echo x > made; echo y > ~/made; echo oops >&2; exit 3',
            timeout_s=PATIENCE_S,
        )
        assert (ran.exit_code, ran.output) == (3, "/task\nhello ü\noops\n")
        assert (await place.run(["sh", "-c", "kill -9 $$"], timeout_s=PATIENCE_S)).exit_code == 137
        missing = await place.run(["no-such-command"], timeout_s=PATIENCE_S)
        assert missing.exit_code == 127
        assert "no-such-command" in missing.output
        given = await place.run(
            ["sh", "-c", 'cat > "$1"', "sh", "a b"], stdin=b"\0\xff", timeout_s=PATIENCE_S
        )
        assert given.exit_code == 0

    asyncio.run(visit(tmp_path, body, env={"GREETING": "hello ü"}))
    made = tmp_path / "001" / "made"
    assert made.read_text() == "x\n"
    assert (made.stat().st_uid == 0) is False
    assert made.stat().st_uid == (tmp_path / "001").stat().st_uid
    assert (tmp_path / "001" / "a b").read_bytes() == b"\0\xff"


def test_output_comes_in_order_and_only_its_head_and_tail_are_kept(tmp_path: Path) -> None:
    """Both streams keep their order; a flood is drained to its end,
    its middle is cut out, and the cut is said.
    """

    async def body(place: Workplace) -> None:
        order = await place.shell(
            "for i in 1 2 3; do echo out$i; echo err$i >&2; done", timeout_s=PATIENCE_S
        )
        assert order.output == "out1\nerr1\nout2\nerr2\nout3\nerr3\n"
        flood = await place.shell(
            "echo first; yes ü | head -c 30000000; echo last", timeout_s=PATIENCE_S
        )
        assert flood.cut
        assert flood.exit_code == 0
        assert flood.output.startswith("first\nü\nü\n")
        assert flood.output.endswith("ü\nü\nlast\n")
        assert "bytes of output cut out" in flood.output
        assert "\ufffd" not in flood.output
        assert len(flood.output.encode()) < 17_000
        broken = await place.run(["printf", r"a\377b"], timeout_s=PATIENCE_S)
        assert broken.output == "a\ufffdb"
        whole = await place.run(
            ["head", "-c", "100000", "/dev/zero"], timeout_s=PATIENCE_S, max_output_bytes=100_000
        )
        assert (len(whole.output), whole.cut) == (100_000, False)

    asyncio.run(visit(tmp_path, body))


@pytest.mark.parametrize("policy", [SandboxPolicy(), PLAIN], ids=["bwrap", "none"])
def test_a_command_that_takes_too_long_dies_with_all_that_it_started(
    tmp_path: Path, policy: SandboxPolicy
) -> None:
    """What it said until then is kept."""
    marker = a_marker()

    async def body(place: Workplace) -> None:
        command = f"echo begun; (sleep {marker} & sleep {marker}) | sleep {marker}"
        ran = await place.shell(command, timeout_s=1.5)
        assert (ran.timed_out, ran.exit_code, ran.output) == (True, None, "begun\n")
        assert 1.5 <= ran.seconds < PATIENCE_S

    asyncio.run(visit(tmp_path, body, policy))
    assert command_lines(marker) == []


def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    """A background process neither delays the end by holding the pipe nor survives it,
    whatever session it is in.
    """
    marker = a_marker()

    async def body(place: Workplace) -> None:
        ran = await place.shell(
            f"setsid sh -c 'trap \"\" HUP TERM; sleep {marker}' & nohup sleep {marker} & echo hi",
            timeout_s=PATIENCE_S,
        )
        assert (ran.exit_code, ran.seconds < 100) == (0, True)
        assert "hi" in ran.output
        assert command_lines(marker) == []

    asyncio.run(visit(tmp_path, body))


def test_a_command_that_closes_its_output_is_still_waited_for(tmp_path: Path) -> None:
    """The end of a command is the end of its process, not of its output."""

    async def body(place: Workplace) -> None:
        ran = await place.shell(
            "exec >&- 2>&-; sleep 0.2; touch done; exit 4", timeout_s=PATIENCE_S
        )
        assert (ran.exit_code, ran.output) == (4, "")
        assert "done" in (place.files() or {})

    asyncio.run(visit(tmp_path, body))


def test_a_cancelled_command_is_dead_before_the_cancellation_arrives(tmp_path: Path) -> None:
    """Also when it is cancelled again while it dies, and in the middle of many."""
    marker = a_marker()

    async def body(place: Workplace) -> None:
        tasks = [
            asyncio.create_task(place.run(["sleep", marker], timeout_s=PATIENCE_S))
            for _ in range(8)
        ]
        while len(command_lines(f"sleep {marker}")) < 8:  # noqa: ASYNC110 (processes set no event)
            await asyncio.sleep(0.01)
        for _ in range(2):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert command_lines(marker) == []

    asyncio.run(visit(tmp_path, body))


def test_no_moment_of_the_set_up_is_too_early_to_be_killed(tmp_path: Path) -> None:
    """Time limits from nothing to longer than the set-up takes:
    no process, zombie or descriptor is left.
    """
    marker = a_marker()

    async def body(place: Workplace) -> None:
        await place.run(["true"], timeout_s=PATIENCE_S)
        before, dead = descriptors(), zombies()
        for step in range(60):
            ran = await place.run(["sleep", marker], timeout_s=step * 0.0002)
            assert ran.timed_out
        assert command_lines(marker) == []
        # A look at the directory may have been under way before, or be so now.
        async with asyncio.timeout(PATIENCE_S):
            while descriptors() - before:  # noqa: ASYNC110 (no event for it)
                await asyncio.sleep(0.01)
        assert zombies() == dead

    asyncio.run(visit(tmp_path, body))


def test_hundreds_run_at_once(tmp_path: Path) -> None:
    """300 commands in one process, each with its own output; nothing is left open afterwards."""

    async def body(place: Workplace) -> None:
        await place.run(["true"], timeout_s=PATIENCE_S)
        before = descriptors()

        async def one(number: int) -> None:
            ran = await place.shell(
                f"read x; echo {number}; exit {number % 7}", timeout_s=PATIENCE_S
            )
            assert (ran.exit_code, ran.output) == (number % 7, f"{number}\n")

        await asyncio.gather(*(one(number) for number in range(300)))
        async with asyncio.timeout(PATIENCE_S):
            while descriptors() - before:  # noqa: ASYNC110 (who watches may be at it)
                await asyncio.sleep(0.01)

    asyncio.run(visit(tmp_path, body))


def test_the_same_set_up_answers_with_an_error_where_it_fails(tmp_path: Path) -> None:
    """A sandbox that cannot be set up is no exit code; what no process can be given is refused."""

    async def body(place: Workplace) -> None:
        for word in ("a\0--bind\0/", "x" * 3_000_000):
            assert (await place.run(["echo", word], timeout_s=PATIENCE_S)).exit_code == 126
        odd = await place.run(["echo", "\ud800"], timeout_s=PATIENCE_S)
        assert odd.output == "?\n"
        os.rmdir(tmp_path / "001")
        with pytest.raises(SandboxError, match="set up"):
            await place.run(["true"], timeout_s=PATIENCE_S)

    asyncio.run(visit(tmp_path, body))
    for env in ({"A": "\0--bind\0/\0/host"}, {"A=B": "x"}, {"": "x"}, {"A": "x" * 2_000_000}):
        with pytest.raises(SandboxError, match="env"):
            asyncio.run(visit(tmp_path, body, env=env))


_WORKER = """
import asyncio, os, sys
from batchd.records import SandboxPolicy
from batchd.sandbox import Sandbox
async def main():
    sandbox = Sandbox(SandboxPolicy())
    async with await sandbox.open(sys.argv[1], fresh=True, network=False, env={}) as place:
        print("ready", flush=True)
        async def agent():
            while True:
                await place.run(["sh", "-c", "sleep 0.003 & sleep " + sys.argv[2]], timeout_s=0.03)
        await asyncio.gather(*(agent() for _ in range(4)))
asyncio.run(main())
"""


def test_nothing_outlives_a_worker_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL of the process that runs commands, wherever in the set-up of a sandbox they are."""
    marker = a_marker()
    before = children().keys()
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(tmp_path / "001"), marker],
            stdout=subprocess.PIPE,
            cwd=HERE,
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0.0, 0.05))
            worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while children().keys() - before and time.monotonic() < deadline:
        bury()  # this process adopts orphans, as every one that runs commands does
        time.sleep(0.01)
    assert command_lines(marker) == []


def test_directories_are_made_for_the_user_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    """A fresh one is made once and opened again;
    root's is refused with the fix; links are never followed.
    """
    sandbox = Sandbox(SandboxPolicy())

    async def opened(path: Path, *, fresh: bool) -> None:
        async with await sandbox.open(str(path), fresh=fresh, network=False, env={}) as place:
            assert (await place.run(["touch", "mine"], timeout_s=PATIENCE_S)).exit_code == 0

    path = tmp_path / "outbox" / "batch" / "001"
    for _ in range(2):
        asyncio.run(opened(path, fresh=True))
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    (tmp_path / "private").mkdir()
    if AS_ROOT:
        with pytest.raises(SandboxError, match="chown -R nobody"):
            asyncio.run(opened(tmp_path / "private", fresh=False))
        os.chown(tmp_path / "private", 12345, 12345)
    (tmp_path / "private").chmod(0o700)
    asyncio.run(opened(tmp_path / "private", fresh=False))
    (tmp_path / "link").symlink_to(tmp_path / "private")
    for target in ("link", "link/.", "nowhere"):
        with pytest.raises(SandboxError):
            asyncio.run(opened(tmp_path / target, fresh=False))
    with pytest.raises(SandboxError):
        asyncio.run(opened(tmp_path / "link", fresh=True))
    with pytest.raises(SandboxError, match="network"):
        asyncio.run(sandbox.open(str(path), fresh=True, network=True, env={}))


def test_the_facts_are_true_and_one_line(tmp_path: Path) -> None:
    """They name a tool exactly where the sandbox has it."""

    async def body(place: Workplace) -> None:
        facts = await place.facts()
        assert facts == await place.facts()
        assert "\n" not in facts
        assert "/task" in facts
        assert "no network" in facts
        there = facts.partition("tools: ")[2].partition(";")[0].split(", ")
        for tool in ("python3", "node", "git", "gcc", "go", "python"):
            ran = await place.shell(f"command -v {tool}", timeout_s=PATIENCE_S)
            assert (tool in there) == (ran.exit_code == 0), facts

    asyncio.run(visit(tmp_path, body))


def test_the_usual_tools_work(tmp_path: Path) -> None:
    """Git commits in a repository of another owner; Python,
    a C compiler, node and TLS certificates do their work.
    """
    work = {
        "git": "git init -q r && cd r && echo 1 > a && git add a && git commit -qm m && git log -1 --format=%ae",
        "python3": "python3 -c 'import ssl, tempfile, multiprocessing; tempfile.mkdtemp(); multiprocessing.Lock()'",
        "gcc": "echo 'int main(){return 0;}' > a.c && gcc a.c -o a && ./a",
        "node": 'node -e \'require("fs").writeFileSync("n", "1")\'',
    }

    async def body(place: Workplace) -> None:
        for tool, command in work.items():
            if shutil.which(tool, path="/usr/bin:/bin"):
                ran = await place.shell(command, timeout_s=PATIENCE_S)
                assert ran.exit_code == 0, ran.output
        if certificates:
            ran = await place.shell("ls /etc/ssl/certs/", timeout_s=PATIENCE_S)
            assert (ran.exit_code, bool(ran.output)) == (0, True)

    certificates = Path("/etc/ssl/certs").is_dir()
    asyncio.run(visit(tmp_path, body))


def test_without_a_backend_commands_are_plain_but_limited(tmp_path: Path) -> None:
    """No key from our own environment, no root, the same limits;
    ``check`` says what is not promised.
    """

    async def body(place: Workplace) -> None:
        look = "ulimit -c; ulimit -n; ulimit -u; id -u; pwd; env"
        ran = await place.shell(look, timeout_s=PATIENCE_S)
        core, files, processes, uid, directory, *env = ran.output.splitlines()
        assert (core, files) == ("0", "4096")
        assert int(processes) > PLAIN.max_processes, "what else its user runs counts with them"
        assert uid != "0"
        assert directory == str(tmp_path / "001")
        assert "HIDDEN_KEY=1" not in env
        assert (await place.facts()).count(str(tmp_path)) == 1

    os.environ["HIDDEN_KEY"] = "1"
    try:
        asyncio.run(visit(tmp_path, body, PLAIN))
    finally:
        del os.environ["HIDDEN_KEY"]
    tried = {found.name: found for found in check(PLAIN)}
    assert tried["sandbox"].ok
    assert "outlive" in tried["sandbox"].detail


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("echo bubblewrap 0.11.9", "0.11.9"), ("exit 1", "no version"), (None, "not installed")],
)
def test_a_bwrap_that_is_too_old_broken_or_missing_is_refused_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, problem: str
) -> None:
    """By ``Sandbox`` with an error, by ``check`` with a finding."""
    if answer is not None:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "defpath", str(tmp_path))  # where it would be, on this machine
    with pytest.raises(SandboxUnavailableError, match=problem) as raised:
        Sandbox(SandboxPolicy())
    assert "apt-get install bubblewrap" in str(raised.value)
    finding = next(found for found in check(SandboxPolicy()) if found.name == "bubblewrap")
    assert not finding.ok
    assert problem in finding.detail
    assert "apt-get install bubblewrap" in finding.fix


def test_check_says_what_holds(tmp_path: Path) -> None:
    """Everything is looked at, and a command has run confined."""
    findings = {found.name: found for found in check(SandboxPolicy(network=True))}
    assert not [found for found in findings.values() if not (found.ok and found.detail)]
    # Attacks beside this one may have a socket lie below what commands see.
    assert not [f for f in findings.values() if f.fix and f.name != "sandbox view"]
    assert "confined" in findings["sandbox"].detail
    assert "loopback" in findings["sandbox network"].detail
    if AS_ROOT:
        for user in ("root", "no-such-user"):
            with pytest.raises(SandboxUnavailableError, match="ordinary user"):
                Sandbox(SandboxPolicy(user=user))
    assert list(tmp_path.iterdir()) == []


def test_what_is_behind_descriptors_is_seen() -> None:
    """Pipes once, however many ends; terminals by the end that opened them."""

    def seen() -> int:
        return OpenFiles.by([ProcessTable.read().processes[os.getpid()]]).kernel

    before = seen()
    pipe, (terminal, end) = os.pipe(), os.openpty()
    copies = [os.dup(pipe[0]) for _ in range(100)]
    after = seen()
    for descriptor in (*pipe, terminal, end, *copies):
        os.close(descriptor)
    assert (73 << 10) + 104 * 512 <= after - before < 2 * (73 << 10) + 104 * 512


@contextlib.contextmanager
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Leave this process no descriptor to open, until what this gives is called."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filled = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]  # no gaps below the limit

    def again() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(filled) + 1, hard))
    with contextlib.suppress(OSError):
        while True:
            filled.append(os.open(os.devnull, os.O_RDONLY))
    try:
        yield again
    finally:
        again()
        for descriptor in filled:
            os.close(descriptor)


def test_a_command_waits_for_descriptors_and_runs_once(tmp_path: Path) -> None:
    """What runs out for a moment delays a command; it fails nothing, and begins nothing twice."""

    async def body(place: Workplace) -> None:
        with no_descriptors() as again:
            running = asyncio.ensure_future(place.shell("echo x >> ran", timeout_s=PATIENCE_S))
            await asyncio.sleep(0.3)
            assert not running.done()
            assert not (tmp_path / "001/ran").exists()
            again()
            assert (await running).exit_code == 0
        assert (tmp_path / "001/ran").read_text() == "x\n"

    asyncio.run(visit(tmp_path, body))


def test_a_command_is_followed_to_its_end_without_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began with the last of them is neither lost,
    nor begun again, nor left behind at its limit.
    """

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    marker, dead = a_marker(), zombies()

    async def body(place: Workplace) -> None:
        monkeypatch.setattr(os, "pidfd_open", none_left)
        assert (await place.shell("sleep 0.2; echo x >> ran", timeout_s=PATIENCE_S)).exit_code == 0
        assert (await place.shell(f"sleep {marker}", timeout_s=0.3)).timed_out
        assert (tmp_path / "001/ran").read_text() == "x\n"
        monkeypatch.undo()
        assert not command_lines(marker)
        assert zombies() == dead

    asyncio.run(visit(tmp_path, body))


def test_a_file_that_is_rewritten_counts_as_modified_whatever_time_it_bears(tmp_path: Path) -> None:
    """No command sets a ctime back.

    Another mode, or one more link, is never another file's content.
    """

    async def body(place: Workplace) -> None:
        made = """
            for name in rewritten replaced through mode link same; do echo -n old > $name; done
            mkdir -p node_modules && ln through node_modules/through
        """
        assert (await place.shell(made, timeout_s=PATIENCE_S)).exit_code == 0
        before = place.files() or {}
        hidden = """
            set -e; touch -r rewritten /tmp/time
            for file in rewritten node_modules/through; do echo -n new > $file; touch -r /tmp/time $file; done
            echo -n new > /tmp/replaced && touch -r replaced /tmp/replaced && cp -p --remove-destination /tmp/replaced .
            chmod +x mode; ln link node_modules/link; cat same
        """
        ran = await place.shell(hidden, timeout_s=PATIENCE_S)
        assert ran.exit_code == 0, ran.output
        after = place.files() or {}
        assert {name for name in before if before[name][:2] != after[name][:2]} <= {"through"}
        changes = FileChanges.between(before, after)
        assert changes.modified == ("replaced", "rewritten", "through")
        # A journal of before has size and time alone.
        older = {name: stamp[:2] for name, stamp in before.items()}
        assert {*FileChanges.between(older, after).modified} <= {"through"}

    asyncio.run(visit(tmp_path, body))


def test_a_directory_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """Without a descriptor the answer is that it is not known:
    an empty list would say that all was deleted.
    """

    async def body(place: Workplace) -> None:
        (tmp_path / "001/kept").touch()
        with no_descriptors():
            assert place.files() is None
        assert set(place.files() or {}) == {"kept"}

    asyncio.run(visit(tmp_path, body))


def test_no_output_shows_a_secret_not_even_half_of_one(tmp_path: Path) -> None:
    """Wherever the cut goes through it; a command that is not to be shown has it as it is."""
    secret = "s3cret-of-sixteen"

    async def body(place: Workplace) -> None:
        place.masker.learn(known=[secret])
        for ahead in range(480, 520):
            command = f"printf 'x%.0s' {{1..{ahead}}}; printf $S; printf 'y%.0s' {{1..{ahead}}}"
            ran = await place.run(
                ["bash", "-c", command], timeout_s=PATIENCE_S, max_output_bytes=1024
            )
            shown = ran.output.replace("[secret]", "").replace(" bytes of output cut out here", "")
            assert set(shown) <= set("xy[]. ,\n0123456789"), (ahead, shown)
            head = shown.partition("\n")[0]
            assert set(head) <= set("xy"), "digits of the secret stand before the cut"
        ran = await place.run(["sh", "-c", "echo $S"], timeout_s=PATIENCE_S, masked=False)
        assert ran.output == f"{secret}\n"

    asyncio.run(visit(tmp_path, body, env={"S": secret}))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a file system")
def test_a_folder_that_takes_no_directory_is_no_fault_of_the_tasks(tmp_path: Path) -> None:
    """It became read-only in the instant that the task begins:
    the task is to wait for it, and does not end.
    """
    folder = tmp_path / "b"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "batchd-test", str(folder)], check=True)
    try:
        with pytest.raises(FolderError, match="cannot be made"):
            directory.fresh(str(folder / "001"), CommandUser.of(65534, 65534))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_what_a_task_has_changed_is_synced_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, and the folders above what is new or gone; where a link leads, nothing is.
    What cannot be found by its name, or is too much, is left to a sync of the whole disk.
    """
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/f").touch()
    work = tmp_path / "work"
    for name in ("same", "old", "gone/f", "all/gone/f"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).touch()
    top = directory.opened(str(work))
    before = directory.files(top, 100, PATIENCE_S)
    (work / "gone/f").unlink()
    shutil.rmtree(work / "all/gone")
    (work / "old").write_text("new")
    (work / "a/b").mkdir(parents=True)
    (work / "a/b/c").touch(0o400)
    (work / "link").symlink_to(tmp_path / "elsewhere/f")
    (work / "folder").symlink_to(tmp_path / "elsewhere")
    after = directory.files(top, 100, PATIENCE_S)
    assert before is not None
    assert after is not None
    assert directory.sync(top, before, after)
    folders = {"work", "work/a", "work/a/b", "work/gone", "work/all"}
    assert set(synced) == {"work/old", "work/a/b/c", *folders}
    assert len(synced) == len(set(synced))
    stamp = after["old"]
    assert not directory.sync(top, before, {**after, "***": stamp})  # a name that is masked
    assert not directory.sync(top, before, {**after, "link": stamp})  # a link since
    assert not directory.sync(top, {}, {f"old{n}": stamp for n in range(1001)})
    assert not directory.sync(top, None, after)
    assert not directory.sync(top, before, None)
    os.close(top)


def test_a_disk_that_takes_nothing_or_hangs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task ends all the same; where much has changed, one sync is for all that end together."""
    hangs, disks = threading.Event(), []
    sync_disk = trees.sync_disk

    def fails(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def body(place: Workplace) -> None:
        await place.shell("echo 1 > new", timeout_s=PATIENCE_S)
        after = place.files()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            said = await place.sync({}, after)
            assert said == "[Errno 28] No space left on device"
            patch.setattr(os, "fsync", lambda _: hangs.wait())
            patch.setattr("batchd.sandbox.workplace._SYNCED_S", 0.2)
            assert await place.sync({}, after) == "it did not take them within 0.2 s"
            hangs.set()
        assert await place.sync({}, after) == ""
        with monkeypatch.context() as patch:
            patch.setattr(trees, "sync_disk", lambda top: (disks.append(top), sync_disk(top)))
            patch.setattr("batchd.sandbox.workplace._TOGETHER_S", 0.5)
            assert set(await asyncio.gather(*[place.sync(None, after) for _ in range(9)])) == {""}
            assert 0 < len(disks) < 9

    asyncio.run(visit(tmp_path, body))


def test_a_look_for_links_waits_for_descriptors(tmp_path: Path) -> None:
    """A process that has too few left for a moment waits, and misses no link."""

    async def body(place: Workplace) -> None:
        await place.shell("mkdir a; ln -s /proc/self a/me", timeout_s=PATIENCE_S)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        filled = [os.dup(0) for _ in range(300)]  # so that no number below is free
        for left in range(4):
            resource.setrlimit(resource.RLIMIT_NOFILE, (filled[-1] + 1 + left, hard))
            try:
                look = asyncio.create_task(place.leading_out())
                await asyncio.wait({look}, timeout=0.3)
                waited = not look.done()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await look == {"a/me": "/proc/self"}
            assert waited or left > 1
        for descriptor in filled:
            os.close(descriptor)

    asyncio.run(visit(tmp_path, body))
