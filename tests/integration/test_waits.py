"""How long a provider is not asked, who tries it, and who waits with it:
a real daemon, judged by the server's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from dropping import batch_done, submit
from patience import PATIENCE_S
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import config, control, words
from batchd.daemon import Daemon
from batchd.observe import standstill
from batchd.observe.standstill import WaitReasons
from batchd.store import queries
from batchd.store.queries import StoreReader
from tests.integration.test_daemon import results, task_file, until

pytestmark = pytest.mark.in_turns

_CONFIG = """\
[agent]
model = "standin/steps-2"
[providers.standin]
base_url = "{base_url}"
[providers.other]
base_url = "{other}"
[pool]
processes = 2
agents_per_process = 4
[evaluation]
by = "none"
[governor]
max_retries = 2
first_backoff_s = 0.02
max_backoff_s = 0.05
probe_s = {probe_s}
max_probe_s = {max_probe_s}
max_parked_s = {max_parked_s}
"""
#: Longer than any test takes.
_DAY_S = 86400.0


def _configured(
    folder: Path,
    server: ModelServer,
    other: ModelServer | None = None,
    *,
    probe_s: float = 0.05,
    max_probe_s: float = _DAY_S,
    max_parked_s: float = 604800.0,
) -> config.Config:
    text = _CONFIG.format(
        base_url=server.base_url,
        other=(other or server).base_url,
        probe_s=probe_s,
        max_probe_s=max_probe_s,
        max_parked_s=max_parked_s,
    )
    (folder / "config.toml").write_text(text)
    return config.load(folder / "config.toml", {})


async def _ask(folder: Path, verb: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(control.request, folder / ".batchd", verb, **arguments)


async def _until_status(
    folder: Path, holds: Callable[[Mapping[str, Any]], object]
) -> Mapping[str, Any]:
    """Wait until what ``status`` says is so; return it."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(status := await _ask(folder, "status")):  # noqa: ASYNC110 (only asking shows)
            await asyncio.sleep(0.02)
    return status


async def _until_done(daemon: Daemon, *batches: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for name in batches:
            await batch_done(daemon, name)


def test_a_long_wait_holds_only_its_provider_whatever_earlier_calls_bring(tmp_path: Path) -> None:
    """One of eight calls is asked to wait a day, seven are answered later:
    the provider is parked all the same.

    Others have the slots, and `resume` lifts the wait.
    """

    async def scenario() -> None:
        limited = ServerSettings(
            rps=1e-6, burst=7, retry_after_s=_DAY_S, latency_s=0.3, limit_headers=False
        )
        async with (
            ModelServer(limited) as server,
            ModelServer(ServerSettings()) as other,
            Daemon(_configured(tmp_path, server, other)) as daemon,
        ):
            await submit(daemon, "b.json", task_file(8))
            await until(lambda: server.totals.by_status[200] == 7, 60)
            assert server.totals.by_status[429] == 1
            await submit(daemon, "c.json", task_file(20, model="other/steps-2"))
            await _until_done(daemon, "c")
            status = await _until_status(tmp_path, lambda status: not status["tasks"]["running"])
            (parked,) = status["parked"]
            assert (parked["name"], parked["cause"]) == ("standin", "rate_limited")
            assert status["providers"]["standin"]["paused_s"] > _DAY_S / 2
            assert server.totals.requests == 8
            server.control(rps=0)
            answer = await _ask(tmp_path, "resume", scope="provider", name="standin")
            assert answer == {"resumed": 1, "trying": ["standin"], "held": []}
            await _until_done(daemon, "b")
            status = await _ask(tmp_path, "status")
            assert (status["parked"], status["providers"]["standin"]["paused_s"]) == ([], 0)
        assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 8

    asyncio.run(scenario())


def test_a_long_wait_that_a_paused_task_was_asked_for_is_no_silent_one(tmp_path: Path) -> None:
    """The call of a batch that was just paused is asked to wait for a day:
    that is known of its provider, and `resume` ends it.
    """

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings()) as server,
            ModelServer(ServerSettings()) as other,
            Daemon(_configured(tmp_path, server, other)) as daemon,
        ):
            slow = f"standin/latency-1+429-1+retry-after-{_DAY_S:.0f}+steps-2"
            await submit(daemon, "b.json", task_file(1, model=slow))
            await until(lambda: server.totals.requests == 1, 60)
            await _ask(tmp_path, "pause", scope="batch", name="b")
            await until(lambda: server.totals.by_status[429] == 1, 60)
            await submit(daemon, "c.json", task_file(9))
            status = await _until_status(tmp_path, lambda status: len(status["parked"]) > 1)
            waits = [(p["scope"], p["cause"]) for p in status["parked"]]
            assert waits == [("batch", "paused"), ("provider", "rate_limited")]
            await submit(daemon, "d.json", task_file(9, model="other/steps-2"))
            await _until_done(daemon, "d")
            await _ask(tmp_path, "resume", scope="provider", name="standin")
            await _until_done(daemon, "c")
            assert not results(tmp_path, "b")
            await _ask(tmp_path, "resume", scope="batch", name="b")
            await _until_done(daemon, "b")

    asyncio.run(scenario())


