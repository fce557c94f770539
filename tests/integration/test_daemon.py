"""The daemon with real workers, a real model server and SIGKILL,
judged by the server's log and the outbox.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import patience
import pytest
import warm
from dropping import batch_done, submit
from patience import PATIENCE_S
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import config, control, wire
from batchd.daemon import Daemon, Listener
from batchd.errors import NoDaemonError, SpoolLockedError, UsageError
from batchd.events import Event, TaskFinished
from batchd.records import Ref
from batchd.store import operations
from batchd.store.queries import StoreReader
from batchd.store.store import Store

pytestmark = pytest.mark.in_turns

_CONFIG = """\
[agent]
model = "standin/{model}"
[providers.standin]
base_url = "{base_url}"
max_concurrent = {max_concurrent}
[models."standin/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 2
agents_per_process = {agents}
heartbeat_timeout_s = 2.0
drain_s = 5
[evaluation]
by = "none"
[governor]
max_retries = 1
first_backoff_s = 0.05
"""


def configured(
    folder: Path, base_url: str, model: str, *, agents: int = 1, max_concurrent: int = 32
) -> config.Config:
    """Return a configuration for a spool in ``folder``, which is written there too."""
    text = _CONFIG.format(
        model=model, base_url=base_url, agents=agents, max_concurrent=max_concurrent
    )
    (folder / "config.toml").write_text(text)
    return config.load(folder / "config.toml", {})


def task_file(count: int, **more: Any) -> bytes:
    """Return a task file of ``count`` tasks that all differ."""
    tasks = [{"first_prompt": f"task number {i}", **more} for i in range(count)]
    return json.dumps({"tasks": tasks}).encode()


def results(folder: Path, batch: str) -> list[dict[str, Any]]:
    """Return the results in a batch's folder, by id; each must be whole."""
    found = [p for p in (folder / "outbox" / batch).glob("*.json") if p.stem.isdigit()]
    return [json.loads(p.read_bytes()) for p in sorted(found)]


class Server:
    """A stand-in server of one's own, as a process."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def totals(self) -> dict[str, Any]:
        """Return what the server delivered, by its own count."""
        with urllib.request.urlopen(f"{self.base_url.removesuffix('/v1')}/totals") as answer:
            totals: dict[str, Any] = json.load(answer)
        return totals


@pytest.fixture
def server(slow_server: str) -> Server:
    """A server that takes a moment for each answer, so that there is something to interrupt."""
    return Server(slow_server)


async def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait until something outside this process is so."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (other processes set no events)
            await asyncio.sleep(0.01)


class Watching(Listener):
    """Notes what is reported to it; sets an event once ``count`` events of tasks were durable."""

    def __init__(self, count: int = 1) -> None:
        self.events: list[tuple[Ref, Event]] = []
        self.finished: list[Ref] = []
        self.enough = asyncio.Event()
        self._count = count

    def task_event(self, ref: Ref, event: Event) -> None:
        """Count."""
        self.events.append((ref, event))
        if len(self.events) >= self._count:
            self.enough.set()

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Note."""
        assert finished.result
        self.finished.append(ref)


def test_a_dropped_file_becomes_results_that_add_up(tmp_path: Path) -> None:
    """Each task has one result, the summary comes last,
    and the tokens are those that the server delivered.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "steps-3", agents=4)
            watching = Watching()
            async with Daemon(settings, listeners=[watching]):
                (tmp_path / "new").write_bytes(task_file(12))
                (tmp_path / "new").rename(tmp_path / "inbox" / "games.json")
                await until((tmp_path / "outbox/games/summary.json").exists)
            delivered = server.totals
        found = results(tmp_path, "games")
        assert [r["status"] for r in found] == ["completed"] * 12
        assert len(watching.finished) == 12
        for field in ("input_tokens", "output_tokens", "cached_input_tokens"):
            assert sum(r["usage"][field] for r in found) == getattr(delivered.usage, field)
        assert delivered.requests == 36
        folder = tmp_path / "outbox/games"
        assert (folder / "request.json").read_bytes() == task_file(12)
        assert len((folder / "results.jsonl").read_text().splitlines()) == 12
        newest = max(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns)
        assert newest.name == "summary.json"

    asyncio.run(scenario())


def test_one_permit_serves_all_calls_of_a_task_in_turn(tmp_path: Path) -> None:
    """An answer and the request for the judge come in one message:
    the permit must be free by then.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "steps-2", max_concurrent=1)
            async with Daemon(settings, watch=False) as daemon:
                await submit(daemon, "b.json", task_file(4, evaluator="judge"))
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
            assert server.totals.peak == 1
        assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 4

    asyncio.run(scenario())


