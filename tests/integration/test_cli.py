"""The commands, as processes, against the stand-in model."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import warm
from loglines import logged
from patience import PATIENCE_S
from teletype import Teletype
from terminal import on_a_terminal

from batchd.cli import shipped

pytestmark = pytest.mark.in_turns

# An escape sequence that would clear a terminal, and a mark that turns text around.
HOSTILE = "make \x1b[2J \u202etxt"


def test_wrong_use_ends_with_2_and_one_clear_message(spool: Any, tmp_path: Path) -> None:
    """No command, an unknown one, a missing file, a file without a name: exit 2, no traceback."""
    for arguments in (
        (),
        ("frobnicate",),
        ("submit", "absent.json"),
        ("submit",),
        ("submit", "a.json", "--each", "x"),
        ("run",),
        ("cost", "--tokens", "many"),
        ("status", "a/b/c"),
    ):
        done = spool.batchd(*arguments)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr
        assert done.stderr.strip()
    (tmp_path / "config.toml").write_text("[pool]\nproceses = 2\n[agent]\nmodel = 5\n")
    done = spool.batchd("serve")
    assert done.returncode == 2
    assert "[pool] proceses" in done.stderr
    assert "processes" in done.stderr
    assert "[agent] model" in done.stderr


def test_a_misspelt_option_is_named_with_the_one_that_is_meant(spool: Any) -> None:
    """It says which command does not have it, and how to see what it has;
    an empty prompt is named, too.
    """
    for arguments, said in (
        (("status", "--jsn"), "status has no argument '--jsn': do you mean --json?"),
        (("submit", "a", "b"), "unexpected argument 'b'"),
        (("run", "--procesess=3"), "do you mean --processes?"),
        (("submit", "--prompt", " "), "--prompt is empty"),
    ):
        done = spool.batchd(*arguments)
        assert done.returncode == 2, arguments
        assert said in done.stderr


def test_a_limit_in_dollars_without_a_price_is_named_before_it_fails_each_task(spool: Any) -> None:
    """`submit` says so of a file, and `check` fails where it holds for all tasks;
    without such a limit it is a note.
    """
    config, path = spool.folder / "config.toml", spool.folder / "capped.json"
    prices = ("input_usd_per_mtok = 1.0\n", "output_usd_per_mtok = 2.0\n")
    config.write_text(config.read_text().replace(prices[0], "").replace(prices[1], ""))
    path.write_text(json.dumps({"budget_usd": 1, "tasks": [{"first_prompt": "x"}]}))
    assert "its tasks will end as error" in spool.batchd("submit", path).stderr
    capped = {"first_prompt": "x", "limits": {"max_cost_usd": 1}}
    mixed = spool.write("mixed.json", [{"first_prompt": "x"}, capped])
    assert (
        "no price is known for standin/" not in spool.batchd("submit", mixed, "--first", "1").stderr
    )
    plain = spool.batchd("submit", spool.write("plain.json", [{"first_prompt": "x"}]))
    assert "will end as error" not in plain.stderr
    found = [
        line
        for line in json.loads(spool.batchd("check", "--offline", "--json").stdout)
        if line["what"] == "agent price"
    ]
    assert [line["verdict"] for line in found] == ["note"]
    config.write_text(f"{config.read_text()}\n[budget]\nper_day_usd = 5\n")
    done = spool.batchd("check", "--offline")
    assert done.returncode == 3
    assert re.search(r"failed agent price: .* a limit in dollars is set", done.stdout)
    # A judge needs one, too.
    text = config.read_text().replace('by = "none"', 'judge_model = "standin/judge"')
    config.write_text(text)
    judged = spool.write("judged.json", [{"first_prompt": "x"}])
    assert "no price is known for standin/judge" in spool.batchd("submit", judged).stderr


def test_agents_who_wait_for_one_another_are_told_of_the_key_that_has_them_wait(spool: Any) -> None:
    """`check` before, `status` while calls wait: who asks for 200 at a time shall not get 32."""
    config = spool.folder / "config.toml"
    text = config.read_text().replace("drain_s = 2\n", "drain_s = 2\nagents_per_process = 4\n")
    config.write_text(
        text.replace("[providers.standin]\n", "[providers.standin]\nmax_concurrent = 1\n")
    )
    lines = json.loads(spool.batchd("check", "--offline", "--json").stdout)
    (found,) = [line for line in lines if line["what"] == "agents"]
    assert (found["verdict"], "max_concurrent = 8" in found["mend"]) == ("note", True)
    said = "2 calls wait for a turn at standin: max_concurrent = 1 in [providers.standin] is below the 8 agents"
    with spool.serving():
        hanging = {"first_prompt": "y", "model": "standin/hang"}
        assert spool.batchd("submit", spool.write("x.json", [hanging] * 3)).returncode == 0
        spool.eventually(lambda: said in " ".join(spool.batchd("status").stdout.split()))


def test_version_and_global_option_on_either_side(spool: Any) -> None:
    """`--version` prints it; `--config` may stand before or after the command."""
    assert spool.batchd("--version").stdout.startswith("batchd ")
    config = spool.folder / "config.toml"
    gone = spool.batchd("-C", spool.folder / "gone", "status")
    assert (gone.returncode, "gone: No such file or directory" in gone.stderr) == (2, True)
    command = [sys.executable, "-m", "batchd", "status", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No daemon runs here" in done.stdout


def test_submit_refuses_a_broken_file_with_all_errors(spool: Any) -> None:
    """Nothing is dropped; every error stands there with its place."""
    path = spool.write(
        "bad.json", [{"first_promt": "x"}, {"first_prompt": "y", "priority": "high"}]
    )
    done = spool.batchd("submit", path)
    assert done.returncode == 2
    assert "tasks[0]" in done.stderr
    assert "first_prompt" in done.stderr
    assert "tasks[1].priority" in done.stderr
    assert not list(spool.folder.glob("inbox/*"))


def test_submit_names_a_model_that_looks_misspelt(spool: Any) -> None:
    """It is used as it stands, for a provider may know more than price lists;
    of one that is priced, or like no other, nothing is said.
    """
    for model, said in {
        "openai/gpt-6-lnua": "do you mean openai/gpt-6-luna",
        "openai/gpt-6-luna": "",
        "openai/zzzzzzzzzzzzzzz": "",
    }.items():
        done = spool.batchd(
            "submit", spool.write("m.json", [{"first_prompt": "x", "model": model}])
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
        assert ("do you mean" in done.stderr) == bool(said)
        assert "1 task" in done.stdout


def test_retry_asks_before_what_completed_is_paid_again(spool: Any) -> None:
    """Not with --failed or --yes; a no changes nothing, and a script must say yes.

    `status` of the new batch names the old one.
    """
    with spool.serving():
        spool.batchd("submit", "--wait", spool.write("work.json", [{"first_prompt": "x"}]))
    question = "1 task completed before"
    code, seen = on_a_terminal(spool, "retry", "work", answers=((question, "\n"),))
    assert (code, "nothing runs again" in seen) == (2, True)
    assert spool.batchd("status", "work-2").returncode == 2
    code, seen = on_a_terminal(spool, "retry", "work/001", answers=((question, "y\n"),))
    assert (code, "work-2: 1 task of work queued again" in seen) == (0, True)
    assert "A retry of work." in spool.batchd("status", "work-2").stdout
    code, seen = on_a_terminal(spool, "retry", "work", "--yes")
    assert (code, question in seen) == (0, False)
    refused = spool.batchd("retry", "work")
    assert (refused.returncode, question in refused.stderr) == (2, True)
    assert "--yes runs it, --failed only what did not complete" in refused.stderr
    done = spool.batchd("retry", "work", "--yes")
    assert done.returncode == 0
    # The order's log line is none of the answer.
    assert done.stderr == "No daemon runs; they wait until `batchd serve` starts.\n"


def test_a_daemon_that_cannot_start_leaves_nothing_beside_the_one_that_runs(spool: Any) -> None:
    """Its fork server was begun while it loaded: that goes,
    and the sockets of the one at work stay, which goes on.
    """
    path = spool.write("work.json", [{"first_prompt": "x"}])
    pool = spool.folder / ".batchd/pool"
    with spool.serving():
        assert spool.batchd("submit", "--wait", path).returncode == 0
        before = sorted(entry.name for entry in pool.iterdir())
        assert len([name for name in before if name.startswith("listener-")]) == 1
        refused = spool.batchd("serve")
        assert refused.returncode == 3
        assert "is in use by the process" in refused.stderr
        assert "see `batchd status`" in refused.stderr
        assert sorted(entry.name for entry in pool.iterdir()) == before
        assert spool.batchd("submit", "--wait", path).returncode == 0
    # The next one finds the folder there, and has its fork server load ahead of it.
    with spool.serving():
        assert spool.batchd("submit", "--wait", path).returncode == 0


def test_a_terminal_shows_how_to_go_on_by_words(spool: Any) -> None:
    """`serve` says where files go and how to stop, each line of its log fits;
    `status` says what was paused, and breaks no word.
    """
    with Teletype(spool.command("serve")) as daemon:
        shown = daemon.shows("daemon started", "Drop task files into", "Ctrl-C stops")
        assert "{" not in shown
        spool.batchd("submit", spool.write("work.json", [{"first_prompt": "x"}]))
        daemon.shows("work/001 task finished: completed")
        long = "the bill of last month is to be looked at before anything else goes on here"
        assert spool.batchd("pause", "--all", "-m", long).returncode == 0
        with Teletype(spool.command("status")) as status:
            status.ends()
            words = " ".join(status.text.split())
            assert f"everything. {long} To go on: batchd resume --all" in words
            assert "Paused since" in words
        daemon.signal(signal.SIGTERM)
        daemon.ends()


def test_submit_without_a_daemon(spool: Any) -> None:
    """A file may wait for a daemon; a person who wants to wait learns that there is none."""
    path = spool.write("later.json", [{"first_prompt": "x"}])
    done = spool.batchd("submit", path, "--wait")
    assert done.returncode == 3
    assert "no daemon runs" in done.stderr
    assert not list(spool.folder.glob("inbox/*"))
    done = spool.batchd("submit", path, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["daemon"] is False
    assert (spool.folder / "inbox/later.json").read_bytes() == path.read_bytes()


def test_submit_follows_a_file_by_any_name(spool: Any) -> None:
    """What becomes of the name in the inbox is what it looks for;
    an ending stays, where the rest is nothing but dots.
    """
    path = spool.write("ok.json", [{"first_prompt": "x"}])
    (spool.folder / "..json").write_bytes(path.read_bytes())
    (spool.folder / "inbox").mkdir(exist_ok=True)
    with spool.serving():
        for name in ("a/b", "k1/../2", "../../etc/x"):
            done = spool.batchd("submit", "--wait", "--name", name, path)
            assert (done.returncode, done.stderr) == (0, ""), name
            assert ": 1 of 1 task completed" in done.stdout
        for batch in ("task", "task-2"):
            done = spool.batchd("submit", "--wait", spool.folder / "..json")
            assert f"{batch}: 1 of 1 task completed" in done.stdout, done.stderr


def test_submit_to_a_daemon_that_is_ending_says_so(spool: Any) -> None:
    """What is dropped while it drains waits for the next one."""
    config = spool.folder / "config.toml"
    config.write_text(config.read_text().replace("drain_s = 2", "drain_s = 300"))
    path = spool.write("slow.json", [{"first_prompt": "x", "check": "touch began; sleep 300"}])
    later = spool.write("later.json", [{"first_prompt": "x"}])
    with spool.serving() as daemon:
        spool.batchd("submit", path)
        spool.eventually((spool.folder / "outbox/slow/001/began").exists)
        daemon.send_signal(signal.SIGTERM)
        spool.eventually(lambda: "draining" in spool.batchd("status").stdout)
        done = spool.batchd("submit", later)
        assert done.returncode == 0
        assert "The file is not taken up yet; what is in the daemon's way" in done.stderr
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
    assert (spool.folder / "inbox/later.json").exists()


def test_submit_each_makes_a_task_of_every_directory(spool: Any) -> None:
    """One prompt, many directories: their names are the tasks' ids; plain files do not count."""
    for name in ("alpha", "beta"):
        (spool.folder / "repos" / name).mkdir(parents=True)
    (spool.folder / "repos/notes.txt").touch()
    if os.geteuid() == 0:
        refused = spool.batchd("submit", "--prompt", "upgrade it", "--each", "repos/*")
        assert refused.returncode == 2
        alpha = shlex.quote(str(spool.folder / "repos/alpha"))
        assert f"commands never run as root: chown -R nobody {alpha}" in refused.stderr
        for name in ("alpha", "beta"):
            os.chown(spool.folder / "repos" / name, 65534, 65534)
    done = spool.batchd("submit", "--prompt", "upgrade it", "--each", "repos/*", "--name", "up")
    assert (done.returncode, "2 tasks" in done.stdout) == (0, True)
    dropped = json.loads((spool.folder / "inbox/up.json").read_bytes())
    assert [t["id"] for t in dropped["tasks"]] == ["alpha", "beta"]
    assert spool.batchd("submit", "--prompt", "x", "--each", "none/*").returncode == 2


