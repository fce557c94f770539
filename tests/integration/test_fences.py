"""The fences around a daemon's processes: who may live, speak and run,
each shown with real processes and real signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import patience
import pytest
import warm
from dropping import batch_done, submit
from loglines import logged
from patience import PATIENCE_S
from weather import hanging

from batchd import config, control
from batchd.daemon import Daemon, Listener
from batchd.errors import NoDaemonError
from batchd.events import Event
from batchd.pool import local
from batchd.records import Ref
from batchd.version import __version__

pytestmark = pytest.mark.in_turns

_HERE = Path(__file__).parent

_CONFIG = """\
[agent]
model = "standin/steps-3"
[providers.standin]
base_url = "{base_url}"
[evaluation]
by = "none"
[governor]
max_retries = 1
first_backoff_s = 0.05
[pool]
heartbeat_timeout_s = 2.0
"""


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers find ``scripted_agents``."""
    monkeypatch.syspath_prepend(str(_HERE))


def configured(folder: Path, base_url: str, **pool: object) -> config.Config:
    """Return a configuration with these settings of the pool, which is written too."""
    path = folder / "config.toml"
    lines = "".join(f"{key} = {value}\n" for key, value in pool.items())
    path.write_text(_CONFIG.format(base_url=base_url) + lines)
    return config.load(path, {})


def batch(*prompts: str, **more: Any) -> bytes:
    """Return a task file with a task for each prompt."""
    return json.dumps({"tasks": [{"first_prompt": p, **more} for p in prompts]}).encode()


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of batch ``b`` by task."""
    found = (folder / "outbox/b").glob("[0-9]*.json")
    return {p.stem: json.loads(p.read_bytes()) for p in found}


def attempts(folder: Path) -> list[tuple[int, str, int]]:
    """Return process, task and number of each attempt, as the agents themselves noted them."""
    lines = (folder / "outbox/b/attempts").read_text().splitlines()
    return [(int(pid), task, int(n)) for pid, task, n in map(str.split, lines)]


def work_off(
    settings: config.Config, data: bytes, agent: str = "batchd.agent.loop:run", *listeners: Listener
) -> None:
    """Run a daemon until a batch is done."""

    async def scenario() -> None:
        async with Daemon(settings, watch=False, agent=agent, listeners=listeners) as daemon:
            await submit(daemon, "b.json", data)
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")

    asyncio.run(scenario())


def alive(pid: int) -> bool:
    """Return whether a process runs, or is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> float:
    """Wait until something outside this process is so; return how long it took."""
    begun = time.monotonic()
    patience.until(condition, within_s=timeout_s)
    return time.monotonic() - begun