@pytest.mark.parametrize("part", [wire.MAX_HISTORY, 1], ids=["whole", "in parts"])
def test_a_killed_worker_costs_one_call_a_task(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """SIGKILL of every worker mid-task: all tasks end once,
    and no recorded answer is asked for again.

    However many messages their histories need: one of gigabytes is taken up again too.
    """
    monkeypatch.setattr(wire, "MAX_HISTORY", part)

    async def scenario() -> None:
        settings = configured(tmp_path, server.base_url, "steps-4", agents=2)
        watching = Watching(count=14)
        async with Daemon(settings, listeners=[watching]) as daemon:
            batch = await submit(daemon, "b.json", task_file(4))
            await watching.enough.wait()
            status = control.request
            answer = await asyncio.to_thread(status, tmp_path / ".batchd", "status")
            for worker in answer["workers"]:
                os.kill(worker["pid"], signal.SIGKILL)
            await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    found = results(tmp_path, "b")
    assert [r["status"] for r in found] == ["completed"] * 4
    # One that makes room for another, which is to run alone now, takes one more.
    assert 2 <= max(r["attempts"] for r in found) <= 3
    _nothing_paid_twice(server, found, calls=16)


def test_a_worker_that_dies_while_its_request_waits_makes_no_call(tmp_path: Path) -> None:
    """Its turn may come before it is durable that it is dead:
    nothing is set aside for it, and nothing counts as perhaps paid.
    """

    def waiting() -> list[int]:
        """Return the workers whose tasks wait for their turn,
        once the other one's call is under way.
        """
        steps = {task["step"]: task["worker"] for task in _status(tmp_path)["running"]}
        return [steps["waiting"]] if {*steps} == {"waiting", "model"} else []

    def kill() -> None:
        """Kill one of them, and keep the store from noting it until no request waits any more."""
        patience.until(waiting)
        (worker,) = waiting()
        with closing(sqlite3.connect(tmp_path / ".batchd" / "batchd.db")) as db:
            db.execute("BEGIN IMMEDIATE")
            os.kill(worker, signal.SIGKILL)
            patience.until(lambda: not _status(tmp_path)["tasks"]["waiting"])
            db.rollback()

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            model = "latency-1.5+steps-1"
            settings = configured(tmp_path, server.base_url, model, max_concurrent=1)
            async with Daemon(settings) as daemon:
                batch = await submit(daemon, "b.json", task_file(2))
                await asyncio.to_thread(kill)
                await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    found = results(tmp_path, "b")
    assert sorted(r["attempts"] for r in found) == [1, 2]
    assert [r["usage"]["unsettled_calls"] for r in found] == [0, 0]


def _nothing_paid_twice(server: Server, found: Sequence[Mapping[str, Any]], *, calls: int) -> None:
    """All calls were answered and counted; what was asked for again is counted as unsettled."""
    totals = server.totals()
    unsettled = sum(r["usage"]["unsettled_calls"] for r in found)
    assert sum(r["usage"]["calls"] for r in found) == calls
    assert totals["repeated"] <= unsettled
    # A call that was granted, but not yet sent, counts as perhaps paid too.
    assert calls <= totals["requests"] <= calls + unsettled


def _serve(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "batchd", "--config", str(folder / "config.toml"), "serve"]
    with (folder / "log").open("ab") as log:
        return warm.Popen(command, stderr=log)


def _status(folder: Path) -> dict[str, Any]:
    return dict(control.request(folder / ".batchd", "status"))


def _answers(folder: Path) -> bool:
    try:
        control.request(folder / ".batchd", "status")
    except NoDaemonError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.sampled(1)
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_ended_mid_batch_goes_on_at_its_next_start(
    tmp_path: Path, server: Server, ending: signal.Signals
) -> None:
    """After SIGKILL at most the calls in flight are paid again;
    after SIGTERM, which drains, none is.
    """
    configured(tmp_path, server.base_url, "steps-4", agents=2)
    (tmp_path / "inbox").mkdir()

    async def scenario() -> None:
        with _serve(tmp_path) as daemon:
            await until(lambda: _answers(tmp_path))
            (tmp_path / "new").write_bytes(task_file(8))
            (tmp_path / "new").rename(tmp_path / "inbox" / "b.json")
            await until(lambda: server.totals()["requests"] > 9)
            answer = control.request(tmp_path / ".batchd", "status")
            daemon.send_signal(ending)
            assert daemon.wait(PATIENCE_S) == (0 if ending == signal.SIGTERM else -ending)
            await until(lambda: not any(_alive(w["pid"]) for w in answer["workers"]))
        assert len(results(tmp_path, "b")) < 8
        with _serve(tmp_path) as daemon:
            await until((tmp_path / "outbox/b/summary.json").exists)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0

    asyncio.run(scenario())
    found = results(tmp_path, "b")
    assert [r["status"] for r in found] == ["completed"] * 8
    _nothing_paid_twice(server, found, calls=32)
    if ending == signal.SIGTERM:
        assert server.totals()["repeated"] == 0
        assert not any(r["usage"]["unsettled_calls"] for r in found)


def test_a_second_daemon_is_refused(tmp_path: Path, server: Server) -> None:
    """It says who has the spool, and disturbs nothing."""

    async def scenario() -> None:
        settings = configured(tmp_path, server.base_url, "steps-2")
        async with Daemon(settings):
            with pytest.raises(SpoolLockedError, match=re.compile(rf"\b{os.getpid()}\b")):
                async with Daemon(settings):
                    pass
            answer = await asyncio.to_thread(control.request, tmp_path / ".batchd", "status")
            assert answer["pid"] == os.getpid()
        async with Daemon(settings):
            pass

    asyncio.run(scenario())


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers find ``scripted_agents``."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.usefixtures("scripted")
def test_a_poisonous_task_ends_alone(tmp_path: Path) -> None:
    """A task that kills its workers ends as worker_crashed;
    its neighbours in the process complete.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "steps-2", agents=4)
            tasks = [{"first_prompt": f"work {i}"} for i in range(6)]
            tasks[2]["first_prompt"] = "die"
            data = json.dumps({"tasks": tasks}).encode()
            async with Daemon(settings, agent="scripted_agents:dies") as daemon:
                batch = await submit(daemon, "b.json", data)
                await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    by_id = {r["task"]: r for r in results(tmp_path, "b")}
    poison = by_id.pop("003")
    assert (poison["status"], poison["reason"]) == ("error", "worker_crashed")
    assert "SIGKILL" in poison["error"]["message"]
    assert {r["status"] for r in by_id.values()} == {"completed"}


@pytest.mark.usefixtures("scripted")
def test_a_task_that_only_waits_is_not_counted_when_its_worker_dies(tmp_path: Path) -> None:
    """Of five in one process one ends it: a task that waited for a permit is not suspected;
    no task ends for a death that others may have caused.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(
                tmp_path, server.base_url, "latency-0.2+steps-2", agents=5, max_concurrent=1
            )
            pool = replace(settings.pool, processes=1, max_attempts=1)
            settings = replace(settings, pool=pool)
            tasks = [{"first_prompt": f"work {i}"} for i in range(4)]
            data = json.dumps({"tasks": [{"first_prompt": "die when asked"}, *tasks]}).encode()
            async with Daemon(settings, agent="scripted_agents:dies_when_asked") as daemon:
                await submit(daemon, "b.json", data)
                async with asyncio.timeout(PATIENCE_S):
                    while (await asyncio.to_thread(_status, tmp_path))["tasks"]["waiting"] != 3:  # noqa: ASYNC110 (only asking shows it)
                        await asyncio.sleep(0.01)
                (tmp_path / "outbox/b/ask").touch()
                await batch_done(daemon, "b")
        with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
            crashes = dict(reader._db.execute("SELECT name, crashes FROM tasks").fetchall())
        assert crashes.pop("001") == 2, "once with another, who was at work too, and once alone"
        assert sorted(crashes.values()) == [0, 0, 0, 1]

    asyncio.run(scenario())
    poison, *others = results(tmp_path, "b")
    assert (poison["status"], poison["reason"]) == ("error", "worker_crashed")
    assert {r["status"] for r in others} == {"completed"}


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize("processes", [1, 2])
def test_a_suspect_has_its_turn_under_a_steady_queue(tmp_path: Path, processes: int) -> None:
    """Processes are never empty by themselves:
    one is cleared for it, what came later waits, and all complete.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "latency-0.05+steps-2", agents=3)
            settings = replace(settings, pool=replace(settings.pool, processes=processes))
            tasks = [{"first_prompt": "die" if i == 1 else f"work {i}"} for i in range(24)]
            data = json.dumps({"tasks": tasks}).encode()
            async with Daemon(settings, agent="scripted_agents:dies_once") as daemon:
                await submit(daemon, "b.json", data)
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")

    asyncio.run(scenario())
    found = results(tmp_path, "b")
    assert {r["status"] for r in found} == {"completed"}
    died = found.pop(1)["timing"]["finished_at"]
    assert sum(r["timing"]["started_at"] > died for r in found) > 6, "it did not come last"


def test_deaths_of_the_daemon_are_no_attempts_of_a_tasks(tmp_path: Path) -> None:
    """A task that was dispatched twenty times by daemons
    that died before it got anywhere completes all the same.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "steps-2")
            async with Daemon(settings, work=False) as daemon:
                await submit(daemon, "b.json", task_file(2))
            for _ in range(20):
                store = Store(tmp_path / ".batchd/batchd.db")
                for task in ("001", "002"):
                    await store.write(operations.dispatch, Ref("b", task))
                store.close()
            async with Daemon(settings) as daemon:
                await batch_done(daemon, "b")

    asyncio.run(scenario())
    assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 2


