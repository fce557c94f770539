"""Orders to a daemon, running and stopped:
each durable before it is answered, judged by the outbox and the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sockets
import warm
from dropping import batch_done, submit
from loglines import logged
from patience import PATIENCE_S

from batchd import config, control
from batchd.cli import orders
from batchd.control.socket_server import Server
from batchd.daemon import Daemon, Listener
from batchd.daemon.lock import acquire, release
from batchd.errors import (
    BatchdError,
    NoAnswerError,
    NoDaemonError,
    SpoolLockedError,
    UsageError,
)
from batchd.events import Event, Suspended
from batchd.records import Ref, Scope
from batchd.spool import claims
from batchd.spool.outbox import PublishedFolder
from batchd.spool.ulid import marked, ulid
from batchd.store import lookups
from batchd.store.queries import StoreReader
from batchd.version import __version__

pytestmark = pytest.mark.in_turns

#: A task that never ends by itself.
HANGS = {"model": "standin/hang"}
#: One that stops at a durable point ten times a second.
SLOW = {"model": "standin/latency-0.1+steps-90", "limits": {"max_calls": 0}}
_PRICE = """[models."standin/400-1+steps-1"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
"""
FAILS = {"model": "standin/400"}


class Control:
    """A spool, a daemon that comes and goes, and orders."""

    def __init__(self, spool: Any) -> None:
        self.spool = spool
        self.folder: Path = spool.folder
        self.state = self.folder / ".batchd"
        with (self.folder / "config.toml").open("a") as file:
            file.write(f"[cost]\ncompare = []\n{_PRICE}")

    def drop(self, name: str, tasks: list[dict[str, Any]], **batch: Any) -> None:
        """Put a file into the inbox; every prompt is this test's own."""
        own = [{"first_prompt": f"{self.folder} {name} {i}", **t} for i, t in enumerate(tasks)]
        inbox = self.folder / "inbox"
        inbox.mkdir(exist_ok=True)
        self.spool.write("dropped", own, **batch).rename(inbox / f"{name}.json")

    def order(self, *arguments: str, code: int = 0) -> str:
        """Run a command; return what it printed: its answer, or its complaint."""
        # What completed is paid again: a script says yes to that.
        yes = ("--yes",) if arguments[0] == "retry" else ()
        done = self.spool.batchd(*arguments, *yes)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return str(done.stderr if code else done.stdout)

    def answer(self, *arguments: str) -> Any:
        """Run a command with ``--json``; return its answer."""
        return json.loads(self.order(*arguments, "--json"))

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Give an order over the socket."""
        return control.request(self.state, verb, **arguments)

    def reader(self) -> StoreReader:
        """Open the store to look into it."""
        return StoreReader(self.state / "batchd.db")

    def statuses(self, batch: str) -> dict[str, str]:
        """Return each task's status, by the store."""
        try:
            with self.reader() as reader:
                return {t.ref.task: str(t.status) for t in reader.tasks(batch)}
        except Exception:  # noqa: BLE001 (no store, no such batch: not yet)
            return {}

    def result(self, batch: str, task: str) -> dict[str, Any]:
        """Return a result, or the summary."""
        found: dict[str, Any] = self.spool.result(batch, task)
        return found

    def outbox(self) -> set[str]:
        """Return the batches that have been taken up, by their request files."""
        return {path.parent.name for path in self.folder.glob("outbox/*/request.json")}

    def folders(self) -> set[str]:
        """Return the folders in the outbox."""
        return {path.name for path in self.folder.glob("outbox/*/")}

    def until(self, condition: Callable[[], object]) -> None:
        """Wait."""
        self.spool.eventually(condition)

    def until_finished(self, batch: str) -> None:
        """Wait for a batch's summary."""
        self.until((self.folder / "outbox" / batch / "summary.json").exists)

    def until_running(self, batch: str, count: int) -> None:
        """Wait until so many tasks of a batch run."""
        self.until(lambda: list(self.statuses(batch).values()).count("running") == count)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of one kind in the log of daemons that ran."""
        return logged(self.folder / "daemon.log", event)


@pytest.fixture
def at(spool: Any) -> Control:
    """A spool to give orders to."""
    return Control(spool)


@pytest.fixture(params=["running", "stopped"])
def daemon(request: pytest.FixtureRequest, at: Control) -> Callable[[], Any]:
    """A context in which the daemon runs, or, once it has taken up what was dropped, does not."""
    return at.spool.serving if request.param == "running" else contextlib.nullcontext


def taken_up(at: Control, batch: str, *, running: int = 0) -> None:
    """Have a daemon take a dropped file up, and stop it."""
    with at.spool.serving():
        at.until(lambda: batch in at.outbox())
        at.until_running(batch, running)


def finished(at: Control, *batches: str) -> None:
    """Have a daemon work dropped files off, and stop it."""
    with at.spool.serving():
        for batch in batches:
            at.until_finished(batch)


# wait


def test_wait_ends_with_its_batches(at: Control) -> None:
    """It stays until all have ended, shows what comes, and ends with summaries and exit code;
    without a daemon, of what has ended alone.
    """
    at.drop("slow", [{"id": "a"}, {"id": "b", **SLOW}])
    at.drop("bad", [{**FAILS}])
    at.drop("wrong", [{"modle": "x"}])
    with at.spool.serving():
        at.until_finished("bad")
        at.until_finished("wrong")
        at.until(lambda: sorted(at.statuses("slow").values()) == ["completed", "running"])
        assert "slow/a is a task" in at.order("wait", "slow/a", code=2)
        assert "no batch nope" in at.order("wait", "slow", "nope", code=2)
        waiting = at.spool.command("wait", "bad", "slow")
        environ = at.spool.environment
        with warm.Popen(waiting, stdout=subprocess.PIPE, text=True, env=environ) as process:
            assert process.stdout is not None
            assert process.stdout.readline().endswith("] slow: 2 tasks, 1 of them ended\n")
            at.order("cancel", "slow")
            said = process.stdout.read()
        assert process.returncode == 1
        assert "○ b cancelled: " in said
        assert "a completed" not in said.partition("bad: 0 of 1 task completed")[0]
        assert "slow was cancelled: 1 of 2 tasks completed" in said
        at.drop("good", [{**HANGS}])
        at.until_running("good", 1)
    assert "good has not ended: start `batchd serve`" in at.order("wait", "bad", "good", code=3)
    done = at.spool.batchd("wait", "slow", "bad", "slow", "--json")
    assert [s["batch"] for s in json.loads(done.stdout)] == ["slow", "bad"]
    assert done.returncode == 1
    assert at.spool.batchd("wait", "wrong").returncode == 2


# cancel


@pytest.mark.sampled(1)
def test_cancel_ends_tasks_and_what_depends_on_them(at: Control, daemon: Callable[[], Any]) -> None:
    """One task of a batch: it ends as user, what comes after it as dependency, by name;
    the rest goes on; then all of it.
    """
    tasks = [
        {"id": "a", **HANGS},
        {"id": "b", **HANGS},
        {"id": "c", "after": ["a"]},
        {"id": "d", "after": ["c"]},
    ]
    at.drop("games", tasks)
    at.drop("other", [{**HANGS}])
    taken_up(at, "games", running=2)
    with daemon():
        answer = at.answer("cancel", "games/a", "-m", "not needed")
        assert answer == {"cancelled": 1, "ended": []}
        at.until(lambda: at.statuses("games")["d"] == "cancelled")
        assert at.statuses("games")["b"] in {"queued", "running"}
        result = at.result("games", "a")
        assert (result["status"], result["reason"]) == ("cancelled", "user")
        assert result["error"]["message"] == "not needed"
        for task in ("c", "d"):
            at.until((at.folder / f"outbox/games/{task}.json").exists)
            result = at.result("games", task)
            assert (result["status"], result["reason"]) == ("cancelled", "dependency")
            assert "not started: a was cancelled" in result["error"]["message"]
        assert "2 tasks cancelled" in at.order("cancel", "games", "other/001")
        at.until_finished("games")
        at.until_finished("other")
        assert at.result("games", "summary")["counts"]["cancelled"] == 4
        assert at.result("games", "summary")["status"] == "cancelled"
        assert {b["name"]: b["status"] for b in at.answer("status")["batches"]} == {
            "games": "cancelled",
            "other": "cancelled",
        }
        assert at.order("cancel", "games/a") == "games/a has ended already: cancelled\n"
        assert at.order("cancel", "games") == "games has ended already: 4 cancelled\n"
        assert "no batch nope" in at.order("cancel", "nope", code=2)
        assert "there is no task games/zz" in at.order("cancel", "games/zz", code=2)
        at.order("cancel", "a/b/c", code=2)
    if daemon is contextlib.nullcontext:
        return  # nothing is logged of it
    assert len(at.lines("command_done")) == 4
    first = at.lines("command_done")[0]
    assert first["uid"] == os.getuid()
    assert (first["verb"], first["target"], first["cancelled"]) == ("cancel", ["games/a"], 1)
    assert len(at.lines("command_refused")) == 2


def test_cancel_ends_what_it_can(at: Control, daemon: Callable[[], Any]) -> None:
    """Of several targets: those that had ended are named, with how,
    and a refused file too; alone they are wrong use.
    """
    at.drop("done", [{}, {}])
    at.drop("mixed", [{"id": "a"}, {"id": "b", **HANGS}, {"id": "c", **FAILS}])
    at.drop("wrong", [{"modle": "x"}])
    with at.spool.serving():
        for name in ("done", "wrong"):
            at.until_finished(name)
        at.drop("open", [{**HANGS}])
        at.until(lambda: sorted(at.statuses("mixed").values()) == ["completed", "error", "running"])
        at.until_running("open", 1)
    with daemon():
        words = "batch done has finished already: 2 completed; mixed/c has finished already: error"
        assert words in at.order("cancel", "done", "mixed/c", code=2)
        said = at.order("cancel", "done", "mixed/a", "mixed/b", "wrong", "open")
        assert said.splitlines() == [
            "mixed/b, open: 2 tasks cancelled",
            "done has ended already: 2 completed",
            "mixed/a has ended already: completed",
            "wrong was refused when it came: it has no tasks",
        ]
        again = at.answer("cancel", "open", "mixed/b")
        ended = [{"target": name, "counts": {"cancelled": 1}} for name in ("open", "mixed/b")]
        assert again == {"cancelled": 0, "ended": ended}
        assert "finished already: 1 completed, 1 error, 1" in at.order("cancel", "mixed", code=2)
    if daemon is not contextlib.nullcontext:
        line = at.lines("command_done")[0]
        assert (line["cancelled"], line["ended"]) == (2, ["done", "mixed/a", "wrong"])


def test_an_order_of_several_targets_is_all_or_nothing(at: Control) -> None:
    """One unknown name among them, and nothing of it is done."""
    at.drop("games", [HANGS])
    with at.spool.serving():
        at.until_running("games", 1)
        at.order("cancel", "games", "nope", code=2)
        assert at.statuses("games") == {"001": "running"}


def test_what_was_acknowledged_survives_sigkill(at: Control) -> None:
    """The daemon is killed the moment that it has answered:
    the next one finds the tasks ended, and runs none.
    """
    at.drop("games", [{**HANGS}, {**HANGS}, {**HANGS}, {"priority": -1}])
    with at.spool.serving() as process:
        at.until_running("games", 2)
        at.ask("priority", target="games/003", priority=7)
        assert at.ask("cancel", target=["games/001", "games/002", "games/004"])["cancelled"] == 3
        process.kill()
        process.wait()
        with at.reader() as reader:
            rows = {t.ref.task: t for t in reader.tasks("games")}
        assert {n: str(r.status) for n, r in rows.items() if n != "003"} == dict.fromkeys(
            ("001", "002", "004"), "cancelled"
        )
        assert rows["003"].priority == 7
    with at.spool.serving():
        at.until((at.folder / "outbox/games/004.json").exists)
        assert at.result("games", "001")["reason"] == "user"
        assert at.result("games", "004")["attempts"] == 0


class CancelsWhatStops(Listener):
    """Cancels a task the moment that it has given its slot back,
    durably, and the worker is not done with it.
    """

    daemon: Daemon

    def task_event(self, ref: Ref, event: Event) -> None:
        """Do so."""
        if isinstance(event, Suspended):
            self.daemon.attempts.cancel(ref, "at the worst time")


def test_a_cancel_that_meets_a_task_that_stops_is_not_lost(at: Control) -> None:
    """Paused, stopped, and cancelled in between:
    it ends as cancelled, although its worker never heard of it.
    """
    settings = config.load(at.folder / "config.toml", at.spool.environment)

    async def scenario() -> None:
        listener = CancelsWhatStops()
        async with Daemon(settings, listeners=[listener], watch=False) as daemon:
            listener.daemon = daemon
            task = {"first_prompt": str(at.folder), **SLOW}
            await submit(daemon, "games.json", json.dumps({"tasks": [task]}).encode())
            await asyncio.to_thread(at.until_running, "games", 1)
            pause = {"scope": "batch", "name": "games"}
            await asyncio.to_thread(at.ask, "pause", **pause)
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "games")

    asyncio.run(scenario())
    result = at.result("games", "001")
    assert (result["reason"], result["error"]["message"]) == ("user", "at the worst time")


def test_many_queued_tasks_are_cancelled_in_one_order(at: Control) -> None:
    """More than are ended in one go: each has its result, and none of them was started."""
    at.drop("games", [{**HANGS} for _ in range(2)] + [{} for _ in range(600)])
    with at.spool.serving():
        at.until_running("games", 2)
        assert at.answer("cancel", "games")["cancelled"] == 602
        at.until_finished("games")
    counts = at.result("games", "summary")["counts"]
    assert (counts["cancelled"], counts["completed"]) == (602, 0)
    assert len(at.lines("task_started")) == 2


# retry


@pytest.mark.sampled(1)
def test_retry_runs_what_failed_again_under_a_name_of_its_own(
    at: Control, daemon: Callable[[], Any]
) -> None:
    """Only what did not complete, with its dependants;
    what they need and have is not waited for again.
    """
    tasks = [
        {"id": "a"},
        # Refused once, then never again: the server knows the conversation.
        {"id": "b", "after": ["a"], "model": "standin/400-1+steps-1", "metadata": {"ticket": 1}},
        {"id": "c", "after": ["a", "b"]},
        {"id": "d", "after": ["c"], "priority": 3},
    ]
    at.drop("games", tasks, budget_usd=5.0)
    finished(at, "games")
    old = {t: at.result("games", t)["status"] for t in "abcd"}
    assert old == {"a": "completed", "b": "error", "c": "cancelled", "d": "cancelled"}
    with daemon():
        answer = at.answer("retry", "games", "--failed")
        assert answer["runs"] == [{"batch": "games-2", "retry_of": "games", "tasks": 3}]
    if not (at.folder / "outbox/games-2/summary.json").exists():
        finished(at, "games-2")
    summary = at.result("games-2", "summary")
    assert (summary["retry_of"], summary["counts"]["completed"]) == ("games", 3)
    assert at.result("games-2", "b")["metadata"] == {"ticket": 1}
    assert at.result("games-2", "b")["dir"] == str(at.folder / "outbox/games-2/b")
    requests = [at.folder / "outbox" / name / "request.json" for name in ("games", "games-2")]
    assert requests[0].read_bytes() == requests[1].read_bytes()
    with at.reader() as reader:
        assert reader.batch("games-2").batch.budget_usd == 5.0
        assert reader.read(lookups.find_task, Ref("games-2", "c")).after == ("b",)
    ends = {t: at.result("games-2", t)["timing"] for t in "bcd"}
    assert ends["b"]["finished_at"] <= ends["c"]["started_at"]
    assert ends["c"]["finished_at"] <= ends["d"]["started_at"]
    # Nothing of the old run has changed; and the third run is counted from the first.
    assert at.result("games", "b")["status"] == "error"
    assert "has failed" in at.order("retry", "games-2", "--failed", code=2)
    assert at.answer("retry", "games-2/d")["runs"][0]["batch"] == "games-3"


def test_retry_of_one_task_takes_its_dependants_with_it(at: Control) -> None:
    """All that comes after it, and after that, is queued again;
    what it needs itself must have completed.
    """
    tasks = [
        {"id": "a"},
        {"id": "b", "after": ["a"]},
        {"id": "c", "after": ["b"]},
        {"id": "x", **FAILS},
        {"id": "y", "after": ["x"]},
    ]
    at.drop("games", tasks)
    finished(at, "games")
    with at.spool.serving():
        assert "retry that one too" in at.order("retry", "games/y", code=2)
        assert at.answer("retry", "games/b")["runs"][0]["tasks"] == 2
        at.until_finished("games-2")
        assert sorted(at.statuses("games-2")) == ["b", "c"]
        assert at.answer("retry", "games/y", "games/x")["runs"][0]["tasks"] == 2
        assert at.answer("retry", "games/a")["runs"][0]["tasks"] == 3
        assert at.answer("retry", "games")["runs"][0]["tasks"] == 5
        at.until_finished("games-5")
    assert len([x for x in at.lines("command_done") if x["verb"] == "retry"]) == 4


def test_retry_refuses_what_has_not_ended(at: Control) -> None:
    """It says which task; unknown names are refused too."""
    at.drop("games", [{"id": "a", **HANGS}, {"id": "b"}, {"id": "c", "after": ["b"], **HANGS}])
    with at.spool.serving():
        at.until(lambda: at.statuses("games").get("b") == "completed")
        at.until_running("games", 2)
        assert "cannot run again: a, c;" in at.order("retry", "games", code=2)
        assert "cannot run again: c;" in at.order("retry", "games/b", code=2)
        assert "there is no task games/z" in at.order("retry", "games/z", code=2)
        assert "no batch nope" in at.order("retry", "nope", code=2)
        # As a variable that is not set would have it:
        # with their own models it would be another order.
        assert "--model is empty" in at.order("retry", "games/b", "--model", "", code=2)
        assert "is not provider/model" in at.order("retry", "games/b", "--model", "?", code=2)
        with at.reader() as reader:
            assert len(reader.batches()) == 1


def test_a_retry_that_is_asked_for_twice_runs_once(at: Control) -> None:
    """An order whose answer was lost, and which is given again, is the same order."""
    at.drop("games", [{}])
    finished(at, "games")
    with at.spool.serving():
        claim = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        first = at.ask("retry", target="games", claim=claim)
        assert at.ask("retry", target="games", claim=claim) == first
        at.until_finished("games-2")
        with at.reader() as reader:
            assert len(reader.batches()) == 2
        with pytest.raises(UsageError, match="ULID"):
            at.ask("retry", target="games", claim="mine")


def test_a_retry_that_a_crash_cut_short_is_whole_again(at: Control) -> None:
    """SIGKILL right after the answer, its request not in the folder:
    the next daemon brings it there, before the summary.
    """
    at.drop("games", [{}, {"model": "standin/latency-0.1+steps-3"}])
    finished(at, "games")
    with at.spool.serving() as process:
        at.ask("retry", target="games")
        process.kill()
        process.wait()
    request = at.folder / "outbox/games-2/request.json"
    request.unlink()  # as if the crash had come between store and folder
    finished(at, "games-2")
    assert request.read_bytes() == (at.folder / "outbox/games/request.json").read_bytes()
    assert request.stat().st_mtime < (request.parent / "summary.json").stat().st_mtime
    assert at.result("games-2", "summary")["counts"]["completed"] == 2


@pytest.mark.sampled(1)
def test_retry_after_prune_reads_the_request_again(at: Control, daemon: Callable[[], Any]) -> None:
    """What the store has dropped is in the folder; once that is gone too, it says so.

    With the store alone it works as well.
    """
    at.drop("games", [{"id": "a", "metadata": {"n": 1}}, {"id": "b"}], budget_usd=2.0)
    at.drop("kept", [{"id": "a", "first_prompt": "x"}, {"id": "b", "after": ["a"]}])
    finished(at, "games", "kept")
    collected(at.folder / "outbox/kept")
    with daemon():
        assert at.answer("retry", "kept/b")["runs"][0]["tasks"] == 1
        asked = json.loads((at.folder / "outbox/kept-2/request.json").read_bytes())
        assert [t["id"] for t in asked["tasks"]] == ["b"]
        assert "after" not in asked["tasks"][0]
        at.order("prune", "--yes")
        with at.reader() as reader, pytest.raises(Exception, match="pruned"):
            reader.read(lookups.find_task, Ref("games", "a"))
        assert at.answer("retry", "games/a")["runs"][0]["tasks"] == 1
    if not (at.folder / "outbox/games-2/summary.json").exists():
        finished(at, "games-2")
    assert at.result("games-2", "a")["metadata"] == {"n": 1}
    (at.folder / "outbox/games/request.json").unlink()
    assert "drop the file again" in at.order("retry", "games", code=2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a file belong to somebody else")
@pytest.mark.parametrize("whose", ["somebody else's", "anybody's"])
def test_no_retry_believes_what_another_user_wrote(at: Control, whose: str) -> None:
    """A dropped file stays its dropper's in the outbox:
    what is run again is what was taken up, or nothing.
    """
    at.drop("games", [{"id": "a", "metadata": {"n": 1}}])
    finished(at, "games")
    request = at.folder / "outbox/games/request.json"
    request.write_text(
        json.dumps({"id": "a", "first_prompt": "something else", "metadata": {"n": 2}})
    )
    if whose == "anybody's":
        request.chmod(0o666)
    else:
        os.chown(request, 31337, 31337)
    with at.spool.serving():
        assert at.answer("retry", "games/a")["batches"] == ["games-2"]
        at.until_finished("games-2")
        asked = (at.folder / "outbox/games-2/request.json").read_text()
        assert at.result("games-2", "a")["metadata"] == {"n": 1}
        assert "something else" not in asked
        at.order("prune", "--yes")
        refused = at.order("retry", "games", code=2)
        assert "may have changed it since" in refused
        assert "drop the file again" in refused
        assert at.answer("retry", "games-2")["batches"] == ["games-3"]
        at.until_finished("games-3")
        assert at.result("games-3", "a")["metadata"] == {"n": 1}


def collected(path: Path) -> None:
    """Do as a collector does."""
    subprocess.run(["rm", "-rf", str(path)], check=True)


def test_retry_in_a_directory_of_the_workspace(at: Control) -> None:
    """The same directory is used again; one that is gone,
    or no longer allowed, is refused before anything runs.
    """
    site = at.folder / "site"
    site.mkdir()
    if os.getuid() == 0:
        os.chown(site, 65534, 65534)
    at.drop("games", [{"dir": "site"}])
    finished(at, "games")
    with at.spool.serving():
        assert at.answer("retry", "games")["batches"] == ["games-2"]
        at.until_finished("games-2")
        assert at.result("games-2", "001")["dir"] == str(site)
        site.rmdir()
        assert "does not exist" in at.order("retry", "games", code=2)


# pause and resume, priority


@pytest.mark.sampled(1)
def test_pause_and_resume(at: Control, daemon: Callable[[], Any]) -> None:
    """What is paused stops and does not start, over a restart too,
    and `status` says how to go on; then it goes on.
    """
    at.drop("games", [{"id": "a", **SLOW}])
    taken_up(at, "games", running=1)
    with daemon():
        assert at.answer("pause", "games", "-m", "no money")["parked"] == 1
        assert at.answer("pause", "--provider", "standin")["parked"] == 1
        text = at.order("status")
        assert "batch games. no money" in text
        assert "batchd resume games" in text
        assert "batchd resume --provider standin" in text
        said = at.answer("status")
        assert {(p["scope"], p["name"]) for p in said["parked"]} == {
            ("batch", "games"),
            ("provider", "standin"),
        }
        assert "no money" in at.order("status", "games")
        at.order("pause", code=2)
        at.order("pause", "--all", "games", code=2)
        assert "nope" in at.order("pause", "nope", code=2)
        assert "nope" in at.order("resume", "--provider", "nope", code=2)
    with at.spool.serving():
        at.drop("more", [{}])
        at.until(lambda: "more" in at.outbox())
        time.sleep(0.3)
        assert at.statuses("games")["a"] != "running"
        assert at.statuses("more") == {"001": "queued"}
    with daemon():
        assert at.answer("resume", "--provider", "standin")["resumed"] == 1
        assert "games goes on" in at.order("resume", "games")
        assert at.answer("resume")["resumed"] == 0
        assert at.answer("status")["parked"] == []
    with at.spool.serving():
        at.until_finished("more")
        at.until_running("games", 1)
        assert at.answer("pause", "--all")["parked"] == 1
        at.until(lambda: at.statuses("games")["a"] == "parked")
        assert at.answer("resume")["resumed"] == 1
        at.until_running("games", 1)
    verbs = [line["verb"] for line in at.lines("command_done")]
    logged_ones = ["pause", "pause", "resume", "resume", "resume", "pause", "resume"]
    assert verbs == (logged_ones[-2:] if daemon is contextlib.nullcontext else logged_ones)


def test_pause_before_the_first_start(at: Control) -> None:
    """A spool on which no daemon has run yet can be paused; nothing else makes anything there."""
    at.order("cancel", "x", code=2)
    assert not at.state.exists()
    at.order("pause", "--all")
    at.drop("games", [{}])
    with at.spool.serving():
        at.until(lambda: "games" in at.outbox())
        time.sleep(0.3)
        assert at.statuses("games") == {"001": "queued"}
        at.order("resume")
        at.until_finished("games")


def test_an_order_without_a_daemon_prints_its_answer_and_nothing_else(at: Control) -> None:
    """What a daemon would log, as that others can look into the state directory, is not said;
    a refusal is one line, too.
    """
    at.order("pause", "--all")
    at.state.chmod(0o755)
    done = at.spool.batchd("resume", "--all")
    assert (done.stdout, done.stderr) == ("everything goes on\n", "")
    refused = at.spool.batchd("cancel", "never")
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert refused.stderr.startswith("batchd: there is no batch never")


@pytest.mark.sampled(1)
def test_priority_changes_who_is_next(at: Control, daemon: Callable[[], Any]) -> None:
    """Of tasks that wait, the one with the new, higher priority starts first;
    a batch as a whole, too.
    """
    with (at.folder / "config.toml").open("a") as file:
        file.write("[providers.standin.headers]\n")
    text = (at.folder / "config.toml").read_text().replace("processes = 2", "processes = 1")
    (at.folder / "config.toml").write_text(text)
    at.drop("games", [{"id": "h", **HANGS}, {"id": "a"}, {"id": "b"}, {"id": "c"}])
    at.drop("late", [{"id": "z"}])
    with at.spool.serving():
        at.until_running("games", 1)
        at.until(lambda: at.statuses("late"))
    with daemon():
        assert at.answer("priority", "games/c", "5") == {"tasks": 1}
        assert "1 task with priority 9" in at.order("priority", "late", "9")
        assert at.answer("priority", "games/b", "-5") == {"tasks": 1}
        at.order("priority", "games/c", "high", code=2)
        assert "whole number" in at.order("priority", "games/c", str(1 << 40), code=2)
        at.order("cancel", "games/h")
        assert "finished already" in at.order("priority", "games/h", "1", code=2)
        if daemon is at.spool.serving:
            at.until_finished("games")
    finished(at, "games")
    starts = {t: at.result("games", t)["timing"]["started_at"] for t in "abc"}
    starts["z"] = at.result("late", "z")["timing"]["started_at"]
    assert sorted(starts, key=lambda t: starts[t]) == ["z", "c", "a", "b"]


@pytest.mark.sampled(1)
def test_nice_adds_to_what_each_task_has(at: Control, daemon: Callable[[], Any]) -> None:
    """Of tasks that have not ended, ever again, and less than nothing lowers it; each keeps its
    distance to the others, and the best starts first. What does not fit changes nothing.
    """
    text = (at.folder / "config.toml").read_text().replace("processes = 2", "processes = 1")
    (at.folder / "config.toml").write_text(text)
    first = {"id": "h", "priority": 9, **HANGS}
    at.drop("games", [first, {"id": "a"}, {"id": "b", "priority": 3}, {"id": "c"}])
    at.drop("late", [{"id": "z"}])
    with at.spool.serving():
        at.until_running("games", 1)
        at.until(lambda: at.statuses("late"))
    with daemon():
        assert at.answer("nice", "late", "+4") == {"tasks": 1, "priorities": [4]}
        said = at.order("nice", "games/a", "games/b", "games/c", "+2")
        assert said == "games/a, games/b, games/c: 3 tasks with priorities 2, 5\n"
        assert at.order("nice", "games/c", "-5") == "games/c: 1 task with priority -3\n"
        assert "with priority -4" in at.order("nice", "games/c", "--", "-1")
        assert "whole number" in at.order("nice", "games", str((1 << 31) - 4), code=2)
        at.order("nice", "games", "more", code=2)
        assert "no batch never" in at.order("nice", "never", "1", code=2)
        assert at.answer("nice", "games", "late", "+1") == {
            "tasks": 5,
            "priorities": [-3, 3, 5, 6, 10],
        }
        at.order("cancel", "games/h")
        assert "finished already" in at.order("nice", "games/h", "1", code=2)
        if daemon is at.spool.serving:
            at.until_finished("games")
    finished(at, "games")
    if daemon is not contextlib.nullcontext:
        line = next(line for line in at.lines("command_done") if line["verb"] == "nice")
        assert (line["target"], line["by"], line["tasks"]) == (["late"], 4, 1)
    starts = {t: at.result("games", t)["timing"]["started_at"] for t in "abc"}
    starts["z"] = at.result("late", "z")["timing"]["started_at"]
    assert sorted(starts, key=lambda t: starts[t]) == ["b", "z", "a", "c"]


# prune


@pytest.mark.sampled(1)
def test_prune_shows_first_and_takes_only_what_has_finished(
    at: Control, daemon: Callable[[], Any]
) -> None:
    """A dry run changes nothing; with --yes journals go,
    figures and names stay, what is under way is not touched.
    """
    at.drop("games", [{}, {}])
    at.drop("open", [HANGS])
    with at.spool.serving():
        at.until_finished("games")
        at.until_running("open", 1)
    before = (at.state / "batchd.db").read_bytes()
    listed = at.answer("prune")
    assert [b["batch"] for b in listed["batches"]] == ["games"]
    assert listed["batches"][0]["bytes"] > 1000
    assert "add --yes" in at.order("prune", "--outbox")
    assert at.answer("prune", "--older-than", "1")["batches"] == []
    assert (at.state / "batchd.db").read_bytes() == before
    with daemon():
        assert at.answer("prune", "--older-than", "1", "--yes")["pruned"] == 0
        answer = at.answer("prune", "--yes")
        assert (answer["pruned"], answer["bytes"]) == (1, listed["batches"][0]["bytes"])
        with at.reader() as reader:
            assert reader.read(lookups.events, Ref("games", "001")) == []
            assert reader.read(lookups.events, Ref("open", "001"))
            row = reader.batch("games")
        assert row.completed == 2
        assert row.tally.input_tokens > 0
        assert (at.folder / "outbox/games/001.json").exists()
        assert "Nothing to prune" in at.order("prune")
        at.order("prune", "--older-than", "-1", code=2)
    at.drop("games", [{}])
    finished(at, "games-2")


def test_a_report_after_prune_lies_where_the_batch_was(at: Control) -> None:
    """Its folder is made again, what is gone is said, and the next prune takes it away;
    without an outbox it wants a file.
    """
    at.drop("games", [{}, {}])
    finished(at, "games")
    assert at.answer("prune", "--outbox", "--yes")["folders"] == 1
    page = at.folder / "outbox/games/report.html"
    done = at.spool.batchd("report", "games")
    assert (done.returncode, done.stdout.startswith(f"{page}: 2 tasks")) == (0, True)
    assert "prompts, answers and transcripts are missing" in done.stderr
    assert "prompts, answers and transcripts are missing" in page.read_text()
    assert not (at.folder / "report.html").exists()
    answer = at.answer("prune", "--outbox", "--yes")
    assert (answer["folders"], answer["problems"], page.parent.exists()) == (1, [], False)
    collected(at.folder / "outbox")
    assert "outbox, where games was, is gone: name a file" in at.order("report", "games", code=3)
    at.order("report", "games", "-o", "games.html")


def test_prune_takes_folders_away_whatever_agents_made_of_them(at: Control, tmp_path: Path) -> None:
    """Deep trees, folders without permissions, links and odd names go; what they point at stays.

    Names stay taken.
    """
    at.drop("games", [{}])
    at.drop("linked", [{}])
    at.drop("taken", [{}])
    finished(at, "games", "linked", "taken")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    work = at.folder / "outbox/games/001"
    _wreck(work, outside)
    (at.folder / "outbox/linked").rename(outside / "linked")
    (at.folder / "outbox/linked").symlink_to(outside / "linked")
    collected(at.folder / "outbox/taken")
    (at.folder / "outbox/taken").mkdir()
    (at.folder / "outbox/taken/thesis.txt").write_text("somebody's own")
    with at.spool.serving():
        done = at.spool.batchd("prune", "--outbox", "--yes", "--json")
        assert done.returncode == 1, done.stderr
        answer = json.loads(done.stdout)
        assert (answer["pruned"], answer["folders"]) == (3, 1)
        assert len(answer["problems"]) == 2
        assert "linked is left alone: it is a link" in done.stderr
        assert "taken is left alone" in done.stderr
        assert not (at.folder / "outbox/games").exists()
        assert (outside / "mine").read_text() == "mine"
        assert (outside / "linked/summary.json").exists()
        assert (at.folder / "outbox/taken/thesis.txt").exists()
        at.drop("games", [{}])
        at.until_finished("games-2")
    assert at.folders() == {"games-2", "linked", "taken"}


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_prune_gets_through_shut_folders_without_being_root(tmp_path: Path) -> None:
    """The daemon's own user removes what an agent of that user has shut."""
    top = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        work = top / "outbox/games/001"
        work.mkdir(parents=True)
        (work.parent / "summary.json").write_text('{"schema": "batchd/summary", "batch": "games"}')
        _wreck(work, tmp_path)
        subprocess.run(["chown", "-hR", "65534:65534", str(top)], check=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if not child:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(0 if PublishedFolder(str(top / "outbox"), "games").remove() == "" else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert list((top / "outbox").iterdir()) == []
    finally:
        collected(top)


def _wreck(work: Path, outside: Path) -> None:
    """Make of a folder what ordinary removal breaks on."""
    here = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    (work / "link").symlink_to(outside)
    (work / "loop").symlink_to("loop")
    os.mkfifo(work / "fifo")
    (work / "new\nline").write_text("x")
    (Path(os.fsdecode(os.fsencode(str(work)) + b"/\xff\xfe"))).mkdir()
    shut = work / "shut"
    (shut / "in").mkdir(parents=True)
    (shut / "in" / "file").write_text("x")
    (shut / "in").chmod(0)
    shut.chmod(0)


# tune


def test_tune_changes_a_running_daemon_until_it_ends(at: Control) -> None:
    """Each change takes effect, holds over SIGHUP, is shown,
    and can be taken back; the file is not touched.
    """
    text = (at.folder / "config.toml").read_text()
    at.drop("games", [{**HANGS} for _ in range(6)])
    with at.spool.serving() as process:
        at.until_running("games", 2)
        assert at.answer("tune") == {"overrides": {}}
        assert "pool.processes = 4" in at.order("tune", "pool.processes=4")
        at.until_running("games", 4)
        process.send_signal(signal.SIGHUP)
        at.until(lambda: at.lines("config_reloaded"))
        at.order("tune", "pool.agents_per_process=2", "agent.model=standin/steps-1")
        at.until_running("games", 6)
        at.drop("short", [{}])
        at.until(lambda: at.statuses("short"))
        assert at.answer("tune")["overrides"] == {
            "pool.processes": "4",
            "pool.agents_per_process": "2",
            "agent.model": "standin/steps-1",
        }
        at.until_finished("short")
        assert at.result("short", "001")["model"] == "standin/steps-1"
        assert "Nothing is changed" in at.order("tune", "--reset")
        at.drop("again", [{}])
        at.until(lambda: at.statuses("again"))
        with at.reader() as reader:
            assert reader.read(lookups.find_task, Ref("again", "001")).model == "standin/steps-2"
    assert (at.folder / "config.toml").read_text() == text
    lines = [line for line in at.lines("command_done") if line["verb"] == "tune"]
    assert [line.get("changes") for line in lines[:1]] == [{"pool.processes": "4"}]
    assert len(lines) == 3
    assert at.order("tune", "pool.processes=3", code=3).startswith("batchd: no daemon runs")


def test_a_shorter_heartbeat_kills_no_live_worker(at: Control) -> None:
    """Workers beat faster at once;
    one that is stopped is killed by the new measure, and its task goes on.
    """
    at.drop("games", [HANGS])
    with at.spool.serving():
        at.until_running("games", 1)
        at.order("tune", "pool.heartbeat_timeout_s=3")
        time.sleep(4.5)
        assert not at.lines("worker_died")
        (running,) = at.ask("status")["running"]
        os.kill(running["worker"], signal.SIGSTOP)
        at.until(lambda: at.lines("worker_died"))
        at.until(lambda: [r["attempt"] for r in at.ask("status")["running"]] == [2])


def test_tune_refuses_what_is_wrong_or_cannot_change(at: Control) -> None:
    """With the key's name and the reason; nothing is changed then,
    not even by the other changes of the order.
    """
    with at.spool.serving():
        for change, words in (
            ("pool.proceses=3", "do you mean processes"),
            ("pool.processes=many", "pool.processes"),
            ("pool.processes=-1", "greater than or equal to 0"),
            ("pool.processes=0", "without processes, and without [pool] machines"),
            ("agent.model=nowhere/x", "no provider 'nowhere'"),
            ("paths.outbox=/tmp/elsewhere", "cannot change while the daemon runs"),
            ("log.level=debug", "cannot change while the daemon runs"),
            ("spool.scan_s=1", "cannot change while the daemon runs"),
            *([("sandbox.user=no-such-user", "no-such-user")] if os.geteuid() == 0 else []),
            ("pool=3", "not SECTION.KEY"),
            ("providers.zz.rpm=5", "providers.zz.rpm: there is no provider zz (the known ones are"),
            ("providers.standing.rpm=5", "do you mean standin?"),
            ("models.standin/steps-2.context_window=5", "in quotes"),
            ("pool.processes", "not SECTION.KEY=VALUE"),
        ):
            done = at.spool.batchd("tune", "budget.per_day_usd=9", change)
            assert done.returncode in {2, 3}, change
            assert words in done.stderr, (change, done.stderr)
        assert at.answer("tune") == {"overrides": {}}
        secret = 'providers.standin.headers.X-Key="very-secret"'
        answer = at.order("tune", secret, 'models."standin/steps-2".input_usd_per_mtok=7.5')
        assert "very-secret" not in answer
        at.drop("games", [{}])
        at.until_finished("games")
        cost, usage = (at.result("games", "001")[k] for k in ("cost", "usage"))
        assert cost["input"] == pytest.approx(usage["input_tokens"] * 7.5e-6, rel=0.2)
    assert "very-secret" not in (at.folder / "daemon.log").read_text()


def test_every_section_that_can_be_tuned_takes_effect(at: Control) -> None:
    """What new tasks, calls, results and pauses go by, section by section."""
    changes = {
        "limits.max_iterations": "3",
        "limits.ceiling.max_calls": "7",
        "evaluation.by": "judge",
        "sandbox.network": "true",
        "spool.max_file_bytes": "4000",
        "workspace.allow": f'["{at.folder.parent}"]',
        "cost.compare": '["openai/gpt-4"]',
        "providers.standin.max_concurrent": "3",
        "budget.per_day_usd": "0.5",
        "store.retention_days": "0",
        "governor.max_retries": "0",
    }
    with at.spool.serving():
        at.order("tune", *(f"{k}={v}" for k, v in changes.items()))
        site = at.folder.parent / f"{at.folder.name}-site"
        site.mkdir()
        if os.getuid() == 0:
            os.chown(site, 65534, 65534)
        at.drop("ok", [{"network": True, "dir": str(site)}, {"model": "standin/500"}])
        at.until(lambda: at.statuses("ok"))
        with at.reader() as reader:
            spec = reader.read(lookups.find_task, Ref("ok", "001"))
        assert (spec.limits.max_iterations, spec.limits.max_calls) == (3, 7)
        assert (spec.evaluator, spec.network, spec.dir) == ("judge", True, str(site))
        at.drop("large", [{"metadata": {"x": "y" * 5000}}])
        at.until_finished("large")
        assert at.result("large", "summary")["status"] == "rejected"
        at.drop("cheap", [{"evaluator": "none"}])
        at.until_finished("cheap")
        assert [c["model"] for c in at.result("cheap", "001")["cost"]["compare"]] == [
            "openai/gpt-4"
        ]
        at.drop("dear", [{"limits": {"max_output_tokens": 900_000}}])
        at.until(lambda: at.statuses("dear") == {"001": "parked"})
    site.rmdir()


# With the daemon stopped


def test_offline_orders_start_nothing(at: Control) -> None:
    """No worker, no model call, no sandbox, no key:
    only the order's own work, wholly done when it returns.
    """
    at.drop("games", [{}, HANGS])
    at.order("pause", "--all")
    taken_up(at, "games")
    at.order("resume")
    broken = (
        (at.folder / "config.toml")
        .read_text()
        .replace("[providers.standin]", '[providers.standin]\napi_key_file = "nowhere"')
    )
    (at.folder / "config.toml").write_text(f'{broken}[sandbox]\nuser = "no-such-user"\n')
    assert at.answer("priority", "games", "3") == {"tasks": 2}
    assert at.answer("cancel", "games/001")["cancelled"] == 1
    assert (at.folder / "outbox/games/001.json").exists()
    assert not (at.folder / "outbox/games/summary.json").exists()
    assert at.answer("cancel", "games")["cancelled"] == 1
    assert at.result("games", "summary")["counts"]["cancelled"] == 2
    assert not at.lines("worker_started")[1:]  # the one that the daemon kept warm
    assert not at.lines("task_started")
    assert not (at.state / "control.sock").exists()


def test_offline_orders_try_no_parked_provider(at: Control, model_server: str) -> None:
    """A provider that was parked is tried by the next daemon, not by an order;
    nor does another's task begin.
    """
    with (at.folder / "config.toml").open("a") as file:
        file.write(f'[providers.other]\nbase_url = "{model_server}"\n')
    at.drop("games", [{"model": "standin/401"}, {"model": "other/hang"}])
    with at.spool.serving():
        at.until(lambda: sorted(at.statuses("games").values()) == ["parked", "running"])
    started = len(at.lines("task_started")), len(at.lines("worker_started"))
    for order in (["priority", "games", "3"], ["resume", "--provider", "standin"]):
        at.order(*order)
    assert (len(at.lines("task_started")), len(at.lines("worker_started"))) == started
    assert sorted(at.statuses("games").values()) == ["parked", "queued"]


def test_a_spool_whose_holder_does_not_answer(at: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order waits for a daemon that starts;
    where the holder stays silent, it says who that is, and does nothing.
    """
    at.drop("games", [HANGS])
    taken_up(at, "games", running=1)
    monkeypatch.setattr(orders, "_CHANGING_S", 0.3)
    held = acquire(at.state)
    try:
        with pytest.raises(SpoolLockedError, match=rf"{os.getpid()}, which does not answer"):
            orders.ask(at.folder / "config.toml", control.Cancel(target="games"))
    finally:
        release(held)
    held = acquire(at.state)
    threading.Timer(0.2, release, [held]).start()
    monkeypatch.setattr(orders, "_CHANGING_S", 30)
    answer = orders.ask(at.folder / "config.toml", control.Cancel(target="games"))
    assert answer == control.Cancelled(cancelled=1)


# A full disk


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["limit", *(["disk"] if os.geteuid() == 0 else [])])
def test_an_order_that_cannot_be_kept_is_refused(at: Control, way: str) -> None:
    """While the store's disk is full it is answered at once, with the cause;
    nothing of it happens later.
    """
    orders = [
        *(("pause", "--all"), ("pause", "games"), ("resume",), ("retry", "past")),
        *(("cancel", "games/001"), ("cancel", "games"), ("priority", "games", "7")),
        ("prune", "--yes"),
    ]
    at.drop("past", [{}])
    at.drop("games", [HANGS, HANGS, HANGS, HANGS])
    with full_disk(at.state, way) as (fill, empty), at.spool.serving() as process:
        at.until_finished("past")
        at.until_running("games", 2)
        fill(process.pid)
        for order in orders:
            # While there is no room: what waited for some would wait for ever.
            assert "the order is not carried out: " in at.order(*order, code=3), order
        assert at.ask("status")["parked"] == []
        empty(process.pid)
        time.sleep(2)  # longer than a write that failed waits
        assert at.ask("status")["parked"] == []
        assert sorted(at.statuses("games").values()) == ["queued", "queued", "running", "running"]
        assert at.outbox() == {"past", "games"}
        assert at.answer("cancel", "games")["cancelled"] == 4


def test_a_run_that_has_no_room_leaves_no_folder(at: Control) -> None:
    """Where the store takes small writes alone, a large run's name in the outbox is given back;
    the next run gets it.
    """
    at.drop(
        "past", [{"first_prompt": random.Random(i).randbytes(300_000).hex()} for i in range(20)]
    )
    log = at.state / "batchd.db-wal"
    with full_disk(at.state, "limit") as (_, empty), at.spool.serving() as process:
        at.until_finished("past")
        at.until(lambda: log.stat().st_size == 0)
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2 << 20, hard))
        assert "the order is not carried out: " in at.order("retry", "past", code=3)
        assert at.folders() == {"past"}
        empty(process.pid)
        assert at.answer("retry", "past")["batches"] == ["past-2"]
        at.until_finished("past-2")


def test_a_name_that_a_killed_order_had_reserved_is_given_back(at: Control) -> None:
    """A daemon finds the empty folders of its own killed ones by their mark;
    those of others stay, and what holds more.
    """
    at.drop("past", [{}])
    with at.spool.serving():
        at.until_finished("past")
    own = claims.mark(at.state)
    leftovers = {
        "past-2": (marked(ulid(), own), False),
        "past-3": (marked(ulid(), own) + "-1", False),
        "past-4": (marked(ulid(), own), True),
        "past-5": (marked(ulid(), own ^ 1), False),
    }
    for name, (claim, more) in leftovers.items():
        folder = at.folder / "outbox" / name
        folder.mkdir()
        (folder / f".claim-{claim}").touch()
        if more:
            (folder / "notes.txt").touch()
    with at.spool.serving():
        assert at.folders() == {"past", "past-4", "past-5"}
        assert at.answer("retry", "past")["batches"] == ["past-2"]


@contextlib.contextmanager
def full_disk(state: Path, way: str) -> Iterator[tuple[Callable[[int], None], ...]]:
    """Give ways to fill the disk of a state directory under a daemon, and to make room on it."""
    if way == "limit":  # what a full disk is to those who may not mount one

        def limit(pid: int, size: int) -> None:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size < 0 else size, hard))

        yield lambda pid: limit(pid, 4096), lambda pid: limit(pid, -1)
        return
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "batchd-test", str(state)]
    subprocess.run(mount, check=True)
    ballast = state / "ballast"

    def fill(_pid: int) -> None:
        with contextlib.suppress(OSError), ballast.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))

    try:
        yield fill, lambda _pid: ballast.unlink()
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


# The socket


@pytest.mark.parametrize("left", [None, "not a socket"], ids=["deleted", "exchanged"])
def test_a_socket_that_was_taken_away_is_made_again(at: Control, left: str | None) -> None:
    """The daemon notices: orders reach it as before, those whose answer is under way too."""
    with at.spool.serving() as process:
        address = at.state / "control.sock"
        with _connected(at.state) as early:
            address.unlink()
            if left is not None:
                address.write_text(left)
            at.order("pause", "--all")
            assert at.ask("status")["pid"] == process.pid
            assert address.stat().st_mode & 0o777 == 0o600
            early.sendall(b'{"verb": "status"}\n')
            assert b'"ok": true' in early.recv(1 << 16)
    assert not address.exists()


def test_a_socket_survives_rude_and_many_clients(at: Control) -> None:
    """Garbage, half a line, a line without end, silence, a hang-up:
    each is answered or let go, and others are served.
    """
    with at.spool.serving():
        quiet = [_connected(at.state) for _ in range(50)]
        for data, answer in (
            (b"\xff\xfe\x00garbage\n", "not a request"),
            (b"[1, 2]\n", "not a request"),
            (b'{"verb": ["cancel"]}\n', "not a request"),
            (b'{"verb": "cancel", "target": {"a": 1}}\n', "needs a target"),
            (b'{"verb": "priority", "target": "x", "priority": 1e400}\n', "whole number"),
            (b"[" * 100_000 + b"\n", "not a request"),
            (b'{"verb": "status", "x": "' + b"y" * (1 << 20) + b'"}\n', ""),
        ):
            said = _said(at.state, data)
            assert answer in said, (data[:40], said)
            assert '"ok": true' not in said
        # Cut off before its end, it may have been meant otherwise.
        assert _said(at.state, b'{"verb": "pause", "scope": "all"}') == ""
        assert at.ask("status")["parked"] == []
        for _ in range(20):
            with _connected(at.state) as sock:
                sock.sendall(b'{"verb": "status"}\n' * 50)
        answers: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(at.ask("status"))) for _ in range(200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(answers) == 200
        for sock in quiet:
            sock.close()
        mode = (at.state / "control.sock").stat().st_mode
        assert mode & 0o777 == 0o600
    assert "error" not in {line.get("level") for line in at.lines("command_refused")}


def test_the_socket_speaks_as_it_always_has(at: Control) -> None:
    """To the letter, for clients of any version;
    a line of the log for each order, and for one that is none.
    """
    at.drop("games", [HANGS, HANGS])
    verbs = (
        "cancel, check, detach, nice, pause, priority, prune, resume, retry, status, submit, tune"
    )
    wrong = r"priority is \"high\": a priority is a whole number; higher goes first"
    said = [
        ('{"verb": "priority", "target": "games", "priority": 3}', '"ok": true, "tasks": 2'),
        (
            '{"verb": "pause", "scope": "batch", "name": "games"}',
            '"ok": true, "parked": 2, "judged": 0',
        ),
        (
            '{"verb": "resume", "scope": "", "name": ""}',
            '"ok": true, "resumed": 1, "trying": [], "held": []',
        ),
        ('{"verb": "cancel", "target": ["games"]}', '"ok": true, "cancelled": 2, "ended": []'),
        (
            '{"verb": "retry", "target": "games", "failed": true}',
            '"ok": true, "runs": [{"batch": "games-2", "retry_of": "games", "tasks": 2}], "batches": ["games-2"]',
        ),
        (
            '{"verb": "prune", "older_than_days": 1}',
            '"ok": true, "pruned": 0, "bytes": 0, "folders": 0, "folder_bytes": 0, "mirrors": 0, "mirror_bytes": 0, "problems": []',
        ),
        ('{"verb": "tune"}', '"ok": true, "overrides": {}'),
        (
            '{"verb": "dance"}',
            f'"ok": false, "error": "not a request; the verbs are {verbs}", "exit_code": 2',
        ),
        (
            '{"verb": "cancel", "target": "games"}',
            '"ok": true, "cancelled": 0, "ended": [{"target": "games", "counts": {"cancelled": 2}}]',
        ),
        (
            '{"verb": "priority", "target": "games", "priority": "high", "uid": 7}',
            f'"ok": false, "error": "{wrong}", "exit_code": 2',
        ),
    ]
    with at.spool.serving():
        at.until_running("games", 2)
        for line, answer in said:
            got = _said(at.state, line.encode() + b"\n")
            assert got == f'{{{answer}, "batchd": "{__version__}"}}\n', line
    done = [line["verb"] for line in at.lines("command_done")]
    assert done == ["priority", "pause", "resume", "cancel", "retry", "prune", "cancel"]
    refused = at.lines("command_refused")
    assert [(line["verb"], line["target"], line.get("priority")) for line in refused] == [
        ("priority", "games", "high"),
    ]
    assert {line["uid"] for line in refused} == {os.getuid()}


def _connected(state: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    here = os.open(state, os.O_PATH)
    try:
        sock.connect(f"/proc/self/fd/{here}/control.sock")
    finally:
        os.close(here)
    return sock


def _said(state: Path, data: bytes) -> str:
    """Send, close one's own half, and return what comes back."""
    with _connected(state) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return sock.makefile("rb").read().decode()
    return ""


def test_a_bug_in_a_verb_is_an_answer(tmp_path: Path) -> None:
    """The client learns that it is batchd's fault, and the next request is served."""

    class Breaks:
        """Commands with a bug."""

        async def carry_out(self, *_asked: object) -> Any:
            """Break."""
            raise RuntimeError("a bug")

        def refused(self, *_refused: object) -> None:
            """Leave no line."""

    async def scenario() -> None:
        server = Server(tmp_path, Breaks())
        await server.start()
        for _ in range(2):
            with pytest.raises(BatchdError, match="error inside batchd") as caught:
                await asyncio.to_thread(control.ask, tmp_path, control.AskStatus())
            assert caught.value.exit_code == 1
        await server.stop()
        with pytest.raises(NoDaemonError):
            control.ask(tmp_path, control.AskStatus())

    asyncio.run(scenario())


def test_a_daemon_of_another_version_is_understood(tmp_path: Path) -> None:
    """It hears what every version says, and may answer more;
    what is no answer to a command is said to be none.
    """
    heard: list[bytes] = []
    versions: list[str] = []
    answers = [
        b'{"ok": true, "parked": 1, "mood": ["good"], "batchd": "99.0"}\n',
        b'{"ok": true, "done": 1}\n',
    ]

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                heard.append(stream.readline())
                connection.sendall(answer)

    pause = control.Pause(scope=Scope.ALL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        sockets.bind(listener, tmp_path / "control.sock")
        listener.listen()
        daemon = threading.Thread(target=serve, args=(listener,))
        daemon.start()
        assert control.ask(tmp_path, pause, heed=versions.append) == control.Paused(parked=1)
        with pytest.raises(BatchdError, match=r"does not understand .*parked.*: use the program"):
            control.ask(tmp_path, pause, heed=versions.append)
        daemon.join(PATIENCE_S)
    line = b'{"verb": "pause", "scope": "all", "name": "", "message": ""}\n'
    assert (heard, versions) == ([line, line], ["99.0", ""])


def test_an_order_that_adds_is_given_once(at: Control) -> None:
    """Where the daemon ends before it answers, others are carried out again; this one may count
    twice then, so that the command says it.
    """
    at.state.mkdir(mode=0o700, exist_ok=True)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            stream.readline()

    for order, said in (("nice", "before it answered"), ("priority", "nothing has run on")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            sockets.bind(listener, at.state / "control.sock")
            listener.listen()
            daemon = threading.Thread(target=serve, args=(listener,))
            daemon.start()
            assert said in at.order(order, "games", "5", code=3 if order == "nice" else 2)
            daemon.join(PATIENCE_S)
        (at.state / "control.sock").unlink()


def test_a_queue_of_clients_that_is_full_is_waited_for(tmp_path: Path) -> None:
    """More clients than the kernel lets wait are not refused;
    a daemon that never answers is reported as such.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        sockets.bind(listener, tmp_path / "control.sock")
        listener.listen(0)
        waiting = [_connected(tmp_path)]
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match="does not answer"):
            control.request(tmp_path, "status", timeout_s=0.3)
        assert 0.2 < time.monotonic() - began < PATIENCE_S
        for sock in waiting:
            sock.close()


# Dependencies and directories, through a whole daemon


def test_order_and_directories_hold_over_restart_and_retry(at: Control) -> None:
    """What comes after something never begins before its end,
    and one directory never has two tasks, whatever happens between.
    """
    site = at.folder / "site"
    (site / "deep").mkdir(parents=True)
    if os.getuid() == 0:
        for path in (site, site / "deep"):
            os.chown(path, 65534, 65534)
    slow = {"model": "standin/latency-0.15+steps-3"}
    tasks = [
        {"id": "a", **slow},
        {"id": "b", "after": ["a"], **slow},
        {"id": "c", "after": ["b"], **slow},
        {"id": "s1", "dir": "site", **slow},
        {"id": "s2", "dir": "site/deep", **slow},
        {"id": "s3", "dir": "site", **slow},
    ]
    text = (at.folder / "config.toml").read_text().replace("processes = 2", "processes = 6")
    (at.folder / "config.toml").write_text(text)
    at.drop("games", tasks)
    with at.spool.serving() as process:
        at.until_running("games", 2)
        process.kill()
        process.wait()
    finished(at, "games")
    _in_order(at, "games")
    with at.spool.serving() as process:
        at.order("retry", "games")
        at.until_running("games-2", 2)
        process.kill()
        process.wait()
    finished(at, "games-2")
    _in_order(at, "games-2")


def _in_order(at: Control, batch: str) -> None:
    spans: dict[str, Mapping[str, str]] = {
        t: at.result(batch, t)["timing"] for t in ("a", "b", "c", "s1", "s2", "s3")
    }
    assert {at.result(batch, t)["status"] for t in spans} == {"completed"}
    assert spans["a"]["finished_at"] <= spans["b"]["started_at"]
    assert spans["b"]["finished_at"] <= spans["c"]["started_at"]
    together = sorted((spans[t]["started_at"], spans[t]["finished_at"]) for t in ("s1", "s2", "s3"))
    for (_, end), (start, _) in itertools.pairwise(together):
        assert end <= start
