"""Models that are gone, or will be soon:
a real daemon against the stand-in server, judged by the server's log.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
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
from batchd.daemon.listeners import Listener
from batchd.errors import UsageError
from batchd.records import Parking
from batchd.spool import taskfile
from batchd.store.queries import StoreReader
from tests.integration.test_daemon import results

pytestmark = pytest.mark.in_turns

_CONFIG = """\
[agent]
model = "standin/steps-2"
[providers.standin]
base_url = "{base_url}"
[pool]
processes = 2
agents_per_process = 4
[evaluation]
by = "none"
[governor]
max_retries = 2
first_backoff_s = 0.02
max_backoff_s = 0.05
max_probe_s = {max_probe_s}
max_parked_s = {max_parked_s}
"""
#: Longer than any test takes.
_DAY_S = 86400.0
#: What the server has: a model that goes, and one that stays.
_BOTH = {"steps-2": "", "steps-3": ""}
_LEFT = {"steps-3": ""}


class Heard(Listener):
    """What a daemon reports, in order."""

    def __init__(self) -> None:
        self.parked: list[tuple[Parking, str]] = []

    def provider_parked(self, parking: Parking, fix: str) -> None:
        """Keep it."""
        self.parked.append((parking, fix))


def _configured(
    folder: Path, server: ModelServer, max_probe_s: float = _DAY_S, max_parked_s: float = 604800.0
) -> config.Config:
    text = _CONFIG.format(
        base_url=server.base_url, max_probe_s=max_probe_s, max_parked_s=max_parked_s
    )
    (folder / "config.toml").write_text(text)
    return config.load(folder / "config.toml", {})


def _tasks(count: int, **more: object) -> bytes:
    return json.dumps(
        {"tasks": [{"first_prompt": f"task {n}", **more} for n in range(count)]}
    ).encode()


async def _ask(folder: Path, verb: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(control.request, folder / ".batchd", verb, **arguments)


async def _until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 (no event says so)
            await asyncio.sleep(0.02)


async def _status(folder: Path, holds: Callable[[Mapping[str, Any]], object]) -> Mapping[str, Any]:
    """Wait until what ``status`` says is so; return it."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(status := await _ask(folder, "status")):  # noqa: ASYNC110 (only asking shows)
            await asyncio.sleep(0.02)
    return status


async def _held(folder: Path) -> Mapping[str, Any]:
    """Wait until something is parked and nothing is at work; return the parking."""
    status = await _status(folder, lambda s: s["parked"] and not s["tasks"]["running"])
    (parked,) = status["parked"]
    return dict(parked)