@contextlib.contextmanager
def serving(
    folder: Path, agent: str = "batchd.agent.loop:run", *more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon with scripted agents as a process; it is killed at the end, if it still runs."""
    script = [sys.executable, "-m", "scripted_daemon", str(folder / "config.toml")]
    paths = os.pathsep.join([str(_HERE), str(_HERE.parents[1])])
    with (folder / "log").open("ab") as log:
        process = warm.Popen(
            [*script, agent, *more], stderr=log, env={**os.environ, "PYTHONPATH": paths}
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def status(folder: Path) -> dict[str, Any]:
    """Return what a daemon says of itself; nothing where there is none."""
    try:
        return control.request(folder / ".batchd", "status")
    except NoDaemonError:
        return {}


def workers(folder: Path) -> list[int]:
    """Return the daemon's workers that are up."""
    return [w["pid"] for w in status(folder).get("workers", ()) if w["pid"] and w["rss"]]


def drop(folder: Path, data: bytes) -> None:
    """Drop a batch ``b`` into the inbox."""
    (folder / "new").write_bytes(data)
    (folder / "inbox").mkdir(exist_ok=True)
    (folder / "new").rename(folder / "inbox/b.json")


def log(base_url: str) -> list[dict[str, Any]]:
    """Return every request by the model server's own log."""
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/log") as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


# No worker outlives its daemon


@pytest.mark.sampled(2)
@pytest.mark.parametrize("state", ["idle", "working", "spinning", "stopped"])
def test_a_worker_dies_with_its_daemon(tmp_path: Path, slow_server: str, state: str) -> None:
    """The kernel ends it within a second of the daemon's SIGKILL,
    also where it cannot run a line of code.
    """
    configured(tmp_path, slow_server, processes=1)
    agent = "scripted_agents:spins" if state == "spinning" else "batchd.agent.loop:run"
    with serving(tmp_path, agent) as daemon:
        until(lambda: workers(tmp_path))
        (worker,) = workers(tmp_path)
        if state != "idle":
            drop(tmp_path, batch("x"))
            until(lambda: status(tmp_path)["tasks"]["running"])
        if state == "spinning":
            cpu = _cpu_s(worker)
            until(lambda: _cpu_s(worker) > cpu + 0.2)
        if state == "stopped":
            os.kill(worker, signal.SIGSTOP)
        daemon.kill()
        daemon.wait()
        until(lambda: not alive(worker))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_no_daemon_starts_before_the_last_ones_workers_are_gone(
    tmp_path: Path, model_server: str, *, named: bool
) -> None:
    """Even where the kernel's signal did not reach one:
    the spool's lock is the second fence, without its file too.
    """
    configured(tmp_path, model_server, processes=1)
    mark = tmp_path / "outbox/b/clings"
    with serving(tmp_path, "scripted_agents:clings") as daemon:
        drop(tmp_path, batch("x"))
        until(lambda: mark.exists() and mark.read_text())
        daemon.kill()
    worker = int(mark.read_text())
    time.sleep(0.2)
    assert alive(worker), "the agent is to show what happens where the first fence fails"
    if not named:
        (tmp_path / ".batchd/lock").unlink()
    with serving(tmp_path) as second:
        assert second.wait(PATIENCE_S) != 0
        assert alive(worker)
        who = "workers of a daemon that died" if named else "another process"
        assert f"in use by {who}" in (tmp_path / "log").read_text()
    until(lambda: not alive(worker))
    with serving(tmp_path) as third:
        until((tmp_path / "outbox/b/summary.json").exists)
        third.terminate()
        assert third.wait(PATIENCE_S) == 0
    assert [r["status"] for r in results(tmp_path).values()] == ["completed"]


def test_a_second_daemon_is_refused_while_the_first_one_is_stopped(
    tmp_path: Path, slow_server: str
) -> None:
    """A daemon that stands still for longer than any timeout is still the only one,
    and goes on unharmed.
    """
    configured(tmp_path, slow_server, processes=1)
    with serving(tmp_path) as first:
        drop(tmp_path, batch("x", "y", "z"))
        until(lambda: len(log(slow_server)) > 1)
        (worker,) = workers(tmp_path)
        first.send_signal(signal.SIGSTOP)
        with serving(tmp_path) as second:
            assert second.wait(PATIENCE_S) != 0
        assert f"in use by the process {first.pid}" in (tmp_path / "log").read_text()
        time.sleep(2.5)  # longer than it would wait for a heartbeat
        first.send_signal(signal.SIGCONT)
        until((tmp_path / "outbox/b/summary.json").exists)
        assert workers(tmp_path) == [worker], "it was late itself, and may not blame the worker"
    assert {r["attempts"] for r in results(tmp_path).values()} == {1}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("left", [None, "", "1\n"], ids=["deleted", "empty", "another"])
def test_a_second_daemon_is_refused_whatever_becomes_of_the_lock_file(
    tmp_path: Path, model_server: str, left: str | None
) -> None:
    """Deleted, or another file in its place: it lets no second daemon in."""
    configured(tmp_path, model_server, processes=1)
    lock = tmp_path / ".batchd/lock"
    with serving(tmp_path) as first:
        until(lambda: status(tmp_path))
        lock.unlink()
        if left is not None:
            lock.write_text(left)
        with serving(tmp_path) as second:
            assert second.wait(PATIENCE_S) != 0
        assert f"{lock.parent} is in use by" in (tmp_path / "log").read_text()
        drop(tmp_path, batch("x"))
        until((tmp_path / "outbox/b/summary.json").exists)
        first.terminate()
        assert first.wait(PATIENCE_S) == 0


# Who may speak


def test_what_an_older_attempt_says_is_refused(tmp_path: Path, slow_server: str) -> None:
    """Records and requests under another attempt's number are answered with Nack;
    nothing of them is stored or paid.
    """
    settings = configured(tmp_path, slow_server, processes=1)
    work_off(settings, batch("x"), "scripted_agents:speaks_for_another_attempt")
    assert (tmp_path / "outbox/b/refused").read_text() == "2"
    (result,) = results(tmp_path).values()
    assert (result["status"], result["usage"]["unsettled_calls"]) == ("completed", 0)
    assert len(log(slow_server)) == 3
    assert "Suspended" not in (tmp_path / "outbox/b/001.jsonl").read_text()


def test_a_silent_worker_is_killed_and_only_its_task_runs_again(
    tmp_path: Path, slow_server: str
) -> None:
    """A stopped process is ended by its heartbeat; the other worker never notices."""
    settings = configured(tmp_path, slow_server, processes=2)

    class Stopping(Listener):
        """Stops the worker of the first task that begins."""

        def __init__(self) -> None:
            self.stopped = 0
            self.daemon: Daemon

        def task_event(self, ref: Ref, event: Event) -> None:
            if not self.stopped:
                (active,) = (a for a in self.daemon.attempts.active if a.ref == ref)
                self.stopped = active.worker.pid
                os.kill(self.stopped, signal.SIGSTOP)

    async def scenario() -> int:
        stopping = Stopping()
        daemon = stopping.daemon = Daemon(settings, watch=False, listeners=[stopping])
        async with daemon:
            await submit(daemon, "b.json", batch("x", "y"))
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")
        return stopping.stopped

    stopped = asyncio.run(scenario())
    assert not alive(stopped)
    found = results(tmp_path).values()
    assert [r["status"] for r in found] == ["completed"] * 2
    assert sorted(r["attempts"] for r in found) == [1, 2]


def test_a_heart_that_breaks_ends_its_worker_with_the_cause(
    tmp_path: Path, slow_server: str
) -> None:
    """Not as one that fell silent: the traceback is on stderr, and its task runs again."""
    configured(tmp_path, slow_server, processes=1)
    with serving(tmp_path, "scripted_agents:breaks_the_heart") as daemon:
        drop(tmp_path, batch("x"))
        until((tmp_path / "outbox/b/summary.json").exists)
        daemon.terminate()
        assert daemon.wait(PATIENCE_S) == 0
    assert "Bad file descriptor" in (tmp_path / "log").read_text()
    assert [(r["status"], r["attempts"]) for r in results(tmp_path).values()] == [("completed", 2)]


def test_a_watch_over_workers_that_breaks_ends_the_daemon(tmp_path: Path, slow_server: str) -> None:
    """With what broke it: without it a worker that hangs would do so for ever."""
    settings = configured(tmp_path, slow_server, processes=1)

    async def scenario() -> None:
        async with Daemon(settings, watch=False) as daemon:
            del daemon.pool._settings  # as by a bug
            await submit(daemon, "b.json", batch("x"))
            await batch_done(daemon, "b")

    with pytest.raises(AttributeError, match="_settings"):
        asyncio.run(asyncio.wait_for(scenario(), PATIENCE_S))


def test_a_reload_while_no_process_can_be_started_costs_no_worker(
    tmp_path: Path, slow_server: str
) -> None:
    """Where nothing changes for its sandbox, a worker need not try it again:
    that may be impossible just now.
    """
    settings = configured(tmp_path, slow_server, processes=1)

    async def scenario() -> None:
        async with Daemon(settings, watch=False) as daemon:
            await submit(daemon, "b.json", batch("a", model="standin/latency-1.5+steps-2"))
            running = daemon.attempts
            await asyncio.to_thread(until, lambda: [a for a in running.active if a.step == "model"])
            (worker,) = daemon.pool.workers
            before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, before[1]))
            daemon.reloader.again()
            await asyncio.sleep(0.5)
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")
            assert daemon.pool.workers == (worker,)

    asyncio.run(scenario())
    assert [r["attempts"] for r in results(tmp_path).values()] == [1]