def test_run_works_without_a_daemon(spool: Any) -> None:
    """Lines show what happens, the summary has the seed's figures,
    results lie in the outbox, and `status` knows it.
    """
    path = spool.write("two.json", [{"first_prompt": HOSTILE}, {"first_prompt": "y"}])
    done = spool.batchd("run", path)
    assert done.returncode == 0, done.stderr
    for words in (
        "two: 2 tasks",
        "001 starts: make \\x1b[2J \\u202etxt",
        "✓ 002 completed:",
        "two: 2 of 2 tasks completed in",
        "2 completed, 0 failed, 0 over a limit, 0 cancelled",
        "100.0 %",
        " in (",
        "tokens on average",
    ):
        assert words in done.stdout
    for unasked in ("The same tokens elsewhere:", "Again:"):
        assert unasked not in done.stdout
    assert not set("\x1b\u202e") & set(done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(spool.folder))
    assert spool.result("two", "summary")["counts"]["completed"] == 2
    assert "two    completed   2/2" in spool.batchd("status").stdout, "it stands in the books"


def test_run_serial_and_a_trial(spool: Any) -> None:
    """`--first 1` works on one task alone, `--serial` on one at a time;
    `--json` prints the summaries.
    """
    path = spool.write("many.json", [{"first_prompt": str(i)} for i in range(3)])
    done = spool.batchd("run", path, "--serial", "--first", "1", "--json")
    assert done.returncode == 0, done.stderr
    (summary,) = json.loads(done.stdout)
    assert [t["task"] for t in summary["tasks"]] == ["001"]


