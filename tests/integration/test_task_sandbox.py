"""A task's sandbox: what a command leaves running goes on, later commands enter,
and all of it ends; as the user who runs the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

from batchd.records import SandboxPolicy
from batchd.sandbox import CommandEnd, Sandbox, Workplace

pytestmark = pytest.mark.in_turns

AS_ROOT = os.geteuid() == 0
#: A server that says what it was asked, at ``port``; it is up when this has run.
SERVER = """
cat > server.py <<'END'
import http.server, sys
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"you asked for {self.path}".encode())
http.server.HTTPServer(("127.0.0.1", 8000), Hello).serve_forever()
END
python3 server.py &
until python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8000))' 2>/dev/null; do sleep 0.05; done
"""
ASK = """python3 -c '
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/well").read().decode())'"""
#: Which namespace of processes a command runs in.
WHERE = "readlink /proc/self/ns/pid"
#: When the first process of a sandbox began: its namespaces may get the numbers of earlier ones.
BEGAN = "cut -d ' ' -f 22 /proc/1/stat"


def stay(
    folder: Path,
    body: Callable[[Workplace], Awaitable[Any]],
    policy: SandboxPolicy | None = None,
    **asked: Any,
) -> Any:
    """Let ``body`` work in a fresh directory with a /tmp that lasts;
    what it leaves running ends with it.
    """

    async def visit() -> Any:
        sandbox = Sandbox(policy or SandboxPolicy())
        state = folder / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        opening = {"fresh": True, "network": False, "env": {}, "tmp": str(state / "tmp/1")} | asked
        async with await sandbox.open(str(folder / "001"), **opening) as place:
            return await body(place)

    return asyncio.run(visit())


async def shell(place: Workplace, command: str, timeout_s: float = PATIENCE_S) -> CommandEnd:
    """Run a command as a model does."""
    return await place.shell(command, timeout_s=timeout_s, stays=True)


def named(ran: CommandEnd) -> list[str]:
    """Return the names of what runs on, each of which has a number inside beside it."""
    found = [re.fullmatch(r"(\S+) \(pid \d+\)", name) for name in ran.left]
    return [one[1] for one in found if one]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (processes set no event)
            await asyncio.sleep(0.05)


def helpers(name: str = "batchd-entry", *, dead: bool = False) -> set[int]:
    """Return the programs of ours that have entered a sandbox for this process.

    ``dead``: also those that are not waited for: some may be adopted, of daemons of other tests.
    """
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            ours = parent == str(os.getpid()) and (path / "comm").read_text() == f"{name}\n"
            if ours and (dead or state != "Z"):
                found.add(int(path.name))
    return found


def test_no_name_of_a_process_shows_the_beginning_of_a_secret(tmp_path: Path) -> None:
    """The kernel cuts names, through a letter too; other names stand as they are."""
    secrets = ("ghp_SECRETsecretSECRET", "geheim-schluüüü")
    names = (*secrets, f"my-{secrets[0]}", "a-long-name-of-a-program")

    async def body(place: Workplace) -> CommandEnd:
        place.masker.learn(known=secrets)
        begun = "while grep -qxE '(ba)?sh' /proc/$!/comm; do sleep 0.05; done"
        starts = (f"cp /bin/sleep {name}; ./{name} 1000 & {begun}" for name in names)
        return await shell(place, "; ".join(starts))

    left = stay(tmp_path, body).left
    assert sorted(name.partition(" (pid ")[0] for name in left) == [
        *("[secret]", "[secret]", "a-long-name-of-", "my-")
    ]


def test_a_server_started_in_one_step_answers_in_the_next(tmp_path: Path) -> None:
    """The command that starts it returns, says what goes on, and the next one reaches it."""

    async def body(place: Workplace) -> tuple[CommandEnd, CommandEnd]:
        started = await shell(place, SERVER)
        assert len(helpers()) == 1
        return started, await shell(place, ASK)

    started, asked = stay(tmp_path, body)
    assert started.exit_code == 0
    assert named(started) == ["python3"]
    assert asked.output == "you asked for /well\n"
    assert asked.left == started.left
    assert not helpers()


def test_what_it_prints_later_goes_to_a_file_and_never_keeps_it_waiting(tmp_path: Path) -> None:
    """More than a pipe takes is written at once, and stands in a file that file tools read too;
    its end is its own.
    """

    async def body(place: Workplace) -> tuple[CommandEnd, str, bool]:
        ran = await shell(
            place,
            "(until [ -e go ]; do sleep 0.05; done; seq 100000; echo last >&2; touch done) & echo first",
        )
        await shell(place, "touch go; until [ -e done ]; do sleep 0.05; done")
        await until(lambda: not place.running)
        kept = await place.run(["cat", ran.log], timeout_s=PATIENCE_S, max_output_bytes=1 << 22)
        return ran, kept.output, place.running

    ran, kept, running = stay(tmp_path, body)
    assert ran.output == "first\n"
    assert kept.splitlines() == [*map(str, range(1, 100_001)), "last"]
    assert not running