async def _done(daemon: Daemon, *batches: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        for name in batches:
            await batch_done(daemon, name)


def test_a_model_that_is_gone_holds_its_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 200 tasks none fails, few calls are made for it,
    one report says it with the nearest names; others go on; `resume` has it tried.
    """
    heard = Heard()

    async def scenario() -> None:
        async with ModelServer(ServerSettings(models=_BOTH, count=False)) as server:
            settings = _configured(tmp_path, server)
            async with Daemon(settings, listeners=[heard]) as daemon:
                server.control(models=_LEFT)
                await submit(daemon, "b.json", _tasks(200))
                parked = await _held(tmp_path)
                assert (parked["scope"], parked["name"]) == ("model", "standin/steps-2")
                assert parked["cause"] == "model_gone"
                await _until(lambda: heard.parked)
                assert "model_parked" in capsys.readouterr().out
                await submit(daemon, "c.json", _tasks(4, model="standin/steps-3"))
                await _done(daemon, "c")
                assert not results(tmp_path, "b")
                refused = server.totals.by_status[404]
                assert refused <= 8
            async with Daemon(settings, listeners=[heard]) as daemon:
                # Over a restart too; and one call tries it.
                await _until(lambda: server.totals.by_status[404] == refused + 1)
                parked = await _held(tmp_path)
                assert "nearest are standin/steps-3" in parked["message"]
                server.control(models=_BOTH)
                answer = await _ask(tmp_path, "resume", scope="model", name="standin/steps-2")
                assert answer["trying"] == ["standin/steps-2"]
                await _done(daemon, "b")
        assert {(r["status"], str(r["error"])) for r in results(tmp_path, "b")} == {
            ("completed", "None")
        }

    asyncio.run(scenario())
    ((reported, how),) = heard.parked
    assert "does not know the model 'steps-2'" in reported.message
    assert "nearest are standin/steps-3" in reported.message
    assert "retry --failed --model" in how
    (lines,) = (words.parked_lines([reported]),)
    assert "batchd retry --failed --model PROVIDER/MODEL BATCH" in "".join(lines)


def test_held_tasks_run_again_with_another_model(tmp_path: Path) -> None:
    """`retry --failed --model` has what waits run again, and what comes after it;
    each old task ends as cancelled, and says where it runs.
    """

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings(models=_BOTH)) as server,
            Daemon(_configured(tmp_path, server)) as daemon,
        ):
            await submit(daemon, "a.json", _tasks(1))
            await _done(daemon, "a")
            server.control(models=_LEFT)
            specs = json.loads(_tasks(3))
            specs["tasks"][1]["model"] = "standin/steps-3"
            specs["tasks"][2] |= {"model": "standin/steps-3", "after": ["001"]}
            await submit(daemon, "b.json", json.dumps(specs).encode())
            await _status(tmp_path, lambda s: s["parked"] and not s["tasks"]["running"])
            await _until(lambda: results(tmp_path, "b"))
            with pytest.raises(UsageError, match="have not ended cannot run again"):
                await _ask(tmp_path, "retry", target=["b"], failed=False)
            for wrong in ("steps-3", "nowhere/x"):
                with pytest.raises(UsageError):
                    await _ask(tmp_path, "retry", target=["b"], failed=True, model=wrong)
            order = {"target": ["b"], "failed": True, "model": "standin/steps-3"}
            answer = await _ask(tmp_path, "retry", **order, claim="01JDZZZZZZZZZZZZZZZZZZZZZZ")
            (run,) = answer["runs"]
            assert run == {"batch": "b-2", "retry_of": "b", "tasks": 2}
            # Once more, as a command does whose answer was lost.
            again = await _ask(tmp_path, "retry", **order, claim="01JDZZZZZZZZZZZZZZZZZZZZZZ")
            assert again == answer
            await _done(daemon, "b", "b-2")
            assert (await _ask(tmp_path, "status"))["tasks"]["queued"] == 0
        old = {r["task"]: r for r in results(tmp_path, "b")}
        assert {name: r["status"] for name, r in old.items()} == {
            "001": "cancelled",
            "002": "completed",
            "003": "cancelled",
        }
        assert "runs again in b-2, with standin/steps-3" in old["001"]["error"]["message"]
        new = results(tmp_path, "b-2")
        assert [(r["task"], r["status"], r["model"]) for r in new] == [
            (name, "completed", "standin/steps-3") for name in ("001", "003")
        ]
        asked = json.loads((tmp_path / "outbox/b-2/request.json").read_text())
        assert {task["model"] for task in asked["tasks"]} == {"standin/steps-3"}

    asyncio.run(scenario())


def test_what_has_ended_runs_again_with_another_model(tmp_path: Path) -> None:
    """Without anything that waits, `--model` is what it says;
    without `--failed`, all of it runs again.
    """

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings()) as server,
            Daemon(_configured(tmp_path, server)) as daemon,
        ):
            await submit(daemon, "a.json", _tasks(2))
            await _done(daemon, "a")
            await _ask(tmp_path, "retry", target=["a"], failed=False, model="standin/steps-3")
            await _done(daemon, "a-2")
        assert [(r["model"], r["usage"]["calls"]) for r in results(tmp_path, "a-2")] == [
            ("standin/steps-3", 3)
        ] * 2

    asyncio.run(scenario())


def test_a_tier_goes_with_a_task_to_another_model_where_that_has_tiers(tmp_path: Path) -> None:
    """The new run's request is a task file like any other,
    so that it can be dropped, and run again, as it stands.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server)
            text = '[models."standin/steps-4"]\napi = "messages"\n'
            (tmp_path / "config.toml").write_text((tmp_path / "config.toml").read_text() + text)
            settings = config.load(tmp_path / "config.toml", {})
            async with Daemon(settings) as daemon:
                data = _tasks(1, service_tier="flex", tier_fallback=90, effort="low")
                await submit(daemon, "a.json", data)
                await _done(daemon, "a")
                for model in ("standin/steps-3", "standin/steps-4"):
                    await _ask(tmp_path, "retry", target=["a"], failed=False, model=model)
                await _done(daemon, "a-2", "a-3")
        for run, tier, fallback_s in (("a-2", "flex", 90.0), ("a-3", "standard", None)):
            (result,) = results(tmp_path, run)
            assert (result["status"], result["service_tier"]) == ("completed", tier)
            request = (tmp_path / "outbox" / run / "request.json").read_bytes()
            (task,) = taskfile.parse(request, "request.json", settings).tasks
            assert (task.service_tier, task.tier_fallback_s, task.effort) == (
                tier,
                fallback_s,
                "low",
            )

    asyncio.run(scenario())