def test_run_ends_with_1_when_a_task_fails(spool: Any) -> None:
    """A failed task shows its reason, does not touch the other, and makes the exit code 1."""
    checked = {"check": "printf 'one\\ntwo\\n'; false", "limits": {"max_iterations": 1}}
    path = spool.write(
        "mixed.json",
        [
            {"first_prompt": "x"},
            {"first_prompt": "y", "model": "standin/403"},
            {"first_prompt": "z", **checked},
        ],
    )
    done = spool.batchd("run", path)
    assert done.returncode == 1, done.stderr
    assert "1 of 3 tasks completed" in done.stdout
    # What a check printed has lines.
    assert "\n  two\n" in done.stdout
    assert "✗" in done.stdout
    # What failed stands first; what to do about it last, in `status` too, which may show it alone.
    steps = "Look:    batchd logs mixed/002\nAgain:   batchd retry --failed mixed\n"
    assert done.stdout.endswith(steps)
    _, _, rows = done.stdout.partition(" TASK ")
    assert rows.index("002") < rows.index("003") < rows.index("001")
    shown = spool.batchd("status", "--failed", "mixed").stdout
    assert shown.endswith(steps)
    assert [line[:3] for line in shown.splitlines() if line[:2] == "00"] == ["002", "003"]
    near = spool.batchd("status", "mixde").stderr
    assert "there is no batch mixde: do you mean mixed? `batchd status` lists them" in near
    near = spool.batchd("logs", "mixed/02").stderr
    assert "there is no task mixed/02: do you mean mixed/002? " in near
    assert spool.batchd("status", "--failed").returncode == 2
    assert spool.result("mixed", "001")["status"] == "completed"
    assert spool.result("mixed", "002")["status"] == "error"


