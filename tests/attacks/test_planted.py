"""What was put where somebody will look later: in a task's directory, in the outbox, in the inbox.

Nothing of it steers batchd.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from attacking import AS_ROOT, NOBODY_ID, shell
from camp import Camp, does, says
from patience import PATIENCE_S

from batchd.records import Answer, Usage

pytestmark = pytest.mark.in_turns

#: Files that programs obey when they merely work in a directory;
#: MARK is made wherever one of them takes effect.
PLANTED: Mapping[str, str] = {
    ".git/config": '[core]\n\tfsmonitor = "touch MARK; false"\n\thooksPath = hooks\n\tpager = touch MARK\n\tsshCommand = touch MARK\n[diff]\n\texternal = touch MARK\n[filter "x"]\n\tclean = touch MARK\n',
    ".git/HEAD": "ref: refs/heads/main\n",
    ".git/objects/info/alternates": "\n",
    ".git/refs/heads/.keep": "",
    ".gitattributes": "* filter=x\n",
    "hooks/post-checkout": "#!/bin/sh\ntouch MARK\n",
    "hooks/pre-commit": "#!/bin/sh\ntouch MARK\n",
    ".bashrc": "touch MARK\n",
    ".profile": "touch MARK\n",
    ".bash_profile": "touch MARK\n",
    ".env": "BASH_ENV=.bashrc\n",
    ".npmrc": "script-shell=/task/bin/sh\n",
    "config.toml": '[sandbox]\nbackend = "none"\n',
    "bin/sh": "#!/bin/bash\ntouch MARK\n",
    **dict.fromkeys(
        (
            *("json.py", "sitecustomize.py", "usercustomize.py", "jsonschema.py", "os.py", "re.py"),
            *("batchd.py", "batchd/__init__.py", "openai.py", "encodings/__init__.py", "conftest.py"),
        ),
        "import os; os.system('touch MARK')\n",
    ),
    "x.pth": "import os; os.system('touch MARK')\n",
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("everything")
@pytest.mark.parametrize("where", ["a repository", "a fresh directory"])
def test_nothing_planted_runs_outside(camp: Camp, where: str) -> None:
    """Git's configuration and hooks, Python's modules, a shell's start-up files:
    they work for commands, within the sandbox alone.
    """
    mark = camp.folder / "mark"
    mark.mkdir()
    mark.chmod(0o777)
    files = {name: text.replace("MARK", f"{mark}/$$") for name, text in PLANTED.items()}
    task: dict[str, object] = {"first_prompt": "work", "output_schema": {"type": "object"}}
    steps = []
    if where == "a repository":
        task["dir"] = "repo"
        place = camp.workplace(camp.folder / "repo")
        for name, text in files.items():
            _plant(place / name, text)
    else:
        steps = [does(name, "write_file", content=text) for name, text in files.items()]
        steps.append(does("chmod -R 777 ."))
    looking = 'git status; git diff; git add -A; git commit -m x; python3 -c "import json"; bash -lic true; sh -c true; bin/sh'
    steps += [does(looking), does("json.py", "read_file"), does("json.py", "edit_file", old="os", new="os")]  # fmt: skip
    task["check"] = f"{looking}; test -e json.py"
    config = f'[workspace]\nroot = "{camp.folder}"\n'
    with camp.answering({"work": [*steps, says("{}")]}, config):
        result = camp.play([task])["001"]
    assert (result["status"], [*mark.iterdir()]) == ("completed", []), result["evaluation"]
    assert where == "a repository" or {"json.py", ".bashrc"} <= {*result["files"]["created"]}


#: Modules that a Python loads as it starts, or that our processes begin with.
MODULES = ("multiprocessing", "resource", "json", "os", "socket", "batchd", "openai")


@pytest.mark.sampled(2)
@pytest.mark.stopped_by("own modules")
@pytest.mark.parametrize("command", [["run", "task.json"], ["demo"]], ids=["run", "demo"])
def test_no_module_of_the_working_directory_is_loaded(camp: Camp, command: list[str]) -> None:
    """Who looks at what a model made, and runs batchd there, runs batchd: its processes too."""
    mark, place = camp.own(camp.folder / "mark"), camp.workplace(camp.folder / "made")
    for name in MODULES:
        _plant(place / f"{name}.py", f"import os; os.mkdir('{mark}/{name}')\n")
    _plant(place / "task.json", '{"tasks": [{"first_prompt": "work"}]}')
    config = camp.folder / "config.toml"
    program = Path(sys.executable).with_name("batchd")
    done = subprocess.run(
        [*camp.prefix, program, "--config", config, *command],
        cwd=place,
        env=camp.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert not [*mark.iterdir()]
    assert done.returncode == 0, done.stderr


def _plant(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for made in (path, path.parent):
        made.chmod(0o777)
        if AS_ROOT:
            os.chown(made, NOBODY_ID, NOBODY_ID)


#: What a command leaves behind where a file is expected, and what reads it.
ODD: Mapping[str, str] = {
    "a FIFO": "mkfifo x",
    "a device": "ln -s /dev/zero x",
    "a random one": "ln -s /dev/urandom x",
    "a link out": "ln -s /etc/shadow x",
    "a link to memory": "ln -s /proc/self/mem x",
    "a link to itself": "ln -s x x",
    "a directory": "mkdir x",
    "a socket": "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"x\")'",
    "a huge one": "truncate -s 900G x 2>/dev/null || truncate -s 900M x",
    "one that is locked": "echo y > x; chmod 0 x",
}


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("time")
def test_no_odd_file_holds_a_tool_up(camp: Camp) -> None:
    """Reading, writing and editing FIFOs, devices,
    links and sockets ends in time, and reads nothing of the host.
    """
    tools = [does("x", "read_file"), does("x", "edit_file", old="root", new="r"), does("x", "write_file", content="root")]  # fmt: skip
    talks = {name: [does(command), *tools, says("Done.")] for name, command in ODD.items()}
    tasks = [{"first_prompt": name, "limits": {"tool_timeout_s": 1, "max_iterations": 1}} for name in ODD]  # fmt: skip
    with camp.answering(talks):
        results = camp.play(tasks)
    assert {(r["first_prompt"], r["status"]) for r in results.values()} == {(name, "completed") for name in ODD}  # fmt: skip
    assert max(r["timing"]["run_s"] for r in results.values()) < 200
    said = "".join(path.read_text("utf-8") for path in camp.folder.glob("outbox/batch/*.jsonl"))
    assert "root:" not in said


def _fifo(path: Path, _victim: Path) -> None:
    os.mkfifo(path)
    path.chmod(0o777)


def _device(path: Path, _victim: Path) -> None:
    if AS_ROOT:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))  # /dev/full
    else:
        path.symlink_to("/dev/full")


#: What somebody who may write the outbox puts in the place of what is still to come.
IN_THE_WAY: Mapping[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, victim: path.symlink_to(victim),
    "a link to nothing": lambda path, victim: path.symlink_to(victim.with_name("made")),
    "a hard link": lambda path, victim: path.hardlink_to(victim),
    "a FIFO": _fifo,
    "a device": _device,
    "a forged file": lambda path, _: path.write_text('{"status": "completed"}'),
}


@pytest.mark.sampled(3)
@pytest.mark.stopped_by("whole files")
@pytest.mark.parametrize("what", IN_THE_WAY)
def test_nothing_planted_in_the_outbox_is_written_through(camp: Camp, what: str) -> None:
    """Results, transcripts, summary: whatever has their names is replaced by the file;
    nothing is followed, waited for, believed.
    """
    victim = camp.own(camp.folder / "victim", "untouched")
    folder = camp.folder / "outbox/batch"
    with camp.answering({"x": [says("Done.")]}):
        camp.batchd("pause", "--all")
        camp.batchd("submit", camp.write("batch.json", [{"first_prompt": "x"}]))
        camp.eventually((folder / "request.json").exists)
        planted = {}
        for name in ("001.json", "001.jsonl", "results.jsonl"):
            IN_THE_WAY[what](folder / name, victim)
            planted[name] = (folder / name).lstat().st_ino
        camp.batchd("resume")
        camp.eventually(
            lambda: (folder / "summary.json").is_file() and (folder / "summary.json").stat().st_size
        )
    assert victim.read_text() == "untouched"
    assert not victim.with_name("made").exists()
    for name in ("001.json", "001.jsonl", "results.jsonl", "summary.json"):
        status = (folder / name).lstat()
        assert (stat.S_ISREG(status.st_mode), status.st_nlink) == (True, 1), name
        assert status.st_ino != planted.get(name), (
            "who owns it, or has it open, could change the result"
        )
        assert "batch" in (folder / name).read_text("utf-8") or name == "001.jsonl"
    assert camp.result("batch", "001")["answer"] == "Done."


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("inbox")
def test_only_plain_files_are_taken_from_the_inbox(camp: Camp) -> None:
    """Links to files of batchd's own, FIFOs, devices and folders are left alone:
    none is read, moved, or held up by.
    """
    key = camp.own(camp.folder / "operator.key", '{"first_prompt": "the key of the operator"}')
    inbox = camp.folder / "inbox"
    with camp.answering({}):
        (inbox / "link.json").symlink_to(key)
        (inbox / "up.json").symlink_to("../operator.key")
        os.mkfifo(inbox / "fifo.json")
        (inbox / "folder.json").mkdir()
        _device(inbox / "device.json", key)
        result = camp.play([{"first_prompt": "plain"}], "plain")["001"]
        time.sleep(0.5)
        assert result["status"] == "completed"
        assert sorted(path.name for path in camp.folder.glob("outbox/*/")) == ["plain"]
    assert key.read_text().startswith("{")
    assert {"link.json", "fifo.json", "folder.json", "device.json"} <= {
        path.name for path in inbox.iterdir()
    }
    named = {line.get("message", "").split()[0] for line in camp.lines() if line["event"] == "inbox_trouble"}  # fmt: skip
    assert {"link.json", "up.json", "fifo.json"} <= named


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("claims")
def test_no_link_leads_a_claimed_file_elsewhere(camp: Camp) -> None:
    """Who may write into the inbox puts links where claims might go,
    before and while the daemon runs: no file lands there.
    """
    elsewhere = camp.own(camp.folder / "elsewhere")
    inbox = camp.folder / "inbox"
    inbox.chmod(0o2770)  # of the daemon's group, as many set it up
    begins, ends = threading.Event(), threading.Event()
    landed = set[str]()

    def swap() -> None:
        """As one of the group: whatever stands there is moved away, and a link takes its place."""
        while not ends.is_set():
            place = inbox / ".claimed"
            with contextlib.suppress(OSError):
                if not place.is_symlink():
                    place.rename(camp.folder / f"away-{time.monotonic_ns()}")
            with contextlib.suppress(OSError):
                place.symlink_to(elsewhere)
            landed.update(os.listdir(elsewhere))
            begins.set()

    with camp.answering({f"{n}": [says("Done.")] for n in range(8)}):
        attacker = threading.Thread(target=swap)
        attacker.start()
        try:
            begins.wait()
            for n in range(8):
                results = camp.play([{"first_prompt": f"{n}"}], f"batch{n}")
                assert results["001"]["status"] == "completed"
        finally:
            ends.set()
            attacker.join()
    assert not landed


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("removal")
def test_a_tree_made_to_break_clean_up_is_cleaned_up(camp: Camp) -> None:
    """``prune --outbox`` removes what a model has left, however deep,
    locked or named, and follows no link out of it.
    """
    victim = camp.own(camp.folder / "victim")
    kept = camp.own(victim / "kept", "untouched")
    grow = f"{shell('growing.py', victim)} && ls many | wc -l"
    talks = {"grow": [does(grow), says("Done.")]}
    with camp.answering(talks):
        result = camp.play([{"first_prompt": "grow"}])["001"]
        assert result["status"] == "completed"
        assert (camp.folder / "outbox/batch/001/many/1999").is_symlink()
        done = camp.batchd("prune", "--yes", "--outbox")
        assert done.returncode == 0, done.stderr
    assert not (camp.folder / "outbox/batch").exists()
    assert kept.read_text() == "untouched"
    assert {path.name for path in (camp.folder / "outbox").iterdir()} == {".batchd", "status.json"}


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("loop", "purse")
def test_a_model_that_goes_in_circles_does_not_spend_the_purse(camp: Camp) -> None:
    """The same call with the same output ends its round, a second loop the task;
    limits hold over the whole of it.
    """
    talks = {"spin": [does("echo again")] * 200, "spend": [does(f"echo {n}") for n in range(200)]}
    tasks = [
        {"first_prompt": "spin", "check": "false"},
        {"first_prompt": "spend", "limits": {"max_cost_usd": 0.06}},
    ]
    with camp.answering(talks):
        results = camp.play(tasks)
    assert (results["001"]["status"], results["001"]["reason"]) == ("error", "loop")
    assert results["001"]["usage"]["calls"] <= 6
    assert (results["002"]["status"], results["002"]["reason"]) == ("timeout", "budget")
    assert results["002"]["cost"]["total"] <= 0.06


@pytest.mark.sampled(1)
@pytest.mark.stopped_by("belief")
def test_a_usage_that_no_call_can_have_is_not_believed(camp: Camp) -> None:
    """It is booked as what was set aside for the call, reported,
    and neither stops others nor is learnt from.
    """
    lie = Answer(content="Done.", usage=Usage(output_tokens=10**14))
    talks = {"lie": [lie], "honest": [says("Done.")]}
    with camp.answering(talks, "[budget]\nper_day_usd = 1.0\n", count=True):
        lied = camp.play([{"first_prompt": "lie"}], "first")["001"]
        honest = {"first_prompt": "honest", "limits": {"max_cost_usd": 0.05}}
        after = camp.play([honest], "second")["001"]
    assert after["status"] == "completed", after["error"]
    assert (lied["status"], lied["usage"]["estimated"]) == ("completed", True)
    assert lied["usage"]["output_tokens"] == 8192, "what was set aside"
    assert lied["cost"]["total"] < 0.02
    [line] = [line for line in camp.lines() if line["event"] == "usage_not_believed"]
    assert (line["level"], line["gen_ai.usage.output_tokens"]) == ("warning", 10**14)


@pytest.mark.stopped_by("proof")
@pytest.mark.sampled(1)
def test_an_answer_that_says_ten_times_the_truth_stops_no_other_task(camp: Camp) -> None:
    """A call can have come to that, so it is booked; but it alone ends no task with a limit of
    money, and log and status name it, with the fix.
    """
    lie = Answer(content="Done.", usage=Usage(output_tokens=80_000))
    talks = {"lie": [lie], "honest": [says("Done.")]}
    with camp.answering(talks, count=True):
        lied = camp.play([{"first_prompt": "lie"}], "first")["001"]
        honest = {"first_prompt": "honest", "limits": {"max_cost_usd": lied["cost"]["total"] / 2}}
        after = camp.play([honest], "second")["001"]
        [trouble] = json.loads(camp.batchd("status", "--json").stdout)["daemon"]["troubles"]
    assert lied["usage"]["output_tokens"] == 80_000
    assert after["status"] == "completed", after["error"]
    [line] = [line for line in camp.lines() if line["event"] == "answer_overlong"]
    assert trouble["what"] == "answer_overlong"
    for part in ("standin/demo", "9.8 times", "output_limit_field in [providers.standin]"):
        assert part in line["message"]
        assert part in trouble["message"] + trouble["mend"]