@pytest.mark.usefixtures("scripted")
def test_a_bug_in_an_agent_is_one_typed_result(tmp_path: Path) -> None:
    """It ends its task as internal; the traceback is nowhere in the outbox."""

    async def scenario() -> None:
        settings = configured(tmp_path, "http://127.0.0.1:9/v1", "steps-2")
        async with Daemon(settings, agent="scripted_agents:breaks") as daemon:
            batch = await submit(daemon, "b.json", task_file(2))
            await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    found = results(tmp_path, "b")
    assert [(r["status"], r["reason"]) for r in found] == [("error", "internal")] * 2
    assert "Traceback" not in (tmp_path / "outbox/b/results.jsonl").read_text()


@pytest.mark.usefixtures("scripted")
def test_a_stopped_worker_is_killed_and_its_task_resumed(tmp_path: Path) -> None:
    """A worker whose heartbeat is late is ended by its pidfd, even when it is stopped."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "steps-2")
            async with Daemon(settings, agent="scripted_agents:stops_its_process") as daemon:
                batch = await submit(daemon, "b.json", task_file(1))
                await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    assert [r["status"] for r in results(tmp_path, "b")] == ["completed"]


def test_cancel_reaches_tasks_that_run_wait_and_depend(tmp_path: Path) -> None:
    """Running, waiting for a permit, queued or dependent: each ends as cancelled, with a result."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "hang", max_concurrent=1)
            tasks = [{"id": i, "first_prompt": i} for i in ("a", "b", "c", "d")]
            tasks.append({"id": "e", "first_prompt": "e", "after": ["d"]})  # type: ignore[dict-item]
            watching = Watching(count=3)
            async with Daemon(settings, listeners=[watching]) as daemon:
                batch = await submit(daemon, "b.json", json.dumps({"tasks": tasks}).encode())
                await watching.enough.wait()  # two have started, one of them makes its call
                ask = asyncio.to_thread(
                    control.request, tmp_path / ".batchd", "cancel", target="b", message="enough"
                )
                assert (await ask)["cancelled"] == 5
                await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    found = [json.loads(p.read_bytes()) for p in (tmp_path / "outbox/b").glob("?.json")]
    assert [r["status"] for r in found] == ["cancelled"] * 5
    assert {r["error"]["message"] for r in found if r["task"] in "abcd"} == {"enough"}