def test_a_reload_has_parked_providers_tried(tmp_path: Path) -> None:
    """SIGHUP is given by somebody who has changed something: one call tries, and all go on."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(faults="401")) as server:
            settings = _configured(tmp_path, server)
            daemon = Daemon(settings, reload=lambda: settings)
            serving = asyncio.ensure_future(daemon.run())
            inbox = tmp_path / "inbox"
            await until(inbox.is_dir, 60)
            (inbox / "b.json").write_bytes(task_file(3))
            await until(lambda: bool(server.totals.requests), 60)
            await _until_status(
                tmp_path, lambda status: status["parked"] and not status["tasks"]["running"]
            )
            server.control(faults="")
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: len(results(tmp_path, "b")) == 3, 60)
            daemon.stop()
            await serving

    asyncio.run(scenario())


def _tasks(*models: str) -> bytes:
    tasks = [{"first_prompt": f"task {n}", "model": model} for n, model in enumerate(models)]
    return json.dumps({"tasks": tasks}).encode()


async def _tried(folder: Path, server: ModelServer, calls: int) -> str:
    """Wait for one more call, and until its task has given its slot back; return its prompt."""
    await until(lambda: server.totals.requests > calls, 60)
    await _until_status(folder, lambda status: not status["tasks"]["running"])
    assert server.totals.requests == calls + 1
    return server.requests[-1].prompt


def test_tries_go_round_also_after_resume_and_restart(tmp_path: Path) -> None:
    """Each try is another task's, the one whose last try is the longest ago:
    none speaks for all, over restarts too.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(faults="401")) as server:
            settings = _configured(tmp_path, server)
            prompts = {f"task number {n}" for n in range(4)}
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(4))
                await _until_status(tmp_path, lambda t: t["parked"] and not t["tasks"]["running"])
                tried = []
                for _ in range(8):
                    calls = server.totals.requests
                    await _ask(tmp_path, "resume", scope="provider", name="standin")
                    tried.append(await _tried(tmp_path, server, calls))
            assert set(tried[:4]) == prompts
            assert tried[4:] == tried[:4]
            for prompt in tried[:4]:
                calls = server.totals.requests
                async with Daemon(settings):
                    assert await _tried(tmp_path, server, calls) == prompt

    asyncio.run(scenario())


def test_a_task_that_must_run_alone_tries_in_its_turn(tmp_path: Path) -> None:
    """A worker died of it, and its provider refuses it each time: the others try as often."""

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings(faults="hang")) as server,
            Daemon(_configured(tmp_path, server)) as daemon,
        ):
            await submit(daemon, "suspect.json", _tasks("standin/steps-2"))
            await until(lambda: server.totals.requests == 1, 60)
            server.control(faults="401")
            (running,) = (await _ask(tmp_path, "status"))["running"]
            os.kill(running["worker"], signal.SIGKILL)
            await _until_status(tmp_path, lambda t: t["parked"] and not t["tasks"]["running"])
            await submit(daemon, "b.json", task_file(3))
            tried = []
            for _ in range(8):
                calls = server.totals.requests
                await _ask(tmp_path, "resume", scope="provider", name="standin")
                tried.append(await _tried(tmp_path, server, calls))
            assert set(tried[:4]) == {"task 0", *(f"task number {n}" for n in range(3))}
            assert tried[4:] == tried[:4]

    asyncio.run(scenario())