def test_a_change_of_configuration_has_a_gone_model_tried(tmp_path: Path) -> None:
    """A key that `tune` changes is a reason to ask again."""

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings(models=_LEFT)) as server,
            Daemon(_configured(tmp_path, server)) as daemon,
        ):
            await submit(daemon, "b.json", _tasks(3))
            await _held(tmp_path)
            server.control(models=_BOTH)
            await _ask(tmp_path, "tune", changes={"providers.standin.rpm": "6000"})
            await _done(daemon, "b")
        assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}

    asyncio.run(scenario())


def test_tasks_of_a_model_that_stays_away_end_with_the_reason(tmp_path: Path) -> None:
    """`max_parked_s` counts as for providers; and where nothing is parked,
    as in `batchd run`, they end at once, after one call.
    """

    async def scenario(folder: Path, max_parked_s: float) -> int:
        async with ModelServer(ServerSettings(models=_LEFT)) as server:
            settings = _configured(folder, server, max_probe_s=0.2, max_parked_s=max_parked_s)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", _tasks(20))
                await _done(daemon, "b")
                assert not (await _ask(folder, "status"))["parked"]
            assert {r["reason"] for r in results(folder, "b")} == {"bad_request"}
            return server.totals.requests

    for name in ("late", "once"):
        (tmp_path / name).mkdir()
    assert asyncio.run(scenario(tmp_path / "late", 1.0)) < 20
    assert asyncio.run(scenario(tmp_path / "once", 0.0)) <= 8


def test_a_judge_that_is_gone_holds_what_it_judges(tmp_path: Path) -> None:
    """The work is done and waits for its verdict; with another judge configured, it runs again."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(models=_LEFT)) as server:
            settings = _configured(tmp_path, server)
            judged = dataclasses.replace(
                settings.evaluation, by="judge", judge_model="standin/steps-2"
            )
            settings = dataclasses.replace(settings, evaluation=judged)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", _tasks(2, model="standin/steps-3"))
                await _status(tmp_path, lambda s: s["tasks"]["parked"] == 2)
                changes = {"evaluation.judge_model": "standin/steps-3"}
                await _ask(tmp_path, "tune", changes=changes)
                await _status(tmp_path, lambda s: s["tasks"]["parked"] == 2)
                order = {"target": ["b"], "failed": True, "model": "standin/steps-3"}
                await _ask(tmp_path, "retry", **order)
                await _done(daemon, "b", "b-2")
        assert {r["status"] for r in results(tmp_path, "b")} == {"cancelled"}
        assert {r["status"] for r in results(tmp_path, "b-2")} == {"completed"}

    asyncio.run(scenario())


def test_where_nothing_is_left_to_wait_no_trace_is_left(tmp_path: Path) -> None:
    """Once held tasks run again, the parking of their model goes with `resume`,
    and no row of it is left.
    """

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings(models=_LEFT)) as server,
            Daemon(_configured(tmp_path, server)) as daemon,
        ):
            await submit(daemon, "b.json", _tasks(2))
            await _held(tmp_path)
            order = {"target": ["b"], "failed": True, "model": "standin/steps-3"}
            await _ask(tmp_path, "retry", **order)
            await _done(daemon, "b", "b-2")
            await _ask(tmp_path, "resume", scope="model", name="standin/steps-2")
        with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
            assert reader.parked() == ()

    asyncio.run(scenario())