def test_dependants_of_a_failed_task_are_cancelled_by_name(tmp_path: Path) -> None:
    """They end as cancelled/dependency, and say what they came after."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = configured(tmp_path, server.base_url, "400")
            tasks = [
                {"id": "first", "first_prompt": "x"},
                {"id": "second", "first_prompt": "x", "after": ["first"]},
                {"id": "third", "first_prompt": "x", "after": ["second"]},
            ]
            async with Daemon(settings) as daemon:
                batch = await submit(daemon, "b.json", json.dumps({"tasks": tasks}).encode())
                await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    folder = tmp_path / "outbox/b"
    first, second, third = (
        json.loads((folder / f"{i}.json").read_bytes()) for i in ("first", "second", "third")
    )
    assert (first["status"], first["reason"]) == ("error", "bad_request")
    for dependant in (second, third):
        assert (dependant["status"], dependant["reason"]) == ("cancelled", "dependency")
    assert "first" in second["error"]["message"]


class _Ends(Listener):
    """Counts ends that are durable, those of one turn of the loop,
    and those that have not been published.
    """

    def __init__(self) -> None:
        self.count = self.open = self.turn = self.most = 0

    def task_event(self, ref: Ref, event: Event) -> None:
        """Count."""
        if isinstance(event, TaskFinished):
            if not self.turn:
                asyncio.get_running_loop().call_soon(self._turned)
            self.count += 1
            self.open += 1
            self.turn += 1
            self.most = max(self.most, self.turn)

    def _turned(self) -> None:
        self.turn = 0

    def task_finished(self, ref: Ref, finished: TaskFinished) -> None:
        """Count."""
        self.open -= 1


def test_many_dependants_are_cancelled_some_at_a_time(tmp_path: Path) -> None:
    """Between them others get their turn:
    all at once, 100,000 would have the daemon stand still for half a minute.
    """
    settings = configured(tmp_path, "http://127.0.0.1:9/v1", "steps-2")
    tasks = [{"id": "root"}, *({"id": f"t{i}", "after": ["root"]} for i in range(700))]
    data = json.dumps({"first_prompt": "x", "tasks": tasks}).encode()
    ends = _Ends()

    async def scenario() -> None:
        async with Daemon(settings, work=False) as daemon:
            await submit(daemon, "b.json", data)
        ordered = Daemon(settings, work=False, listeners=[ends])
        await ordered.command(control.Cancel(target="b/root"))

    asyncio.run(scenario())
    assert (ends.count, ends.open) == (701, 0)
    assert ends.most <= 500
    summary = json.loads((tmp_path / "outbox/b/summary.json").read_bytes())
    assert summary["counts"]["cancelled"] == 701


def test_a_broken_file_is_rejected_with_all_its_errors(tmp_path: Path) -> None:
    """The summary holds them; the file is kept untouched."""

    async def scenario() -> None:
        settings = configured(tmp_path, "http://127.0.0.1:9/v1", "steps-2")
        async with Daemon(settings):
            (tmp_path / "new").write_text('{"tasks": [{"first_promt": "x"}, {"first_prompt": 3}]}')
            (tmp_path / "new").rename(tmp_path / "inbox" / "bad.json")
            await until((tmp_path / "outbox/bad/summary.json").exists)

    asyncio.run(scenario())
    summary = json.loads((tmp_path / "outbox/bad/summary.json").read_bytes())
    assert summary["status"] == "rejected"
    assert len(summary["errors"]) >= 2
    lines = (tmp_path / "outbox/bad/errors.txt").read_text().splitlines()
    assert len(lines) == len(summary["errors"])
    assert all(e["message"] in line for e, line in zip(summary["errors"], lines, strict=True))
    assert "first_promt" in (tmp_path / "outbox/bad/request.json").read_text()


def test_the_control_socket_is_private_and_refuses_nonsense(tmp_path: Path) -> None:
    """Mode 0600; unknown verbs and batches are refused in words; without a daemon it says so."""
    with pytest.raises(NoDaemonError):
        control.request(tmp_path, "status")

    async def scenario() -> None:
        settings = configured(tmp_path, "http://127.0.0.1:9/v1", "steps-2")
        state = tmp_path / ".batchd"
        async with Daemon(settings):
            assert stat.S_IMODE((state / "control.sock").stat().st_mode) == 0o600
            for verb, arguments in (("dance", {}), ("cancel", {"target": "none"}), ("cancel", {})):
                with pytest.raises(UsageError):
                    await asyncio.to_thread(control.request, state, verb, **arguments)
        with pytest.raises(NoDaemonError):
            control.request(state, "status")

    asyncio.run(scenario())


def test_what_a_drained_daemon_left_is_finished_by_the_next(tmp_path: Path) -> None:
    """Tasks stop at a durable point, go on under the next daemon,
    and no answer is asked for twice.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(latency_s=0.05)) as server:
            settings = configured(tmp_path, server.base_url, "steps-3")
            async with Daemon(settings, watch=False) as daemon:
                await submit(daemon, "b.json", task_file(3))
                await until(lambda: len(server.requests) > 2)
            assert not (tmp_path / "outbox/b/summary.json").exists()
            async with Daemon(settings, watch=False) as again:
                await batch_done(again, "b")
        assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 3
        assert server.totals.repeated == 0

    asyncio.run(scenario())