def test_commands_that_enter_are_confined_as_all_others(tmp_path: Path) -> None:
    """The same user, limits, filter, root, variables and nothing else in their environment;
    no descriptor but three.
    """
    look = (
        "grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status; ulimit -a; umask; pwd; env | sort;"
        " ls /proc/self/fd | wc -l; ls / /usr /etc; stat -c %d:%i /; cat /proc/sys/kernel/hostname; ls /dev"
    )

    async def body(place: Workplace) -> tuple[CommandEnd, CommandEnd]:
        fresh = await place.shell(look, timeout_s=PATIENCE_S)
        await shell(place, "sleep 1000 &")
        return fresh, await shell(place, look)

    def lines(ran: CommandEnd) -> list[str]:
        # Each sandbox has a root of its own, by whatever number.
        other = re.compile(r"\d+:\d+|(_|SHLVL)=.*")
        return [line for line in ran.output.splitlines() if not other.fullmatch(line)]

    env = {"MINE": "a b", "LD_LIBRARY_PATH": "/nowhere", "BASH_ENV": "/dev/null"}
    fresh, entered = stay(tmp_path, body, env=env)
    assert lines(fresh) == lines(entered)
    assert entered.exit_code == 0


def test_programs_apart_and_checks_never_enter(tmp_path: Path) -> None:
    """Their sandboxes are their own; a check ends what is left before it begins."""

    async def body(place: Workplace) -> tuple[list[str], bool, bool]:
        first = await shell(place, f"sleep 1000 & {WHERE}")
        entered = await shell(place, WHERE)
        beside = await place.run(["sh", "-c", WHERE], timeout_s=PATIENCE_S)
        running = place.running
        async with place.apart() as apart:
            seen = await apart.shell("ls /proc | grep -c '^[0-9]'", timeout_s=PATIENCE_S)
        names = [ran.output for ran in (first, entered, beside)]
        assert int(seen.output) <= 4, "the first process, a shell, ls and grep"
        return names, running, place.running

    (first, entered, beside), before, after = stay(tmp_path, body)
    assert first == entered
    assert first != beside
    assert (before, after) == (True, False)


def test_there_is_one_sandbox_from_the_first_command_to_the_end(tmp_path: Path) -> None:
    """Also where nothing is left running in it, until what calls for its end;
    the next command has another one.
    """

    async def body(place: Workplace) -> tuple[list[CommandEnd], str, str]:
        others = helpers(dead=True)
        first = await shell(place, f"sleep 0.5 & {BEGAN}")
        await until(lambda: not place.running)
        why = place.why_over
        second = await shell(place, BEGAN)
        await place.clear("a test wants it")
        assert helpers(dead=True) <= others
        return [first, second, await shell(place, BEGAN)], why, place.why_over

    (first, second, third), why, _ = stay(tmp_path, body)
    assert named(first) == ["sleep"]
    assert second.output == first.output
    assert (second.left, why) == ((), "it has ended by itself")
    assert int(third.output) > int(second.output)


def test_nothing_that_a_command_kills_is_its_sandbox(tmp_path: Path) -> None:
    """It kills all that it can reach, and what earlier ones left;
    its own sandbox is still there for the next, and nothing dead is.
    """

    async def body(place: Workplace) -> list[CommandEnd]:
        commands = (
            f"sleep 1000 & {BEGAN}",
            "kill -9 1; kill -9 -1; (sleep 0.01 &); sleep 0.2",
            f"{BEGAN}; cat /proc/[0-9]*/stat | grep -c ' Z '",
        )
        return [await shell(place, command) for command in commands]

    first, killing, again = stay(tmp_path, body)
    assert named(first) == ["sleep"]
    assert (killing.exit_code, killing.left) == (0, ())
    assert again.output == f"{first.output}0\n"


def test_who_forks_helpers_is_started_again(tmp_path: Path) -> None:
    """It was killed: the sandboxes that there are go on, and the next one is entered."""

    async def body(place: Workplace) -> list[str]:
        first = await shell(place, WHERE)
        for pid in helpers("batchd-starter"):
            os.kill(pid, signal.SIGKILL)
        again = await shell(place, WHERE)
        other = await place.run(["echo", "here"], timeout_s=PATIENCE_S)
        assert len(helpers("batchd-starter")) == 1
        return [first.output, again.output, other.output]

    first, again, other = stay(tmp_path, body)
    assert first == again
    assert other == "here\n"


def test_a_file_tool_enters_where_nothing_runs(tmp_path: Path) -> None:
    """Beside what a command has left, which could forge what it shows, it has its own sandbox."""

    async def body(place: Workplace) -> list[str]:
        tool = ["sh", "-c", BEGAN]
        found = [await shell(place, BEGAN), await place.run(tool, timeout_s=PATIENCE_S, own=True)]
        await shell(place, "sleep 1000 &")
        found += [await place.run(tool, timeout_s=PATIENCE_S, own=True), await shell(place, BEGAN)]
        return [ran.output for ran in found]

    before, tool, beside, after = stay(tmp_path, body)
    assert before == tool == after != beside