def test_a_model_whose_key_is_refused_waits_alone_in_the_end(tmp_path: Path) -> None:
    """A refusal that names nothing parks the provider;
    a task of another model tries it, so that the one is found out.
    """

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings()) as server,
            Daemon(_configured(tmp_path, server, max_probe_s=0.2)) as daemon,
        ):
            poison = ["standin/401+steps-1"] * 9
            await submit(daemon, "b.json", _tasks(*poison, *["standin/steps-2"] * 20))
            await until(lambda: len(results(tmp_path, "b")) == 20, 60)
            status = await _until_status(tmp_path, lambda status: len(status["parked"]) == 1)
            (parked,) = status["parked"]
            assert (parked["scope"], parked["name"]) == ("model", "standin/401+steps-1")
            assert parked["cause"] == "auth"
        assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}
        by_good = sum(r.model == "steps-2" for r in server.requests)
        assert by_good == 40

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("no-access", "auth"), (f"day-limit+retry-after-{_DAY_S:.0f}", "rate_limited")],
)
def test_a_refusal_that_names_a_model_holds_that_model_alone(
    tmp_path: Path, fault: str, cause: str
) -> None:
    """The provider's other models go on at once; the one waits,
    over a restart too, until `resume` has it tried.
    """

    async def scenario() -> None:
        bad = f"standin/{fault}+steps-2"
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", _tasks(*[bad] * 9))
                await _until_status(tmp_path, lambda t: t["parked"] and not t["tasks"]["running"])
                await submit(daemon, "c.json", _tasks(bad, *["standin/steps-2"] * 9))
                await until(lambda: len(results(tmp_path, "c")) == 9, 60)
                calls = server.totals.requests
            async with Daemon(settings) as daemon:
                await _tried(tmp_path, server, calls)
                (parked,) = (await _ask(tmp_path, "status"))["parked"]
                assert (parked["scope"], parked["name"]) == ("model", bad)
                assert parked["cause"] == cause
                for key in (
                    {"scope": "model", "name": bad},
                    {"scope": "provider", "name": "standin"},
                ):
                    calls = server.totals.requests
                    answer = await _ask(tmp_path, "resume", **key)
                    assert (answer["resumed"], answer["trying"]) == (1, [bad])
                    await _tried(tmp_path, server, calls)
            assert len(server.requests) <= 8 + 18 + 3

    asyncio.run(scenario())


def test_a_model_that_was_served_and_is_gone_waits_and_comes_back(tmp_path: Path) -> None:
    """What would fail each of its tasks fails none, and holds no other model;
    a model that never was is held likewise.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(default="steps-2")) as server:
            settings = _configured(tmp_path, server, max_probe_s=0.3)
            async with Daemon(settings) as daemon:
                await submit(daemon, "a.json", _tasks("standin/mine"))
                await _until_done(daemon, "a")
                server.control(default="")
                await submit(daemon, "b.json", _tasks(*["standin/mine"] * 12))
                (parked,) = (await _until_status(tmp_path, lambda status: status["parked"]))[
                    "parked"
                ]
                assert (parked["name"], parked["cause"]) == ("standin/mine", "model_gone")
                await submit(daemon, "c.json", _tasks("standin/steps-2", "standin/never"))
                await until(lambda: len(results(tmp_path, "c")) == 1, 60)
                names = {"standin/mine", "standin/never"}
                await _until_status(tmp_path, lambda s: {p["name"] for p in s["parked"]} == names)
                server.control(default="steps-2")
                await _until_done(daemon, "b", "c")
        for batch in "bc":
            assert {r["status"] for r in results(tmp_path, batch)} == {"completed"}

    asyncio.run(scenario())


def test_a_model_can_be_paused(tmp_path: Path) -> None:
    """Its tasks stand still, over a restart too, and say why; its provider's other models go on."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server)
            key = {"scope": "model", "name": "standin/steps-3"}
            async with Daemon(settings) as daemon:
                await _ask(tmp_path, "pause", **key)
                await submit(daemon, "b.json", _tasks(*["standin/steps-3", "standin/steps-2"] * 9))
                await until(lambda: len(results(tmp_path, "b")) == 9, 60)
            with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
                parked, tasks = reader.parked(), reader.tasks("b")
                assert reader.read(queries.held, parked) == 9
            assert standstill.of_batch(parked, "b", tasks) == parked
            why = WaitReasons(parked, (), (), daemon=False).why(tasks[0])
            assert why == "model standin/steps-3: paused"
            assert "batchd resume --model standin/steps-3" in "".join(words.parked_lines(parked))
            async with Daemon(settings) as daemon:
                await submit(daemon, "c.json", _tasks("standin/steps-2"))
                await _until_done(daemon, "c")
                assert {r.model for r in server.requests} == {"steps-2"}
                answer = await _ask(tmp_path, "resume", **key)
                assert answer == {"resumed": 1, "trying": [], "held": []}
                await _until_done(daemon, "b")
        assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}

    asyncio.run(scenario())