def test_a_reload_of_the_sandbox_that_a_worker_cannot_try_costs_no_attempt(
    tmp_path: Path, slow_server: str
) -> None:
    """A worker without a free descriptor ends what it works on,
    under the sandbox it began with, and takes nothing more.
    """
    settings = configured(tmp_path, slow_server, processes=1, agents_per_process=2, max_attempts=1)

    async def scenario() -> None:
        async with Daemon(settings, watch=False) as daemon:
            await submit(daemon, "a.json", batch("a", model="standin/latency-1.5+steps-2"))
            running = daemon.attempts
            await asyncio.to_thread(until, lambda: [a for a in running.active if a.step == "model"])
            (worker,) = daemon.pool.workers
            before = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, before[1]))
            await daemon.reloader.tune({"sandbox.max_processes": "77"}, reset=False)
            await submit(daemon, "b.json", batch("b"))
            await asyncio.to_thread(until, lambda: worker.retiring)
            resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, before)
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "a")
                await batch_done(daemon, "b")

    asyncio.run(scenario())
    a, b = (json.loads((tmp_path / f"outbox/{name}/001.json").read_bytes()) for name in "ab")
    # It was given to a worker twice; that counts for nothing:
    # the one attempt that each has would be over.
    assert (a["status"], a["attempts"], b["status"]) == ("completed", 1, "completed")


