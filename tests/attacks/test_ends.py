"""Every way to end, against every way to stay:
nothing that a command started outlives it, its task, its worker or the daemon.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from attacking import Attack, living_in, shell
from camp import Camp, does, says
from patience import PATIENCE_S, until

pytestmark = [pytest.mark.in_turns, pytest.mark.usefixtures("by_turns")]

#: Leaves behind what can be left behind, and writes down in which namespace it lives.
CLINGING = shell("clinging.py")
#: What the command itself does then.
LAST_ACTS = {
    "it ends": "exit 0",
    "it fails": "exit 7",
    "it kills itself": "kill -KILL $$",
    "it runs out of time": "sleep 1000",
    "it runs out of time, its output closed": "exec <&- >&- 2>&-; sleep 1000",
    "it runs out of time, stopped": "kill -STOP $$; sleep 1000",
    "it floods": "yes & yes >&2 & cat /dev/zero",
    "it replaces itself": "exec setsid sleep 1000",
    "it kills its keeper": "kill -9 1 -1; sleep 1000",
}


@pytest.mark.sampled(3)
@pytest.mark.stopped_by("pids")
@pytest.mark.parametrize("act", LAST_ACTS)
def test_nothing_outlives_a_command(attack: Attack, act: str) -> None:
    """However it ends, and whatever clings: double forks, sessions,
    ignored signals, stopped, renamed, closed, zombies.
    """
    command = f"{CLINGING}; {LAST_ACTS[act]}"
    [(_, _, timed_out, seconds)] = attack.run(command, timeout_s=4.0)
    # setsid starts another process where it is one of a command's own session.
    assert timed_out == ("time" in act or "floods" in act or "keeper" in act)
    assert seconds < 100
    namespace = _namespace(attack.folder)
    # Another test's sandbox may have been given its number meanwhile, which ends in its turn.
    until(lambda: living_in(namespace) == [])


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("orphans")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP])
def test_nothing_outlives_a_batchd_that_dies_without_a_word(attack: Attack, number: int) -> None:
    """The process that runs commands dies in the middle of one,
    with no chance to do anything about it.
    """
    with attack.begin(f"{CLINGING}; sleep 1000") as process:
        until((attack.folder / "namespace").exists)
        namespace = _namespace(attack.folder)
        until(lambda: len(living_in(namespace)) > 10)
        process.send_signal(number)
        process.wait(PATIENCE_S)
    until(lambda: living_in(namespace) == [])


def _gone(pid: int) -> bool:
    """Whether a process has ended, buried or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("orphans")
@pytest.mark.parametrize("whom", ["the worker", "the daemon", "both"])
def test_nothing_outlives_a_worker_or_a_daemon(camp: Camp, whom: str) -> None:
    """SIGKILL of either while a model's command clings:
    all of it dies, and the task still comes to its result.
    """
    cling = does(f"test -e namespace || {{ {CLINGING}; sleep 1000; }}")
    place = camp.folder / "outbox/batch/001"
    with camp.answering({"stay": [cling, does("echo all is well"), says("Done.")]}):
        camp.batchd("submit", camp.write("batch.json", [{"first_prompt": "stay"}]))
        camp.eventually((place / "namespace").exists)
        namespace = _namespace(place)
        until(lambda: len(living_in(namespace)) > 10)
        status = json.loads(camp.batchd("status", "--json").stdout)
        killed = {"the worker": _workers(status), "the daemon": [status["daemon"]["pid"]]}
        assert killed["the worker"]
        for pid in killed["the worker"] if whom == "the daemon" else ():
            # Else it may learn of the daemon's end before the kernel kills it,
            # and end its commands itself.
            os.kill(pid, signal.SIGSTOP)
        for pid in killed.get(whom) or [*killed["the daemon"], *killed["the worker"]]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: living_in(namespace) == [])
        if whom != "the worker":
            until(lambda: _gone(status["daemon"]["pid"]))
            with camp.serving():
                camp.eventually((camp.folder / "outbox/batch/summary.json").exists)
        camp.eventually((camp.folder / "outbox/batch/summary.json").exists)
    assert camp.result("batch", "001")["status"] == "completed"


def _workers(status: dict[str, object]) -> list[int]:
    return [int(n) for n in re.findall(r'"worker": (\d+)', json.dumps(status))]


def _namespace(folder: Path) -> str:
    return (folder / "namespace").read_text()