def test_time_while_switched_off_ends_no_task(tmp_path: Path) -> None:
    """A provider that was parked eight days ago is tried by a daemon
    that stood still meanwhile, and its tasks go on.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(down=True)) as server:
            settings = _configured(tmp_path, server)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(12))
                await _until_status(tmp_path, lambda t: t["parked"] and not t["tasks"]["running"])
            with contextlib.closing(sqlite3.connect(tmp_path / ".batchd/batchd.db")) as db, db:
                db.execute("UPDATE parked SET since = since - ?", (8 * _DAY_S,))
            # Longer than it takes to look at the time.
            server.control(down=False, latency_s=1.5)
            async with Daemon(settings) as daemon:
                await _until_done(daemon, "b")
        assert {(r["status"], str(r["error"])) for r in results(tmp_path, "b")} == {
            ("completed", "None")
        }

    asyncio.run(scenario())


def test_time_in_which_a_provider_was_tried_counts_over_a_restart(tmp_path: Path) -> None:
    """What one daemon has waited in vain the next one knows,
    so that no row of restarts keeps tasks waiting for ever.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(down=True)) as server:
            settings = _configured(tmp_path, server, probe_s=0.1, max_probe_s=0.2, max_parked_s=1.5)

            def tried(status: Mapping[str, Any]) -> float:
                return max((p["tried_s"] for p in status["parked"]), default=0.0)

            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(3))
                before = tried(await _until_status(tmp_path, lambda status: tried(status) > 0.2))
            async with Daemon(settings) as daemon:
                assert tried(await _ask(tmp_path, "status")) >= before
                await _until_done(daemon, "b")
                assert not (await _ask(tmp_path, "status"))["parked"]
        assert {r["reason"] for r in results(tmp_path, "b")} == {"provider_unavailable"}

    asyncio.run(scenario())


def test_a_parked_provider_without_a_task_goes_on_at_resume(tmp_path: Path) -> None:
    """No task can try it: it is not shown as parked until the next batch comes."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(faults="401")) as server:
            settings = _configured(tmp_path, server)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(2))
                await _until_status(tmp_path, lambda t: t["parked"] and not t["tasks"]["running"])
                await _ask(tmp_path, "cancel", target="b")
                await _until_done(daemon, "b")
                answer = await _ask(tmp_path, "resume", scope="provider", name="standin")
                assert answer == {"resumed": 1, "trying": [], "held": []}
                assert not (await _ask(tmp_path, "status"))["parked"]

    asyncio.run(scenario())


def test_a_model_that_is_always_too_busy_waits_alone(tmp_path: Path) -> None:
    """Unnamed 429s of one model neither take the turns of its provider's other calls
    nor slow them down; `status` names it.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server, probe_s=30.0)
            async with Daemon(settings, watch=False) as daemon:
                refused = await submit(daemon, "refused.json", task_file(6, model="standin/429"))
                served = await submit(daemon, "served.json", task_file(20))
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, served.name)
                parked = (await _ask(tmp_path, "status"))["parked"]
                assert [(p["scope"], p["name"]) for p in parked] == [("model", "standin/429")]
                assert "while other models are served" in parked[0]["message"]
                await _ask(tmp_path, "cancel", target=refused.name)

    asyncio.run(scenario())
    assert {r["status"] for r in results(tmp_path, "served")} == {"completed"}
