"""Processes that stay behind a command, against what comes after it:
later commands, file tools, checks, and their own end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attacking import DRIVERS, HERE, Attack, living_in, shell
from camp import Camp, does, says
from patience import PATIENCE_S, until

pytestmark = [pytest.mark.in_turns, pytest.mark.usefixtures("by_turns")]

CLINGING = shell("clinging.py")


@dataclass(frozen=True)
class End:
    """How a command ended, and what runs on behind it."""

    exit_code: int | None
    output: str
    left: list[str]


def ran(attack: Attack, *commands: str, timeout_s: float = PATIENCE_S) -> list[End]:
    """Run commands of one task as a model does; see the driver."""
    state = attack.folder.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    owner = state.parent.stat()
    os.chown(state, owner.st_uid, owner.st_gid)
    asked: dict[str, Any] = {
        "folder": str(attack.folder),
        "tmp": str(state / "tmp/1"),
        "network": [],
        "timeout_s": timeout_s,
        "commands": commands,
    }
    ended = subprocess.run(
        [*attack.python_command, DRIVERS / "staying.py"],
        input=json.dumps(asked).encode(),
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
        cwd="/",
        env=attack.surroundings,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return [End(*end) for end in json.loads(ended.stdout)]


def _lurked(attack: Attack) -> list[str]:
    """Have it look at a hundred commands that enter, and return what it got."""
    begin = f"{shell('lurking.py')}; sleep 0.2"
    *_, last = ran(
        attack,
        begin,
        *["/bin/true"] * 100,
        "touch stop; until [ -e seen ]; do sleep 0.1; done; cat seen",
    )
    assert last.exit_code == 0, last.output
    return [str(line) for line in json.loads((attack.folder / "seen").read_text())]


@pytest.mark.stopped_by("undumpable")
def test_nothing_of_ours_leaks_to_who_is_inside(attack: Attack) -> None:
    """Who watches all that enters finds commands: no program,
    directory, descriptor, variable or map of who starts them.
    """
    seen = _lurked(attack)
    assert "exe /usr/bin/bash" in seen, "it does look"
    leaks = [line for line in seen if "python" in line or "entrychild" in line or str(HERE) in line]
    # Its own name stands on the command line that began it.
    assert [line for line in leaks if "cmdline" not in line] == []
    assert [line for line in leaks if "entrychild" in line or str(HERE) in line] == []
    links = {line.partition(" ")[2] for line in seen if line.startswith(("cwd", "root"))}
    assert links <= {"/", "/task"}
    descriptors = {line.partition(" ")[2] for line in seen if line.startswith("fd")}
    ordinary = ("pipe:", "/dev/", "/etc/", "/task", "/tmp/", "/proc", "/usr/")
    strange = [name for name in descriptors if not name.startswith(ordinary)]
    assert strange == []


@pytest.mark.stopped_by("still proc")
def test_no_memory_of_a_later_command_can_be_written(attack: Attack) -> None:
    """Not by /proc, and nothing can be attached to."""
    seen = _lurked(attack)
    assert "wrote into its memory" not in seen
    assert "attached to it" not in seen


# As root the pipe of an output is root's own as well.
@pytest.mark.stopped_by("tools apart", who="unprivileged")
@pytest.mark.stopped_by("tools apart + identity", who="root")
def test_what_a_file_tool_shows_cannot_be_forged(attack: Attack) -> None:
    """Who writes into the output of all that it sees does not see a file tool."""
    # To read a file to its end takes a while, in which there is an output to be written to.
    write = "echo the truth > file; head -c 20M /dev/zero | tr '\\0' '\\n' >> file"
    begin = f"{write}; {shell('scribbling.py')}; until [ -e scribbling ]; do sleep 0.1; done"
    first, *shown = ran(attack, begin, *["file:file"] * 10)
    assert first.left, first
    assert {end.output for end in shown} == {"the truth\n"}


@pytest.mark.stopped_by("cleared")
def test_a_check_meets_nothing_that_stays(attack: Attack) -> None:
    """What was left running is over before a check begins: it changes no file behind its back."""
    begin = "(while :; do echo forged > verdict; done) & until [ -e verdict ]; do sleep 0.1; done"
    _, check = ran(attack, begin, "check:echo honest > verdict; sleep 1; cat verdict")
    assert check.output == "honest\n"


@pytest.mark.stopped_by("kept apart")
def test_what_a_command_hides_among_what_stays_ends_with_it(attack: Attack) -> None:
    """It runs out of its time; whatever has left its session
    and its parents is not taken for what ran before.
    """
    quick = "echo here; sleep 0.3"
    first, slow, after = ran(
        attack,
        f"sleep 1000 & {quick}",
        f"{CLINGING}; sleep 1000",
        "ls /proc | grep -c '^[0-9]'",
        timeout_s=5.0,
    )
    assert first.left, first
    assert (slow.exit_code, slow.left) == (None, [])
    assert int(after.output) <= 5, "its own sandbox: the first process, a shell, ls and grep"
    namespace = (attack.folder / "namespace").read_text()
    until(lambda: living_in(namespace) == [])


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("orphans")
@pytest.mark.parametrize("whom", ["the worker", "the daemon", "both"])
@pytest.mark.parametrize("meanwhile", ["a command runs inside", "the model is asked"])
def test_nothing_that_stays_outlives_a_worker_or_a_daemon(
    camp: Camp, whom: str, meanwhile: str
) -> None:
    """SIGKILL of either: all of it dies, the task goes on,
    and the model learns that its processes are gone.
    """
    place = camp.folder / "outbox/batch/001"
    begin = does(f"test -e namespace || {{ {CLINGING}; }}")
    second = (
        "test -e second || { touch second; sleep 1000; }"
        if "inside" in meanwhile
        else "touch second; sleep 1"
    )
    hang = () if "inside" in meanwhile else ("--latency", "4")
    with camp.answering(
        {"stay": [begin, does(second), does("echo all is well"), says("Done.")]}, "", *hang
    ):
        camp.batchd("submit", camp.write("batch.json", [{"first_prompt": "stay"}]))
        camp.eventually((place / ("namespace" if hang else "second")).exists)
        # What was left is in the journal, which is written before a model is asked.
        camp.eventually(lambda: "Running in the background" in _logged(camp))
        namespace = (place / "namespace").read_text()
        until(lambda: len(living_in(namespace)) > 10)
        status = json.loads(camp.batchd("status", "--json").stdout)
        workers = [int(n) for n in re.findall(r'"worker": (\d+)', json.dumps(status))]
        assert workers
        daemon = status["daemon"]["pid"]
        for pid in {"the worker": workers, "the daemon": [daemon]}.get(whom, [daemon, *workers]):
            os.kill(pid, signal.SIGKILL)
        until(lambda: living_in(namespace) == [])
        if whom != "the worker":
            until(lambda: not Path(f"/proc/{daemon}/exe").exists())
            with camp.serving():
                camp.eventually((camp.folder / "outbox/batch/summary.json").exists)
        camp.eventually((camp.folder / "outbox/batch/summary.json").exists)
    result = camp.result("batch", "001")
    assert result["status"] == "completed"
    events = (camp.folder / "outbox/batch" / result["transcript"]).read_text()
    assert "What earlier commands left running is gone" in events


def _logged(camp: Camp) -> str:
    """Return what the task did so far."""
    return camp.batchd("logs", "batch/001", "--json").stdout