def test_run_on_a_terminal(spool: Any) -> None:
    """`run` draws progress there; called bare it says what to write, and starts nothing."""
    spool.write("task.json", [{"first_prompt": str(i)} for i in range(4)])
    code, seen = on_a_terminal(spool, "run")
    assert (code, "name a task file, or say what is to be done: --prompt TEXT" in seen) == (2, True)
    assert not (spool.folder / "outbox/task").exists()
    code, seen = on_a_terminal(spool, "run", "--first", "3", "task.json")
    assert code == 0, seen
    assert "3 of 3 tasks completed" in seen
    assert "\x1b[" in seen


def test_a_batch_through_a_daemon(spool: Any) -> None:
    """Submitted, watched, looked at in every way, by people and by programs."""
    path = spool.write("work.json", [{"first_prompt": HOSTILE}, {"id": "b", "first_prompt": "y"}])
    with spool.serving():
        done = spool.batchd("submit", "--wait", path)
        assert done.returncode == 0, done.stderr
        assert "2 of 2 tasks completed" in done.stdout
        # The same name again: it waits for its own batch, not for the old one.
        again = json.loads(spool.batchd("submit", "--wait", "--json", path).stdout)
        assert [s["batch"] for s in again] == ["work-2"]

        table = spool.batchd("status").stdout
        assert re.search(r"work-2 +completed +2/2", table)
        assert "Daemon" in table
        one = json.loads(spool.batchd("status", "work", "--json").stdout)
        assert [(t["task"], t["status"]) for t in one["tasks"]] == [
            ("001", "completed"),
            ("b", "completed"),
        ]
        schemas = {kind: json.loads(shipped.text(kind)) for kind in ("status-json", "event")}
        for target in ((), ("work",), ("work/b",)):
            said = json.loads(spool.batchd("status", "--json", *target).stdout)
            jsonschema.validate(said, schemas["status-json"])
        assert "steps-2" in spool.batchd("status", "work/b").stdout

    # All of it stands in the store, daemon or not.
    logs = spool.batchd("logs", "work").stdout
    for action in ("task_started", "model_called", "tool_ran", "round_evaluated", "task_finished"):
        assert action in logs
    events = [
        json.loads(line) for line in spool.batchd("logs", "work/b", "--json").stdout.splitlines()
    ]
    for event in events:
        jsonschema.validate(event, schemas["event"])
    assert (events[0]["event"], events[-1]["event"]) == ("TaskStarted", "TaskFinished")
    assert {e["task"] for e in events} == {"b"}

    spent = json.loads(spool.batchd("cost", "--json").stdout)
    usage = spool.result("work", "summary")["usage"]
    assert {r["batch"]: r["input_tokens"] for r in spent}["work"] == usage["input_tokens"]
    assert "standin/steps-2" in spool.batchd("cost", "--by", "model").stdout
    compared = json.loads(
        spool.batchd("cost", "work", "--compare", "openai/gpt-4", "x/y", "--json").stdout
    )
    assert [(c["model"], c["total"] is None) for c in compared] == [
        ("openai/gpt-4", False),
        ("x/y", True),
    ]
    assert spool.batchd("status", "nothing").returncode != 0


def test_cancel_ends_a_task_with_a_result(spool: Any) -> None:
    """A task whose model hangs is cancelled;
    the command that waits for it gets exit code 1 and the reason.
    """
    path = spool.write("stuck.json", [{"first_prompt": "x", "model": "standin/hang"}])
    wait = spool.command("submit", "--wait", path)
    with spool.serving(), warm.Popen(wait, stdout=subprocess.PIPE) as waiter:
        spool.eventually(lambda: "model asked" in spool.batchd("status", "stuck/001").stdout)
        done = spool.batchd("cancel", "stuck", "-m", "changed my mind")
        assert (done.returncode, "1 task cancelled" in done.stdout) == (0, True)
        output, _ = waiter.communicate(timeout=PATIENCE_S)
    assert waiter.returncode == 1
    assert "changed my mind" in output.decode()
    assert spool.result("stuck", "001")["status"] == "cancelled"
    again = spool.batchd("cancel", "stuck")  # that it has ended is known without a daemon
    assert (again.returncode, again.stdout) == (0, "stuck has ended already: 1 cancelled\n")


