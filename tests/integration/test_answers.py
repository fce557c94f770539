"""What orders and `status` say: what waits and why, what goes on, and how; with real daemons."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from batchd.errors import BatchdError
from batchd.records import dollars
from batchd.store.queries import StoreReader
from tests.integration.test_control import HANGS, Control

_NOPE = "batchd: there is no batch nope: `batchd status` lists them\n"

pytestmark = pytest.mark.in_turns


@pytest.fixture
def at(spool: Any) -> Control:
    """A spool to give orders to."""
    return Control(spool)


def test_a_broken_configuration_stops_no_command_that_only_looks_for_the_daemon(
    at: Control,
) -> None:
    """`status`, `logs` and orders reach the daemon by `[paths]` alone, and warn;
    without a daemon they say what is wrong.
    """
    path = at.folder / "config.toml"
    text = path.read_text()
    at.drop("games", [HANGS, HANGS])
    with at.spool.serving():
        at.until_running("games", 2)
        path.write_text(f"{text}[limits]\ntimeout_s = -1\n")
        done = at.spool.batchd("status")
        assert (done.returncode, "2 tasks at work" in done.stdout) == (0, True), done.stderr
        assert "timeout_s" in done.stderr
        assert "only its [paths]" in done.stderr
        at.until(lambda: "task_started" in at.order("logs", "games"))
        for order in (
            ["pause", "games"],
            ["resume", "games"],
            ["priority", "games", "3"],
            ["cancel", "games/001"],
            ["retry", "games/001"],
            ["prune"],
            ["tune"],
            ["cost"],
        ):
            at.order(*order)
        # Where not even the paths are known, nothing is guessed.
        for broken in (f"{text}[limits\n", f'{text}[paths]\nstat = "x"\n'):
            path.write_text(broken)
            assert "config.toml" in at.order("status", code=2)
            at.order("cancel", "games", code=2)
    path.write_text(f"{text}[limits]\ntimeout_s = -1\n")
    complaint = at.order("cancel", "games", code=3)
    assert "timeout_s" in complaint
    assert "no daemon runs" in complaint


def row_of(text: str, task: str) -> str:
    """Return a task's line of a table."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [task]]
    return line


def test_status_says_what_each_task_waits_for(at: Control) -> None:
    """A directory that another task works in, in another batch too;
    what it comes after; nothing, where it is only its turn.
    """
    for name in ("site", "site/docs", "other"):
        (at.folder / name).mkdir()
        if os.getuid() == 0:
            os.chown(at.folder / name, 65534, 65534)
    at.drop("first", [{"id": "a", "dir": "site", **HANGS}])
    with at.spool.serving():
        at.until_running("first", 1)
        tasks = [
            {"id": "b", "dir": "site", **HANGS},
            {"id": "c", "dir": "site/docs", **HANGS},
            {"id": "d", "dir": "other", **HANGS},
            {"id": "e", "after": ["d", "b"]},
            {"id": "f", "dir": "other"},
        ]
        at.drop("second", tasks)
        at.until_running("second", 1)
        text = at.order("status", "second")
        assert row_of(text, "b").endswith("first/a works in its directory")
        assert "first/a works in /" in row_of(text, "c")
        assert not re.search("works in|comes after", row_of(text, "d"))
        assert row_of(text, "e").endswith("comes after d, b")
        assert row_of(text, "f").endswith("d works in its directory")
        answer = at.answer("status", "second")
        assert {t["task"]: t["why"] for t in answer["tasks"]}["c"] == (
            f"first/a works in {at.folder / 'site'}"
        )
        assert "comes after d, b" in at.order("status", "second/e")
        at.order("cancel", "first", "second")


def test_status_shows_the_pause_before_an_older_cause(at: Control) -> None:
    """A task that a provider's outage parked, and that is paused then:
    the pause comes first, with its fix.
    """
    at.drop("games", [{"id": "a", "model": "standin/401"}])
    with at.spool.serving():
        at.until(lambda: at.statuses("games") == {"a": "parked"})
        assert "provider standin: auth" in row_of(at.order("status", "games"), "a")
        at.order("pause", "games/a", "-m", "lunch")
        assert "  paused: lunch; provider" in row_of(at.order("status", "games"), "a")
        text = at.order("status", "games/a")
        assert "paused: lunch; provider standin: auth" in text
        assert "To go on: batchd resume games/a" in text