def test_a_reload_takes_a_valid_configuration_and_keeps_the_old_one_otherwise(
    tmp_path: Path,
) -> None:
    """SIGHUP with a mistake in the file changes nothing; without one, tasks go by the new file."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(count=False)) as server:
            old = configured(tmp_path, "http://127.0.0.1:9/v1", "steps-1")
            path = tmp_path / "config.toml"
            path.write_text("[pool]\nprocesses = 'many'\n")
            daemon = Daemon(old, reload=lambda: config.load(path, {}))
            run = asyncio.ensure_future(daemon.run())
            await until(lambda: _answers_off_loop(tmp_path))
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.1)
            assert daemon.current.config.pool.processes == 2
            new = configured(tmp_path, server.base_url, "steps-1", agents=3)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: daemon.current.config == new)
            batch = await submit(daemon, "b.json", task_file(3))
            await batch_done(daemon, batch.name)
            os.kill(os.getpid(), signal.SIGTERM)
            await run

    asyncio.run(scenario())
    assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 3


def _answers_off_loop(folder: Path) -> bool:
    """Return whether a daemon of this very loop is up: asking it would block the loop."""
    return (folder / ".batchd/control.sock").exists()


def test_a_drop_is_answered_at_once(tmp_path: Path) -> None:
    """An idle daemon keeps a worker warm, so that a file's first call needs no process to start."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(count=False)) as server:
            settings = configured(tmp_path, server.base_url, "steps-1")
            async with Daemon(settings) as daemon:
                await batch_done(daemon, (await submit(daemon, "warm.json", task_file(1))).name)
                warm = daemon.pool.workers
                await batch_done(daemon, (await submit(daemon, "b.json", task_file(1))).name)
                # How long it takes is benchmarked.
                assert daemon.pool.workers == warm

    asyncio.run(scenario())