def test_run_interrupted_ends_every_task(spool: Any) -> None:
    """Ctrl-C ends what has not ended as cancelled:
    a result for each, a summary, and no state left behind.
    """
    path = spool.write(
        "half.json", [{"first_prompt": "x"}, {"first_prompt": "y", "model": "standin/hang"}]
    )
    with warm.Popen(
        spool.command("run", path),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=spool.environment,
    ) as process:
        spool.eventually((spool.folder / "outbox/half/001.json").exists)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (1, b"Stopping: what is left is cancelled.\n")
    assert spool.result("half", "summary")["counts"]["completed"] == 1
    assert spool.result("half", "002")["status"] == "cancelled"


def test_run_refuses_at_once_what_every_task_would_end_with(spool: Any) -> None:
    """Without a key, or with an outbox that cannot be written:
    exit 3, one line, and nothing is left.
    """
    path = spool.write("one.json", [{"first_prompt": "x"}])
    (spool.folder / "file").write_text("")
    for variable, value in (
        ("BATCHD_PROVIDERS__STANDIN__API_KEY_ENV", "NO_SUCH_KEY"),
        ("BATCHD_PATHS__OUTBOX", str(spool.folder / "file")),
    ):
        environ = {**spool.environment, variable: value}
        refused = warm.run(spool.command("run", path), env=environ)
        assert refused.returncode == 3, refused.stderr
        assert refused.stderr.count("\n") == 1
    assert spool.batchd("run", path, "--processes", "0").returncode == 2


@pytest.mark.long
def test_no_moment_of_a_run_is_too_early_for_ctrl_c(spool: Any) -> None:
    """While everything loads, the whole process group gets the signal:
    no traceback, nothing left behind.
    """
    path = spool.write("early.json", [{"first_prompt": "x", "model": "standin/hang"}])
    for delay in random.sample((0.3, 0.6, 0.9, 1.2), 2):
        with subprocess.Popen(
            spool.command("run", path, "--json"),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=spool.environment,
            start_new_session=True,
        ) as process:
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
        assert b"Traceback" not in errors
        # Where Python itself has not begun, the signal alone ends it.
        assert process.returncode in {1, 130, -signal.SIGINT}


def test_schemas_hold_real_files(spool: Any) -> None:
    """What `schema` prints fits what was written and what came out."""
    path = spool.write("real.json", [{"first_prompt": "x"}])
    assert spool.batchd("run", path, "--json").returncode == 0
    schemas = {
        k: json.loads(spool.batchd("schema", k).stdout) for k in ("task", "result", "summary")
    }
    for kind, instance in (
        ("task", json.loads(path.read_bytes())),
        ("result", spool.result("real", "001")),
        ("summary", spool.result("real", "summary")),
    ):
        jsonschema.Draft202012Validator.check_schema(schemas[kind])
        jsonschema.validate(instance, schemas[kind])


def test_check_says_what_would_fail(spool: Any) -> None:
    """All well: 0. A key that is missing, a server that is gone: 3, each with its fix."""
    done = spool.batchd("check")
    assert done.returncode == 0, done.stdout
    assert "provider standin" in done.stdout
    config = spool.folder / "config.toml"
    config.write_text(
        '[agent]\nmodel = "openai/gpt-5-mini"\n[evaluation]\njudge_model = "gone/x"\n'
        '[providers.gone]\nbase_url = "http://127.0.0.1:9/v1"\n'
    )
    lines = json.loads(spool.batchd("check", "--json").stdout)
    failed = {line["what"]: line for line in lines if line["verdict"] == "failed"}
    assert set(failed) == {"provider openai", "provider gone"}
    assert "OPENAI_API_KEY" in failed["provider openai"]["detail"]
    assert failed["provider gone"]["mend"]
    assert spool.batchd("check", "--offline").returncode == 3