def test_status_after_the_daemon_was_killed(at: Control) -> None:
    """What ran is not shown as running without a word:
    no daemon is there, and it goes on when one starts.
    """
    at.drop("games", [HANGS])
    with at.spool.serving() as daemon:
        # Its call is under way, and no longer only its task.
        at.until(lambda: [t["step"] for t in at.ask("status")["running"]] == ["model"])
        assert at.answer("status", "games")["daemon_runs"] is True
        daemon.kill()
        daemon.wait()
    for target in ((), ("games",), ("games/001",)):
        text = at.order("status", *target)
        assert "o daemon runs" in text
        assert "goes on" in text
    assert "no daemon runs" in row_of(at.order("status", "games"), "001")
    assert at.answer("status", "games")["daemon_runs"] is False
    # The next one counts the call that was under way, which may have been paid.
    with at.spool.serving():
        at.until(lambda: at.answer("status", "games")["unsettled_calls"])
        assert " 1 call " in row_of(at.order("status", "games"), "001")
        at.order("cancel", "games")


@pytest.mark.long
def test_status_shows_money_that_may_have_been_spent(at: Control) -> None:
    """Beside the cost, as in `batchd cost`, what calls
    without an answer on record may have cost at most.
    """
    with (at.folder / "config.toml").open("a") as file:
        file.write('[models."standin/hang"]\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n')
    at.drop("games", [HANGS])
    with at.spool.serving() as daemon:
        at.until_running("games", 1)
        at.until(lambda: at.answer("status", "games")["tasks"][0]["step"] == "CallStarted")
        daemon.kill()
        daemon.wait()
    with at.spool.serving():
        at.until(lambda: at.answer("status", "games")["unsettled_calls"])
        most = at.answer("status", "games")["unsettled_usd"]
        for text in (
            row_of(at.order("status", "games"), "001"),
            row_of(at.order("status"), "games"),
        ):
            assert re.search(rf"\$0 +≤ {re.escape(dollars(most))}", text)
        assert dollars(most) in at.order("cost")
        at.order("cancel", "games")


def test_a_paused_provider_concerns_whom_its_models_judge(at: Control) -> None:
    """`pause --provider` counts the tasks that its models do,
    and apart those that they only judge.
    """
    text = (at.folder / "config.toml").read_text()
    judges = '[evaluation]\njudge_model = "judges/judge"\n'
    url = text.partition('base_url = "')[2].partition('"')[0]
    (at.folder / "config.toml").write_text(
        text.replace("[evaluation]\n", judges) + f'[providers.judges]\nbase_url = "{url}"\n'
    )
    tasks = [
        {**HANGS, "evaluator": "judge"},
        {**HANGS, "evaluator": "judge"},
        {**HANGS, "evaluator": "none"},
        {"model": "judges/hang"},
    ]
    at.drop("games", tasks)
    with at.spool.serving():
        at.until(lambda: "games" in at.outbox())
        assert "3 tasks; 2 of them need it only as a judge" in at.order(
            "pause", "--provider", "judges"
        )
        assert at.answer("pause", "--provider", "judges") == {"parked": 3, "judged": 2}
        assert at.answer("pause", "--provider", "standin") == {"parked": 3, "judged": 0}
        at.order("cancel", "games")


def test_resume_names_what_still_holds_it(at: Control) -> None:
    """A task, a batch, a provider within something larger that is parked:
    the answer names it, with its fix.
    """
    at.drop("games", [{"id": "a", **HANGS}, {"id": "b", **HANGS}])
    with at.spool.serving():
        at.until_running("games", 2)
        at.until(lambda: re.search(r"model: standin/hang for \d+ s", at.order("status", "games")))
        for target in (["games/a"], ["games"], ["--provider", "standin"], ["--all"]):
            at.order("pause", *target)
        text = at.order("resume", "games/a")
        assert "games/a itself is no longer paused" in text
        for fix in ("games", "--provider standin", "--all"):
            assert f"To go on: batchd resume {fix}\n" in text
        answer = at.answer("resume", "games")
        assert answer["resumed"] == 1
        assert {held["scope"] for held in answer["held"]} == {"provider", "all"}
        text = at.order("resume", "games")
        assert "batch games is not paused" in text
        assert "batchd resume --provider standin" in text
        text = at.order("resume", "--all")
        assert "everything goes on\nStill waiting:\n" in text
        assert "batchd resume --provider standin" in text
        assert at.order("resume", "--provider", "standin") == "provider standin goes on\n"
        at.order("cancel", "games")