def test_a_worker_of_another_version_gets_no_task(
    tmp_path: Path,
    model_server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after an upgrade under a running daemon:
    each side compares, the log says both versions, nothing is lost.
    """
    settings = configured(tmp_path, model_server, processes=1)

    async def scenario() -> None:
        async with Daemon(settings, watch=False) as daemon:
            monkeypatch.setattr("batchd.pool.supervisor.__version__", "0.0.0")
            for worker in daemon.pool.workers:
                worker.kill("the test wants a new one")
            await submit(daemon, "b.json", batch("x"))
            await asyncio.to_thread(until, lambda: daemon.pool._failures > 1)
            assert not results(tmp_path)
            monkeypatch.undo()
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")

    asyncio.run(scenario())
    (result,) = results(tmp_path).values()
    assert result["status"] == "completed"
    assert result["usage"]["unsettled_calls"] == 0
    assert f"it is batchd {__version__}, the daemon 0.0.0" in capsys.readouterr().out


# Who may run again


def test_a_task_that_never_gets_anywhere_is_given_up(tmp_path: Path, slow_server: str) -> None:
    """Deaths of its own worker count, also those that come before any event."""
    settings = configured(tmp_path, slow_server, processes=1, max_attempts=5)
    work_off(settings, batch("x"), "scripted_agents:dies_before_any_event")
    (result,) = results(tmp_path).values()
    assert (result["status"], result["reason"]) == ("error", "worker_crashed")
    assert "its worker died 5 times" in result["error"]["message"]
    assert result["attempts"] == 5
    assert not log(slow_server)


@pytest.mark.long
def test_daemons_that_die_before_their_workers_are_up_cost_no_task_an_attempt(
    tmp_path: Path, slow_server: str
) -> None:
    """A task that was meant for a worker that never came has not been tried,
    however often that happens.
    """
    configured(tmp_path, slow_server, processes=1)
    drop(tmp_path, batch("x"))
    for _ in range(12):
        with serving(tmp_path, "never_up:run") as daemon:
            until(lambda: status(tmp_path).get("tasks", {}).get("running"))
            daemon.kill()
            daemon.wait()
    with serving(tmp_path):
        until((tmp_path / "outbox/b/summary.json").exists)
    (result,) = results(tmp_path).values()
    assert result["status"] == "completed", result["error"]
    assert result["attempts"] == 1


def test_a_poisonous_task_takes_its_neighbours_with_it_once_at_most(
    tmp_path: Path, slow_server: str
) -> None:
    """From its second attempt on it has a process of its own,
    and ends after ``max_attempts`` deaths.
    """
    settings = configured(tmp_path, slow_server, processes=2, agents_per_process=4, max_attempts=3)
    prompts = ["work 1", "work 2", "die", "work 4", "work 5", "work 6", "work 7"]
    work_off(settings, batch(*prompts), "scripted_agents:notes_its_process")
    found = results(tmp_path)
    poison = found.pop("003")
    assert (poison["reason"], poison["attempts"]) == ("worker_crashed", 3)
    assert {r["status"] for r in found.values()} == {"completed"}
    assert max(r["attempts"] for r in found.values()) == 2
    ran = attempts(tmp_path)
    again = [pid for pid, task, n in ran if task == "003" and n > 1]
    assert len(set(again)) == 2
    for pid in again:
        assert [task for p, task, _ in ran if p == pid][-1] == "003"


def test_the_death_of_the_fork_server_stops_no_worker(tmp_path: Path, slow_server: str) -> None:
    """Live workers go on with their tasks, and a new fork server makes the next worker."""
    settings = configured(tmp_path, slow_server, processes=2, max_tasks_per_process=2)

    async def scenario() -> tuple[int, int]:
        async with Daemon(
            settings, watch=False, agent="scripted_agents:notes_its_process"
        ) as daemon:
            await submit(daemon, "b.json", batch(*"abcdefgh"))
            await asyncio.to_thread(until, lambda: len(log(slow_server)) > 2)
            first = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")
            return first, forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]

    first, second = asyncio.run(scenario())
    assert first != second
    assert Counter(r["status"] for r in results(tmp_path).values()) == {"completed": 8}
    ran = attempts(tmp_path)
    assert sorted(task for _, task, _ in ran) == sorted(results(tmp_path)), "no task ran twice"
    assert len({pid for pid, _, _ in ran}) >= 4
    assert len(log(slow_server)) == 24


def test_a_worker_that_outlived_its_fork_server_is_no_exit_code(spool: Any) -> None:
    """How it ended is not known: that is said, and no code is made up;
    its task goes on in the next one.
    """
    path = spool.write("b.json", [{"first_prompt": "x", "model": "standin/latency-1+steps-2"}])
    with spool.serving() as daemon:
        spool.batchd("submit", path)
        state = spool.folder / ".batchd"
        until(lambda: [r for r in control.request(state, "status")["running"] if r["worker"]])
        worker = control.request(state, "status")["running"][0]["worker"]
        server = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert server not in {1, daemon.pid}
        os.kill(server, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        until((spool.folder / "outbox/b/summary.json").exists)
    # Another one may have been about to start, and have died with the fork server.
    died = logged(spool.folder / "daemon.log", "worker_died")
    (cause,) = [line["cause"] for line in died if line["worker"] == worker]
    assert "how it ended is not known" in cause
    assert spool.result("b", "001")["status"] == "completed"


def _stopped_fork_server() -> int:
    """Stop the fork server, and return its number."""
    server: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGSTOP)
    return server


async def _ended_fork_server(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until it is killed; workers of the next one may take as long as they need."""
    stat = Path(f"/proc/{server}/stat")
    await asyncio.to_thread(until, lambda: not stat.exists() or ") Z " in stat.read_text())
    monkeypatch.setattr("batchd.pool.supervisor._START_S", 60.0)


def test_a_fork_server_that_stands_still_holds_no_task_up(
    tmp_path: Path, slow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that takes too long ends the fork server;
    the tasks that waited for it get workers of a new one.
    """
    monkeypatch.setattr("batchd.pool.supervisor._START_S", 1.0)
    settings = configured(tmp_path, slow_server, processes=2)

    async def scenario() -> None:
        async with Daemon(settings, watch=False) as daemon:
            await asyncio.to_thread(until, lambda: all(w.greeted for w in daemon.pool.workers))
            server = _stopped_fork_server()
            await submit(daemon, "b.json", batch(*"abcd"))
            await _ended_fork_server(server, monkeypatch)
            async with asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")

    asyncio.run(scenario())
    assert Counter(r["status"] for r in results(tmp_path).values()) == {"completed": 4}
    assert len(log(slow_server)) == 12


def test_a_fork_server_that_stands_still_keeps_no_daemon_from_ending(
    tmp_path: Path, slow_server: str
) -> None:
    """What waits for it when the daemon ends waits no longer;
    the task that was to start runs next time.
    """
    settings = configured(tmp_path, slow_server, processes=2, drain_s=0.5)

    async def scenario() -> None:
        daemon = Daemon(settings, watch=False)
        async with daemon:
            pool = daemon.pool
            await asyncio.to_thread(until, lambda: all(w.greeted for w in pool.workers))
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)  # type: ignore[attr-defined]
            await submit(daemon, "b.json", batch("a", "b"))
            await asyncio.to_thread(until, lambda: len(pool.workers) == 2)
            begun = time.monotonic()
        assert time.monotonic() - begun < 50
        async with Daemon(settings, watch=False) as again, asyncio.timeout(PATIENCE_S):
            await batch_done(again, "b")

    asyncio.run(scenario())
    assert Counter(r["status"] for r in results(tmp_path).values()) == {"completed": 2}


def test_a_long_tmpdir_keeps_no_worker_from_starting(spool: Any) -> None:
    """The sockets between processes are made where their paths are short enough."""
    path = spool.write("b.json", [{"first_prompt": "x", "model": "standin/steps-2"}])
    deep = spool.folder / ("deep" * 20)
    deep.mkdir()
    ended = subprocess.run(
        spool.command("run", path),
        env={**spool.environment, "TMPDIR": str(deep)},
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_worker_that_is_being_started_has_no_process_number(
    tmp_path: Path, slow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status gives null for it, and never 0,
    which a signal would take for the whole process group.
    """
    monkeypatch.setattr("batchd.pool.supervisor._START_S", 3.0)
    settings = configured(tmp_path, slow_server, processes=2)

    async def scenario() -> dict[str, Any]:
        async with Daemon(settings, watch=False) as daemon:
            await asyncio.to_thread(until, lambda: workers(tmp_path))
            server = _stopped_fork_server()
            await submit(daemon, "b.json", batch(*"ab"))
            await asyncio.to_thread(until, lambda: len(status(tmp_path)["workers"]) == 2)
            answer = await asyncio.to_thread(status, tmp_path)
            await _ended_fork_server(server, monkeypatch)
            await batch_done(daemon, "b")
        return answer

    answer = asyncio.run(scenario())
    (up,) = [w["pid"] for w in answer["workers"] if w["pid"] is not None]
    assert {r["worker"] for r in answer["running"]} == {None, up}


def test_a_worker_that_cannot_be_started_gives_its_tasks_back(
    tmp_path: Path, slow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in the way, as a machine without room
    for one more thread, its tasks wait for the next one.
    """
    settings = configured(tmp_path, slow_server, processes=1)
    refusals = 2

    def refused(*arguments: object) -> object:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise RuntimeError("can't start new thread")
        return launch(*arguments)

    launch = local._launch
    monkeypatch.setattr(local, "_launch", refused)
    work_off(settings, batch("a", "b"))
    assert Counter(r["status"] for r in results(tmp_path).values()) == {"completed": 2}
    assert {r["attempts"] for r in results(tmp_path).values()} <= {1, 2, 3}
    assert len(log(slow_server)) == 6


# How it ends


def _in_a_long_command(folder: Path) -> list[int]:
    """Return the processes of a check that sleeps in this spool's sandbox."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                command[:2] == [b"sleep", b"61"]
                # Where a space is written as its number.
                and str(folder).replace(" ", r"\040") in (entry / "mountinfo").read_text()
            ):
                found.append(int(entry.name))
    return found


@pytest.mark.sampled(1)
def test_a_worker_that_nothing_ends_keeps_no_daemon_from_ending(
    tmp_path: Path, slow_server: str
) -> None:
    """It waits, deaf to signals, for a lock of the kernel's that a thread
    of the daemon's holds on a disk that hangs: both end.
    """
    configured(tmp_path, slow_server, processes=1, drain_s=0.1)
    disk = tmp_path / "disk"
    disk.mkdir()
    with serving(tmp_path, "scripted_agents:makes_a_folder", str(disk)) as daemon:
        until(lambda: workers(tmp_path))
        (worker,) = workers(tmp_path)
        with hanging(disk):
            (tmp_path / "go").touch()
            until((tmp_path / "went").exists)
            drop(tmp_path, batch(str(disk / "worker")))
            until(lambda: _state(worker) == "D")
            daemon.terminate()
            assert daemon.wait(PATIENCE_S) == 0
            until(lambda: not alive(worker))


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("twice", [False, True], ids=["drained", "at-once"])
def test_a_daemon_stops_within_its_time_whatever_its_agents_do(
    tmp_path: Path, model_server: str, twice: bool
) -> None:
    """A long command is broken off after ``drain_s``, or at the second SIGTERM;
    the task goes on at the next start.
    """
    drain_s = 120 if twice else 1
    configured(tmp_path, model_server, processes=1, drain_s=drain_s)
    data = batch("x", check="test -e done || sleep 61", limits={"max_iterations": 1})
    with serving(tmp_path) as daemon:
        drop(tmp_path, data)
        until(lambda: _in_a_long_command(tmp_path))
        began = time.monotonic()
        daemon.terminate()
        if twice:
            time.sleep(0.3)
            assert daemon.poll() is None, "it waits for the agent"
            daemon.terminate()
        assert daemon.wait(PATIENCE_S) == 0
        took = time.monotonic() - began
    assert took < 60
    assert twice or took >= drain_s
    until(lambda: not _in_a_long_command(tmp_path))
    assert not results(tmp_path)
    (tmp_path / "outbox/b/001/done").touch()
    with serving(tmp_path) as daemon:
        until((tmp_path / "outbox/b/summary.json").exists)
    (result,) = results(tmp_path).values()
    assert (result["status"], result["usage"]["unsettled_calls"]) == ("completed", 0)


# Recycling


def test_a_worker_is_replaced_after_its_number_of_tasks(tmp_path: Path, model_server: str) -> None:
    """No process works on more tasks than ``max_tasks_per_process``."""
    settings = configured(tmp_path, model_server, processes=1, max_tasks_per_process=2)
    work_off(settings, batch(*"abcdef"), "scripted_agents:notes_its_process")
    assert Counter(Counter(pid for pid, _, _ in attempts(tmp_path)).values()) == {2: 3}
    assert {r["attempts"] for r in results(tmp_path).values()} == {1}


def test_a_worker_that_grew_is_replaced(tmp_path: Path, model_server: str) -> None:
    """One past ``max_rss_mb`` ends with the task at hand, which completes."""
    settings = configured(tmp_path, model_server, processes=1, max_rss_mb=200)
    work_off(settings, batch("a", "b"), "scripted_agents:grows")
    assert len({pid for pid, _, _ in attempts(tmp_path)}) == 2
    assert {(r["status"], r["attempts"]) for r in results(tmp_path).values()} == {("completed", 1)}


def test_a_worker_can_be_killed_the_instant_that_it_has_ended(tmp_path: Path) -> None:
    """What watches over workers, or ends them all, must not stumble over one that was faster."""

    async def scenario() -> None:
        up = asyncio.Event()
        lock = os.open(tmp_path, os.O_RDONLY)
        engine = local.LocalEngine(lock, "batchd.agent.loop:run", tmp_path)
        worker = engine.worker(lambda _worker, _message: up.set())
        try:
            await worker.start()
        finally:
            os.close(lock)
        async with asyncio.timeout(PATIENCE_S):
            await up.wait()
        os.kill(worker.pid, signal.SIGKILL)
        while Path(f"/proc/{worker.pid}").exists():  # noqa: ASYNC240 (nor must it wait)
            time.sleep(0.001)  # noqa: ASYNC251 (the loop must not hear of it yet)
        worker.kill("no sign of life")
        async with asyncio.timeout(PATIENCE_S):
            await worker.ended()
        assert worker.cause == "no sign of life"

    asyncio.run(scenario())