def test_interrupts_and_closed_pipes_are_quiet(spool: Any) -> None:
    """Ctrl-C ends a command with 130, a reader that has seen enough ends it too:
    nothing on stderr.
    """
    path = spool.write("stuck.json", [{"first_prompt": "x", "model": "standin/hang"}])
    with spool.serving():
        assert spool.batchd("submit", path).returncode == 0
        spool.eventually(lambda: spool.batchd("status", "stuck").returncode == 0)
        with warm.Popen(
            spool.command("logs", "-f", "stuck"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as follower:
            assert follower.stdout is not None
            assert b"task_started" in follower.stdout.readline()
            follower.send_signal(signal.SIGINT)
            _, errors = follower.communicate(timeout=PATIENCE_S)
            assert (follower.returncode, errors) == (130, b"")
        spool.batchd("cancel", "stuck")
    piped = ["bash", "-c", '"$@" | head -1', "bash", *spool.command("schema", "task")]
    done = subprocess.run(piped, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("redirected", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(spool: Any, redirected: str) -> None:
    """Started without standard streams, as some supervisors do,
    daemon and commands work; files go where they should.
    """
    path = spool.write("a.json", [{"first_prompt": "x"}])

    def closed(*arguments: str) -> list[str]:
        return ["bash", "-c", f'exec "$@" {redirected}', "bash", *spool.command(*arguments)]

    with subprocess.Popen(closed("serve"), stdout=subprocess.DEVNULL) as daemon:
        try:
            spool.eventually((spool.folder / ".batchd/control.sock").exists)
            if os.geteuid() == 0:  # it is closed to its own user
                streams = [Path(f"/proc/{daemon.pid}/fd/{n}").readlink() for n in range(3)]
                assert not any(spool.folder in stream.parents for stream in streams)
            done = subprocess.run(
                closed("submit", path, "--wait"), capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
        finally:
            daemon.terminate()
    assert daemon.returncode == 0
    assert spool.result("a", "001")["status"] == "completed"
    for arguments in (("status",), ("logs", "a"), ("schema", "task"), ("cost",)):
        done = subprocess.run(closed(*arguments), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), arguments


def test_what_a_terminal_cannot_write_is_escaped(spool: Any) -> None:
    """Under an encoding that lacks letters, commands say what they have to say;
    JSON means the same.
    """
    path = spool.write("a.json", [{"first_prompt": "zoë ☃"}])
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}

    def run(*arguments: str) -> Any:
        command = spool.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)

    with spool.serving():
        for done in (run("submit", path, "--wait"), run("logs", "a")):
            # A busy machine may take a second before it takes a file up.
            said = [each for each in done.stderr.splitlines() if "not taken up yet" not in each]
            assert (done.returncode, said) == (0, [])
    program = "from batchd.cli import surroundings; from batchd.cli.display import formatting; surroundings.repair(); formatting.print_json('zoë ☃ 😀')"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ
    )
    assert json.loads(printed.stdout) == "zoë ☃ 😀"


def test_a_working_directory_that_is_gone_is_named(spool: Any) -> None:
    """It is no riddle about a file without a name."""
    gone = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    command = ["bash", "-c", gone, "bash", sys.executable, "-m", "batchd", "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=spool.folder)
    assert done.returncode == 3
    assert done.stderr == "batchd: the working directory is gone: change to one that exists\n"


@contextlib.contextmanager
def _started(
    spool: Any, before: Callable[[], None]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Give a daemon, and its log; ``before``: done in its process before it begins."""
    log: Path = spool.folder / "daemon.log"
    with (
        log.open("ab") as stderr,
        subprocess.Popen(
            spool.command("serve"),
            stderr=stderr,
            env=spool.environment,
            preexec_fn=before,
        ) as daemon,
    ):
        try:
            yield daemon, log
        finally:
            daemon.kill()


def test_a_hangup_during_the_start_is_heard_after_it(spool: Any) -> None:
    """SIGHUP has the configuration read again,
    also before anything could read it, and ends nothing.
    """

    def send_before_it_starts() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        os.kill(os.getpid(), signal.SIGHUP)

    with _started(spool, send_before_it_starts) as (_, log):
        spool.eventually(lambda: "config_reloaded" in log.read_text())
        assert spool.answers()


@pytest.mark.parametrize("how", ["ignored", "held back"])
def test_the_ends_of_children_are_heard_of_whatever_was_inherited(spool: Any, how: str) -> None:
    """Who starts the daemon may ignore SIGCHLD, or hold it back: a task runs its commands all the
    same, and the daemon ends when it is asked to.
    """

    def inherit() -> None:
        if how == "ignored":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})

    with _started(spool, inherit) as (daemon, log):
        spool.eventually(lambda: spool.answers() or daemon.poll() is not None)
        assert daemon.poll() is None, log.read_text()
        task = spool.write("b.json", [{"first_prompt": "x"}])
        assert spool.batchd("submit", task, "--wait").returncode == 0
        daemon.terminate()
        daemon.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("surroundings", "words", "not_so"),
    [
        ("PATH=", "/bwrap is not on PATH: add /", "not installed"),
        ("ulimit -n 20;", "Too many open files", "CAP_SYS_ADMIN"),
    ],
    ids=["path", "descriptors"],
)
@pytest.mark.skipif(not shutil.which("bwrap", path=os.defpath), reason="bwrap lies elsewhere here")
def test_a_sandbox_that_lacks_something_of_its_surroundings_says_what(
    spool: Any, surroundings: str, words: str, not_so: str
) -> None:
    """Not that bubblewrap is to be installed, or that the container is to be given rights."""
    command = ["/bin/sh", "-c", f'{surroundings} exec "$@"', "sh", *spool.command("serve")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=spool.environment
    )
    assert done.returncode == 3
    assert words in done.stderr
    assert not_so not in done.stderr


def test_a_configuration_that_is_gone_is_not_replaced_by_another(spool: Any) -> None:
    """SIGHUP beside a file that was moved away keeps what was read: its limits on money too.

    A start beside a dangling link is refused.
    """
    path = spool.folder / "config.toml"
    assert spool.batchd("trust", spool.folder).returncode == 0
    log = spool.folder / "daemon.log"

    def events(action: str) -> list[Any]:
        return logged(log, action)

    command = [sys.executable, "-m", "batchd", "serve"]
    with (
        log.open("wb") as stderr,
        warm.Popen(command, cwd=spool.folder, stderr=stderr) as daemon,
    ):
        try:
            spool.eventually(lambda: events("worker_started"))
            path.rename(spool.folder / "moved.toml")
            daemon.send_signal(signal.SIGHUP)
            spool.eventually(lambda: events("config_reloaded"))
        finally:
            daemon.terminate()
    (line,) = events("config_reloaded")
    assert line["kept_old"] is True
    assert "config.toml" in line["message"]
    path.symlink_to("nowhere.toml")
    done = warm.run(command, cwd=spool.folder)
    assert done.returncode == 2
    assert "config.toml: the file cannot be read" in done.stderr


def test_status_says_that_there_are_older_batches(spool: Any) -> None:
    """It shows the newest, and how to see the rest."""
    with spool.serving():
        for name in ("a", "b", "c"):
            spool.batchd("submit", spool.write(f"{name}.json", [{"first_prompt": "x"}]), "--wait")
    assert "`batchd status -n 0`" in spool.batchd("status", "-n", "2").stdout
    assert "Older" not in spool.batchd("status", "-n", "3").stdout
    assert "Older" not in spool.batchd("status", "-n", "0").stdout


@pytest.mark.parametrize(
    "heavy", ["openai", "rich", "structlog", "tiktoken", "genai_prices", "asyncio"]
)
def test_status_loads_nothing_heavy(spool: Any, heavy: str) -> None:
    """What only others need is not loaded by `status`, which answers within 250 ms."""
    command = spool.command("status")
    command[1:1] = ["-X", "importtime"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not re.search(rf"\| +{heavy}$", done.stderr, re.MULTILINE)


def test_an_order_loads_nothing_heavy(spool: Any) -> None:
    """Who orders something of a daemon loads what makes a request, and no more."""
    command = spool.command("pause", "--all")
    command[1:1] = ["-X", "importtime"]
    with spool.serving():
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=spool.environment
        )
    loaded = set(re.findall(r"\| +([a-z_0-9]+)$", done.stderr, re.MULTILINE))
    assert "msgspec" in loaded
    assert not loaded & {
        "starlette",
        "sqlite3",
        "openai",
        "asyncio",
        "structlog",
        "rich",
    }


def test_demo_completes_everything(spool: Any) -> None:
    """The sample file goes the whole way;
    the output says where everything lies, and all of it is there.
    """
    done = spool.batchd("demo", "--speed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 tasks completed" in done.stdout
    assert "stand-in" in done.stdout
    assert "OPENAI_API_KEY" in done.stdout
    (folder,) = re.findall(r"A fresh spool: (.+)", done.stdout)
    for name in (
        "outbox/task/001.json",
        "outbox/task/001.jsonl",
        "outbox/task/summary.json",
        "daemon.log",
        "server.jsonl",
    ):
        assert Path(folder, name).stat().st_size


_OLDER = """\
import batchd.version
batchd.version.__version__ = "0.0.9"
"""


def test_an_upgrade_is_reported_while_the_old_daemon_runs(spool: Any) -> None:
    """Every command that speaks with a daemon of another version says
    in one line what to restart, and does its work.
    """
    (spool.folder / "old").mkdir()
    (spool.folder / "old" / "sitecustomize.py").write_text(_OLDER)
    path = f"{spool.folder / 'old'}:{spool.environment['PYTHONPATH']}"
    task = spool.write("t.json", [{"first_prompt": "x"}])
    with spool.serving(PYTHONPATH=path):
        for command in (
            ("submit", "--wait", task),
            ("status",),
            ("status", "--json"),
            ("pause", "--all"),
            ("resume",),
            ("tune",),
        ):
            done = spool.batchd(*command)
            assert done.returncode == 0, done.stderr
            warnings = [line for line in done.stderr.splitlines() if "restart the daemon" in line]
            assert len(warnings) == 1, (command, done.stderr)
            assert "The daemon is batchd 0.0.9, this program is " in warnings[0]
        refused = spool.batchd("cancel", "nothing")
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 2)
        assert "restart the daemon" in spool.batchd("top", "--once").stdout.replace("\n", "")
        assert "restart the daemon" in spool.batchd("check", "--offline").stderr
    with spool.serving():
        assert spool.batchd("status").stderr == ""


def test_a_pipe_gets_whole_tables(spool: Any) -> None:
    """What a terminal of 80 columns cuts, a pipe has: there is no line to fit."""
    why = "only when somebody has read every line of it, and " * 3
    spool.write("t.json", [{"first_prompt": "x"}])
    with spool.serving():
        spool.batchd("pause", "--all", "-m", why)
        spool.batchd("submit", "t.json")
        spool.eventually(lambda: "\n001 " in spool.batchd("status", "t").stdout)
        lines = spool.batchd("status", "t").stdout.splitlines()
    assert any(why.strip() in line for line in lines)


def test_who_waits_for_what_is_paused_learns_why(spool: Any) -> None:
    """`submit --wait` of a batch that cannot start says what keeps it,
    and the command that lets it go on: once.
    """
    path = spool.write("games.json", [{"first_prompt": "x"}, {"first_prompt": "y"}])
    with spool.serving():
        assert spool.batchd("pause", "--all", "--message", "moving house").returncode == 0
        command = spool.command("submit", "--wait", path)
        with warm.Popen(command, stdout=subprocess.PIPE, env=spool.environment) as waiting:
            seen = b""
            while b"To go on: batchd resume" not in seen:
                line = waiting.stdout.readline()
                assert line, seen
                seen += line
            assert b"Paused since " in seen
            assert spool.batchd("resume", "--all").returncode == 0
            seen += waiting.communicate(timeout=PATIENCE_S)[0]
        assert waiting.returncode == 0
        assert seen.count(b"moving house") == 1
        assert b"2 of 2 tasks completed" in seen


def test_a_backup_that_has_no_place_names_the_place(spool: Any) -> None:
    """Not the store, which is well: a folder that is missing, a folder in the file's place."""
    assert spool.batchd("pause", "--all").returncode == 0  # which makes a store
    missing = spool.batchd("backup", spool.folder / "none/x.bak")
    assert missing.returncode == 2
    assert f"{spool.folder}/none is not a directory: make it" in missing.stderr
    folder = spool.batchd("backup", spool.folder)
    assert folder.returncode == 2
    assert f"{spool.folder} is a directory: name a file in it" in folder.stderr


def test_what_lies_in_the_inbox_of_no_daemon_is_counted(spool: Any) -> None:
    """`status` says how many finished files lie there; `retry` without a daemon says that its
    tasks wait, and `submit` beside one what the batch is called.
    """
    path = spool.write("games.json", [{"first_prompt": "x"}])
    spool.batchd("submit", path)
    inbox = spool.folder / "inbox"
    for name in (".hidden.json", "half.json.part", "old.json~"):
        (inbox / name).write_text("x")
    (inbox / "folder.json").mkdir()
    (inbox / "link.json").symlink_to(path)
    shown = " ".join(spool.batchd("status").stdout.split())
    assert "1 file in the inbox; `batchd serve` takes what is dropped: games.json" in shown
    with spool.serving():
        spool.eventually((spool.folder / "outbox/games/summary.json").exists)
        assert "games.json" not in spool.batchd("status").stdout
        assert "Taken up as games-2: batchd status games-2" in spool.batchd("submit", path).stdout
        spool.eventually((spool.folder / "outbox/games-2/summary.json").exists)
    again = spool.batchd("retry", "games", "--yes")
    assert "No daemon runs; they wait until `batchd serve` starts." in again.stderr


def test_a_shell_completes_names(spool: Any) -> None:
    """Behind a command stand batches, the newest first, behind a slash the tasks of one; nothing is
    said where there are none.
    """
    script = spool.batchd("completion", "bash").stdout
    batchd = f'batchd() {{ {shlex.join(spool.command())} "$@"; }}'
    ask = 'COMP_WORDS=(batchd logs "$1"); COMP_CWORD=2; _shtab_batchd; echo "${COMPREPLY[@]}"'

    def complete(begun: str) -> str:
        command = ["bash", "-c", f"{script}\n{batchd}\n{ask}", "bash", begun]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=spool.environment
        )
        return done.stdout + done.stderr

    assert complete("") == "\n"
    for name in ("alpha", "beta", "alps"):
        path = spool.write(
            f"{name}.json", [{"first_prompt": "x"}, {"id": "b", "first_prompt": "y"}]
        )
        assert spool.batchd("run", path).returncode == 0
    assert complete("al") == "alps alpha\n"
    assert complete("beta/") == "beta/001 beta/b\n"
    assert complete("beta/b") == "beta/b\n"


def test_a_command_that_there_is_not(spool: Any) -> None:
    """The nearest one is named, of arguments too; who names none is shown the way in."""
    wrong = warm.run(
        [sys.executable, "-m", "batchd", "stauts"], env=spool.environment, cwd=spool.folder
    )
    assert wrong.returncode == 2
    assert "there is no command 'stauts': do you mean status?" in wrong.stderr
    command = [sys.executable, "-m", "batchd"]
    for words, said in (
        (("doctor",), "batchd: there is no command doctor: use `batchd check`\n"),
        (("help", "status"), "usage: batchd status "),
        (("version",), "batchd "),
    ):
        done = warm.run([*command, *words], env=spool.environment, cwd=spool.folder)
        assert (done.stdout or done.stderr).startswith(said)
    bare = warm.run(command, env=spool.environment, cwd=spool.folder)
    assert bare.returncode == 2
    assert "batchd run task.json" in bare.stderr
    assert "`batchd --help` lists all commands" in bare.stderr
    mistaken = spool.batchd("submit", "--promt", "x")
    assert "do you mean --prompt?" in mistaken.stderr