def test_resume_of_a_provider_that_was_parked_by_itself(at: Control) -> None:
    """Its tasks do not simply go on: one call tries it first, and that is what is said."""
    at.drop("games", [{"model": "standin/401"}])
    with at.spool.serving():
        at.until(lambda: at.statuses("games") == {"001": "parked"})
        for scope in (["--provider", "standin"], []):
            assert at.order("resume", *scope).startswith(
                "provider standin is tried with one call first"
            )
        text = at.order("resume", "games/001")
        assert "provider standin" in text
        assert "goes on\n" not in text
        assert at.answer("resume")["trying"] == ["standin"]
        at.order("cancel", "games")


def _workers(folder: Path) -> set[int]:
    """Return the processes that work on the tasks of a run."""
    with contextlib.suppress(BatchdError, ValueError):
        (store,) = folder.glob(".batchd/run-*/batchd.db")
        with StoreReader(store) as reader:
            return {int(task.worker) for task in reader.running() if task.step == "CallStarted"}
    return set()


@pytest.mark.long
def test_a_trial_whose_tasks_come_after_later_ones_is_refused(spool: Any) -> None:
    """`--first N` cuts no task off from what it comes after, and names both."""
    tasks = [{"id": "a"}, {"id": "b", "after": ["d"]}, {"id": "c"}, {"id": "d", "after": ["e"]}]
    tasks = [{"first_prompt": f"{spool.folder}", **t} for t in (*tasks, {"id": "e"}, {"id": "f"})]
    path = spool.write("games.json", tasks)
    done = spool.batchd("run", "--first", "2", path)
    assert done.returncode == 2
    assert done.stderr.endswith("(b comes after d): give a larger --first\n")
    for number, count in (("1", 1), ("5", 5), ("9", 6)):
        done = spool.batchd("run", "--first", number, "--json", path)
        assert done.returncode == 0, done.stderr
        assert f'"total": {count},' in done.stdout
    # An error anywhere in the file is reported by the trial already.
    path = spool.write("broken.json", [*tasks, {"prompt": "x"}])
    assert "tasks[6].prompt" in spool.batchd("run", "--first", "1", path).stderr


def test_logs_that_have_nothing_to_show_say_why(at: Control) -> None:
    """A pruned journal, a rejected file, a batch of which nothing has begun:
    one line on stderr, nothing on stdout.
    """
    at.drop("games", [{}])
    at.drop("bad", [{"priority": "x"}])
    with at.spool.serving():
        at.until_finished("games")
        at.until_finished("bad")
        assert "task_finished" in at.order("logs", "games")
        at.order("prune", "--yes")
        at.order("pause", "--all")
        at.drop("later", [{}])
        at.until(lambda: "later" in at.outbox())
        for target, why in (
            ("games", "its journal was pruned"),
            ("games/001", "its journal was pruned"),
            ("bad", "was rejected"),
            ("later", "has not started"),
        ):
            done = at.spool.batchd("logs", target)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
            assert why in done.stderr


def test_complaints_name_what_they_mean_once(at: Control) -> None:
    """A batch that is not there is named once, several tasks that have not ended are several."""
    at.drop("games", [HANGS, HANGS])
    with at.spool.serving():
        at.until_running("games", 2)
        assert at.order("cancel", "nope", code=2) == _NOPE
        assert at.order("status", "nope", code=2) == _NOPE
        assert at.order("retry", "games", code=2) == (
            "batchd: games: tasks that have not ended cannot run again: 001, 002; wait, or cancel them\n"
        )
        at.order("cancel", "games")


def test_status_of_a_daemon_that_does_not_answer(at: Control) -> None:
    """It is not reported as gone, and no command waits for it for long: the store has the rest."""
    at.drop("games", [HANGS])
    with at.spool.serving() as daemon:
        at.until_running("games", 1)
        assert "1 task at work" in at.order("status")
        daemon.send_signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            text = at.order("status", "games")
            took_s = time.monotonic() - begun
        finally:
            daemon.send_signal(signal.SIGCONT)
        assert "The daemon does not answer" in text
        assert "no daemon runs" not in text
        assert took_s < 60
        at.order("cancel", "games")