def test_what_dies_with_its_command_does_not_stay(tmp_path: Path) -> None:
    """The rest of a pipeline that ends a moment later is nothing that is left."""
    ran = stay(tmp_path, lambda place: shell(place, "(sleep 0.01; echo late) & echo now"))
    assert ran.output == "now\nlate\n"
    assert ran.left == ()


def test_a_command_that_enters_and_runs_out_of_time_goes_alone(tmp_path: Path) -> None:
    """What it has started goes with it; what ran before stays."""

    async def body(place: Workplace) -> tuple[CommandEnd, CommandEnd]:
        await shell(place, SERVER)
        slow = await shell(place, "sleep 1000 & sh -c 'sleep 1000; true'", 1.0)
        left = await shell(place, "pgrep sleep; " + ASK)
        return slow, left

    slow, after = stay(tmp_path, body)
    assert (slow.timed_out, named(slow)) == (True, ["python3"])
    assert after.output == "you asked for /well\n"


def test_where_it_cannot_be_distinguished_all_of_it_goes(tmp_path: Path) -> None:
    """A command that has hidden something behind the first process takes the sandbox with it."""

    async def body(place: Workplace) -> tuple[CommandEnd, str]:
        await shell(place, SERVER)
        hidden = await shell(place, "(setsid sh -c 'sleep 1000' &) ; sleep 1000", 1.0)
        return hidden, place.why_over

    hidden, why = stay(tmp_path, body)
    assert (hidden.timed_out, hidden.left) == (True, ())
    assert why == "killed with a command that ran out of its time"


def test_a_command_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    """A cancellation takes the whole sandbox, and is not lost."""

    async def body(place: Workplace) -> tuple[bool, str]:
        await shell(place, SERVER)
        command = asyncio.create_task(shell(place, "touch begun; sleep 1000"))
        await until((tmp_path / "001/begun").exists)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        return place.running, place.why_over

    assert stay(tmp_path, body) == (False, "killed with a command that was broken off")


@pytest.mark.parametrize("backend", ["bwrap", "none"])
def test_the_old_way_is_left(tmp_path: Path, backend: Any) -> None:
    """Under ``keep_processes = false``, and without a sandbox,
    what a command started ends with it.
    """
    policy = SandboxPolicy(backend=backend, keep_processes=backend == "none", max_processes=20_000)

    async def body(place: Workplace) -> tuple[bool, CommandEnd, bool]:
        return place.can_stay, await shell(place, "sleep 1000 & echo now"), place.running

    can_stay, ran, running = stay(tmp_path, body, policy)
    assert (can_stay, ran.output, ran.left, running) == (False, "now\n", (), False)


LIMITS = {
    "processor time": ("max_cpu_s", 1.0, "while :; do :; done &"),
    "memory": (
        "max_memory_bytes",
        100 << 20,
        "for i in 1 2; do python3 -c 'import time; time.sleep(1); x = b\"x\" * (70 << 20); time.sleep(99)' & done",
    ),
    "processes": (
        "max_processes",
        60,
        "(sleep 0.5; for i in $(seq 90); do sleep 99 & done; wait) &",
    ),
    "disk": ("max_disk_bytes", 20 << 20, "(sleep 0.5; head -c 60M /dev/zero > large; sleep 99) &"),
}


# Without root the kernel refuses the 61st process by itself.
@pytest.mark.parametrize("what", [what for what in LIMITS if AS_ROOT or what != "processes"])
def test_limits_hold_for_what_stays_while_no_command_runs(tmp_path: Path, what: str) -> None:
    """It is measured on, killed where it passes one, and the reason is known."""
    key, value, command = LIMITS[what]
    policy = replace(SandboxPolicy(cgroup="none"), **{key: value})

    async def body(place: Workplace) -> tuple[CommandEnd, str]:
        ran = await shell(place, command)
        await until(lambda: not place.running)
        return ran, place.why_over

    ran, why = stay(tmp_path, body, policy)
    assert ran.left, ran
    assert why.startswith("killed: "), why
    assert f"[sandbox] {key} allows" in why


def test_a_command_inside_is_killed_with_what_passes_a_limit(tmp_path: Path) -> None:
    """Both count together; the command says so."""
    policy = SandboxPolicy(max_cpu_s=1.0, cgroup="none")

    async def body(place: Workplace) -> CommandEnd:
        await shell(place, "sleep 1000 &")
        return await shell(place, "while :; do :; done")

    ran = stay(tmp_path, body, policy)
    assert ran.killed
    assert "[sandbox] max_cpu_s allows 1 s" in ran.excess
    assert ran.left == ()


def test_who_starts_a_command_inside_is_not_to_be_seen(tmp_path: Path) -> None:
    """It lives outside of the sandbox, and hands a command 0 as the number of its parent."""

    async def body(place: Workplace) -> list[CommandEnd]:
        await shell(place, "sleep 1000 &")
        return [await shell(place, "echo $PPID") for _ in range(3)]

    assert {ran.output for ran in stay(tmp_path, body)} == {"0\n"}
