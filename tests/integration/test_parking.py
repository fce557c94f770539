"""Outages, spent budgets and pauses, with a real daemon and a model server that can fail:
nothing is lost to them.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dropping import batch_done, submit
from patience import PATIENCE_S
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import config, control, words
from batchd.daemon import Daemon
from batchd.records import dollars
from batchd.store import queries
from batchd.store.queries import StoreReader
from tests.integration.test_daemon import results, task_file, until

pytestmark = pytest.mark.in_turns

_CONFIG = """\
[agent]
model = "standin/{model}"
[providers.standin]
base_url = "{base_url}"
api_key_file = "key"
[providers.judges]
base_url = "{judges}"
[models."standin/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 2
agents_per_process = 4
[evaluation]
by = "none"
judge_model = "judges/judge"
[governor]
max_retries = 2
first_backoff_s = 0.02
max_backoff_s = 0.05
probe_s = 0.2
max_probe_s = {max_probe_s}
{governor}
[budget]
per_day_usd = {per_day_usd}
"""
_KEY = "sk-the-right-one-0123456789"


def _configured(
    folder: Path, server: ModelServer, model: str = "steps-2", governor: str = "", **more: Any
) -> config.Config:
    values = {"judges": server.base_url, "max_probe_s": 0.5, "per_day_usd": 0.0, **more}
    text = _CONFIG.format(base_url=server.base_url, model=model, governor=governor, **values)
    (folder / "config.toml").write_text(text)
    if not (folder / "key").exists():
        (folder / "key").write_text(_KEY)
    return config.load(folder / "config.toml", {})


async def _ask(folder: Path, verb: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(control.request, folder / ".batchd", verb, **arguments)


async def _until_parked(folder: Path, count: int = 1) -> list[dict[str, Any]]:
    """Wait until so many things are parked; return them."""
    async with asyncio.timeout(PATIENCE_S):
        while len(parked := (await _ask(folder, "status"))["parked"]) != count:  # noqa: ASYNC110 (only asking shows it)
            await asyncio.sleep(0.02)
    return list(parked)


async def _until_idle(folder: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await _ask(folder, "status"))["running"]:  # noqa: ASYNC110 (only asking shows it)
            await asyncio.sleep(0.02)


def _status(folder: Path) -> str:
    """Return what `batchd status` says of what is parked."""
    with StoreReader(folder / ".batchd/batchd.db") as reader:
        parked = reader.parked()
        return "\n".join(words.parked_lines(parked, reader.read(queries.idle, parked)))


def _log(capsys: pytest.CaptureFixture[str], action: str) -> list[str]:
    captured = capsys.readouterr()
    return [line for line in (captured.out + captured.err).splitlines() if f" {action} " in line]


def test_a_bad_key_parks_everything_until_it_is_fixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handful of requests find it out, nothing ends, status and log say how to go on;
    `resume` completes all.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(api_key=_KEY)) as server:
            (tmp_path / "key").write_text("sk-the-wrong-one-0123456789")
            settings = _configured(tmp_path, server, max_probe_s=600.0)
            async with Daemon(settings) as daemon:
                batch = await submit(daemon, "b.json", task_file(150))
                await until(lambda: bool(server.totals.requests))
                await asyncio.sleep(1.0)
                assert server.totals.requests <= 8
                assert not results(tmp_path, "b")
                status = await _ask(tmp_path, "status")
                (parked,) = status["parked"]
                assert (parked["scope"], parked["name"], parked["cause"]) == (
                    "provider",
                    "standin",
                    "auth",
                )
                assert "refuses the API key" in parked["message"]
                tasks = status["tasks"]
                assert tasks["parked"] > 0, "who gave a slot back is not queued"
                assert tasks["queued"] + tasks["parked"] + tasks["running"] == 150
                (line,) = _log(capsys, "provider_parked")
                assert "batchd resume --provider standin" in line
                assert "in a variable, start batchd again with it" in line
                assert "Out of order" not in _status(tmp_path)

                before = server.totals.requests
                answer = await _ask(tmp_path, "resume", scope="provider", name="standin")
                assert answer == {"resumed": 1, "trying": ["standin"], "held": []}
                await until(lambda: server.totals.requests > before)
                await asyncio.sleep(0.5)
                assert server.totals.requests == before + 1, (
                    "one call tries a key that is no better"
                )

                (tmp_path / "key").write_text(_KEY)
                await _ask(tmp_path, "resume", scope="", name="")
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, batch.name)
                assert (await _ask(tmp_path, "status"))["parked"] == []
        found = results(tmp_path, "b")
        assert [r["status"] for r in found] == ["completed"] * 150
        assert all(r["usage"]["unsettled_calls"] == 0 for r in found)
        # Those that had a slot, and those that have tried since.
        assert sum(r["timing"]["parked_s"] > 1.0 for r in found) <= 15

    asyncio.run(scenario())


def test_a_key_file_that_may_not_be_read_any_more_ends_no_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before each try keys are read again;
    where commands would see the file by now, the log says so, and the old key counts.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(api_key=_KEY)) as server:
            key = tmp_path / "key"
            key.write_text("sk-the-wrong-one-0123456789")
            async with Daemon(_configured(tmp_path, server)) as daemon:
                await submit(daemon, "b.json", task_file(3))
                await _until_parked(tmp_path)
                key.unlink()
                key.symlink_to("/usr/bin/env")
                asked = server.totals.requests
                await until(lambda: server.totals.requests > asked + 1)
                key.unlink()
                key.write_text(_KEY)
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")

    asyncio.run(scenario())
    assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}
    assert any("which commands see" in line for line in _log(capsys, "config_reloaded"))


def test_an_outage_fails_no_task(tmp_path: Path) -> None:
    """A provider that is gone for much longer than all retries last parks its tasks;
    they go on by themselves.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server, "steps-3")
            async with Daemon(settings) as daemon:
                batch = await submit(daemon, "b.json", task_file(100))
                await until(lambda: server.totals.requests > 60)
                server.control(down=True)
                await _until_parked(tmp_path)
                calls = server.totals.requests
                await asyncio.sleep(2.0)
                assert server.totals.requests - calls <= 10, "half-open: one call, now and then"
                server.control(down=False)
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, batch.name)
        found = results(tmp_path, "b")
        assert [r["status"] for r in found] == ["completed"] * 100
        assert sum(r["usage"]["calls"] for r in found) == 300

    asyncio.run(scenario())


def test_a_parked_provider_is_remembered_over_a_restart(tmp_path: Path) -> None:
    """The next daemon lets one call try at once; that one answered, all go on where they were."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server, "steps-3", max_probe_s=600.0)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(20))
                await until(lambda: server.totals.requests > 10)
                server.control(faults="402")
                await _until_parked(tmp_path)
                since = (await _ask(tmp_path, "status"))["parked"][0]["since"]
            refused = server.totals.requests
            async with Daemon(settings) as daemon:
                await until(lambda: server.totals.requests == refused + 1)
                await asyncio.sleep(0.5)
                assert server.totals.requests == refused + 1
                (parked,) = (await _ask(tmp_path, "status"))["parked"]
                assert (parked["cause"], parked["since"]) == ("quota", since)
            server.control(faults="")
            async with Daemon(settings) as daemon, asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")
            assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}
            assert server.totals.repeated <= refused + 2

    asyncio.run(scenario())


def test_a_provider_that_stays_away_too_long_ends_its_tasks(tmp_path: Path) -> None:
    """After max_parked_s they end as errors with the cause, those that never began too;
    the next batch is tried again.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(down=True)) as server:
            settings = _configured(tmp_path, server, governor="max_parked_s = 1.0")
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(30))
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
                server.control(down=False)
                await submit(daemon, "c.json", task_file(3))
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "c")
                assert (await _ask(tmp_path, "status"))["parked"] == []
        for result in results(tmp_path, "b"):
            assert (result["status"], result["reason"]) == ("error", "provider_unavailable")
            assert "standin/steps-2" in result["error"]["message"]
        assert {r["status"] for r in results(tmp_path, "c")} == {"completed"}

    asyncio.run(scenario())


def test_a_request_that_only_fails_for_one_task_parks_nothing_for_long(tmp_path: Path) -> None:
    """A provider that answers others is not down:
    the task that it fails on ends, the others complete.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server)
            poison = {"first_prompt": "poison", "model": "standin/500-always+steps-2"}
            good = [{"first_prompt": f"good {i}"} for i in range(5)]
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", json.dumps({"tasks": [poison, *good]}).encode())
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
        first, *others = results(tmp_path, "b")
        assert (first["status"], first["reason"]) == ("error", "provider_unavailable")
        assert {r["status"] for r in others} == {"completed"}

    asyncio.run(scenario())


def test_a_judge_that_is_down_parks_only_whom_it_judges(tmp_path: Path) -> None:
    """Tasks wait for the provider of their judge, in a place of their own; the others go on."""

    async def scenario() -> None:
        async with (
            ModelServer(ServerSettings()) as server,
            ModelServer(ServerSettings(down=True)) as judges,
        ):
            settings = _configured(tmp_path, server, judges=judges.base_url)
            tasks = [
                {"first_prompt": f"task {i}", "evaluator": "judge" if i % 2 else "none"}
                for i in range(12)
            ]
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", json.dumps({"tasks": tasks}).encode())
                await until(lambda: len(results(tmp_path, "b")) == 6)
                (parked,) = await _until_parked(tmp_path)
                assert parked["name"] == "judges"
                judges.control(down=False, default="steps-1")
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
            assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}
            assert server.totals.repeated == 0

    asyncio.run(scenario())


def test_a_days_budget_parks_the_rest_until_there_is_money(tmp_path: Path) -> None:
    """Spending ends at or under the day's budget, by the server's count;
    a higher one lets the rest go on.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            limits: dict[str, Any] = {"limits": {"max_output_tokens": 50}}
            settings = _configured(tmp_path, server, per_day_usd=0.02)
            async with Daemon(settings) as daemon:
                # 60 tasks x 2 calls of about 470 + 20 tokens: $0.06 by our prices.
                await submit(daemon, "b.json", task_file(60, **limits))
                await _until_spent(tmp_path, 0.02)
                calls = server.totals.requests
                await asyncio.sleep(1.5)
                assert server.totals.requests == calls, "nothing is asked any more"
                usage = server.totals.usage
                spent = (usage.input_tokens + 2 * usage.output_tokens) / 1e6
                assert 0.018 < spent <= 0.02
                assert {r["status"] for r in results(tmp_path, "b")} == {"completed"}
                await _ask(tmp_path, "tune", changes={"budget.per_day_usd": "1.0"})
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
        found = results(tmp_path, "b")
        assert [r["status"] for r in found] == ["completed"] * 60

    asyncio.run(scenario())


def test_a_call_that_no_day_can_pay_for_ends_its_own_task(tmp_path: Path) -> None:
    """Its price is above the whole day's budget:
    its task ends with the fix, those behind it begin, nothing is parked.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            async with Daemon(_configured(tmp_path, server, per_day_usd=0.02)) as daemon:
                tasks = _tasks(6)
                tasks[0]["limits"]["max_output_tokens"] = 20_000
                await submit(daemon, "b.json", json.dumps(tasks).encode())
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
                assert (await _ask(tmp_path, "status"))["parked"] == []
            assert server.totals.requests == 10

    asyncio.run(scenario())
    dear, *cheap = results(tmp_path, "b")
    assert (dear["status"], dear["reason"]) == ("timeout", "budget")
    assert "the day's budget is $0.0200: no day can pay for it" in dear["error"]["message"]
    assert [r["status"] for r in cheap] == ["completed"] * 5


def test_a_call_that_must_wait_for_tomorrow_waits_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cheaper tasks begin and complete meanwhile;
    once nothing that waits fits, that is said once; money lets it go on.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server, per_day_usd=0.02)
            async with Daemon(settings) as daemon:
                await submit(daemon, "first.json", json.dumps(_tasks(6)).encode())
                await batch_done(daemon, "first")
                # Fits into $0.02, but not into what the first tasks have left of it.
                dear = _tasks(1, priority=100)
                dear[0]["limits"]["max_output_tokens"] = 8_500
                await submit(daemon, "dear.json", json.dumps(dear).encode())
                (parked,) = await _until_parked(tmp_path)
                while (parked["scope"], parked["name"]) != ("day", ""):
                    assert (parked["scope"], parked["cause"]) == ("task", "budget")
                    (parked,) = await _until_parked(tmp_path)
                assert "the next call may cost $0.01" in parked["message"]
                for name in ("more", "again"):
                    await submit(daemon, f"{name}.json", json.dumps(_tasks(3)).encode())
                    async with asyncio.timeout(PATIENCE_S):
                        await batch_done(daemon, name)
                assert not results(tmp_path, "dear")
                await _ask(tmp_path, "tune", changes={"budget.per_day_usd": "1.0"})
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "dear")
                assert (await _ask(tmp_path, "status"))["parked"] == []

    asyncio.run(scenario())
    for name in ("more", "again", "dear"):
        assert {r["status"] for r in results(tmp_path, name)} == {"completed"}
    assert len(_log(capsys, "budget_reached")) == 1


def test_the_end_of_the_days_money_starts_nothing_in_vain(tmp_path: Path) -> None:
    """Few find out that there is none;
    the rest of a long queue never begins, nor when there is a little more.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server, per_day_usd=0.005)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", json.dumps(_tasks(200)).encode())
                for usd in (0.005, 0.01, 0.015):
                    await _ask(tmp_path, "tune", changes={"budget.per_day_usd": str(usd)})
                    await _until_spent(tmp_path, usd)
                    done = len(results(tmp_path, "b"))
                    with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
                        # That nothing goes on is found out, and noted, a moment later.
                        await until(lambda: [p.scope for p in reader.parked()] == ["day"])
                        begun = reader.begun()
                    # Those at work when it was found out,
                    # and those that took their slots meanwhile.
                    assert len(begun) <= 3 * 8 < 200 - done

    asyncio.run(scenario())


async def _until_spent(folder: Path, per_day_usd: float) -> None:
    """Wait until all waits for more than this budget."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = await _ask(folder, "status")
            spent = [p["message"] for p in status["parked"] if p["scope"] == "day"]
            if any(dollars(per_day_usd) in message for message in spent):
                return
            await asyncio.sleep(0.02)


def _tasks(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return tasks whose calls are short."""
    limits = {"max_output_tokens": 50}
    return [{"first_prompt": f"work {i}", "limits": {**limits}, **more} for i in range(count)]


def test_resume_says_that_the_days_money_is_still_spent(tmp_path: Path) -> None:
    """The day is no provider that is tried: what is parked again at once is shown as held."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            limits: dict[str, Any] = {"limits": {"max_output_tokens": 50}}
            async with Daemon(_configured(tmp_path, server, per_day_usd=0.001)) as daemon:
                await submit(daemon, "b.json", task_file(8, **limits))
                for _ in range(20):
                    await _until_spent(tmp_path, 0.001)
                    answer = await _ask(tmp_path, "resume")
                    # It depends on how fast the next call finds that there is no money.
                    assert answer["trying"] == []
                    assert answer["resumed"] == 1 or answer["held"]

    asyncio.run(scenario())


def test_a_parked_provider_that_is_paused_too_is_not_tried_after_a_restart(
    tmp_path: Path,
) -> None:
    """A start has one task try what was parked, but not what somebody paused as well."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(down=True)) as server:
            settings = _configured(tmp_path, server)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(3))
                await _until_parked(tmp_path)
                await _ask(tmp_path, "pause", scope="provider", name="standin")
            server.control(down=False)
            async with Daemon(settings) as daemon:
                for _ in range(50):
                    assert not (await _ask(tmp_path, "status"))["running"]
                    await asyncio.sleep(0.02)
                await _ask(tmp_path, "resume")
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
            assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 3

    asyncio.run(scenario())


def test_tasks_wait_for_a_provider_that_is_configured_no_more(tmp_path: Path) -> None:
    """That would end all of them, so that it ends none, over a restart too;
    with the provider back, all complete.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            settings = _configured(tmp_path, server)
            without = {k: v for k, v in settings.providers.items() if k != "standin"}
            agent = replace(settings.agent, model="judges/steps-2")
            changed = replace(settings, providers=without, agent=agent)
            async with Daemon(settings) as daemon:
                await _ask(tmp_path, "pause", scope="all")
                await submit(daemon, "b.json", task_file(20, model="standin/steps-2"))
            async with Daemon(changed):
                await _ask(tmp_path, "resume")
                await asyncio.sleep(0.5)
                (parked,) = await _until_parked(tmp_path)
                assert (parked["name"], parked["cause"]) == ("standin", "auth")
                assert "[providers.standin] is not configured" in parked["message"]
            async with Daemon(changed):
                await _until_parked(tmp_path)
                await _until_idle(tmp_path)
                named = await _ask(tmp_path, "resume", scope="provider", name="standin")
                assert named["trying"] == ["standin"]
                await asyncio.sleep(0.5)
            assert not results(tmp_path, "b")
            assert not server.totals.requests
            async with Daemon(settings) as daemon, asyncio.timeout(PATIENCE_S):
                await batch_done(daemon, "b")
            assert [r["status"] for r in results(tmp_path, "b")] == ["completed"] * 20
            assert server.totals.repeated == 0

    asyncio.run(scenario())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("scope", ["batch", "task", "provider", "all"])
def test_what_is_paused_stands_still_over_a_restart_until_it_is_resumed(
    tmp_path: Path, scope: str
) -> None:
    """A running task gives its slot back at its next durable point;
    only what is paused stands still.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(latency_s=0.1)) as server:
            settings = _configured(tmp_path, server, "steps-30")
            name = {"batch": "b", "task": "b/001", "provider": "standin", "all": ""}[scope]
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(1))
                await until(lambda: server.totals.requests > 2)
                answer = await _ask(tmp_path, "pause", scope=scope, name=name, message="lunch")
                assert answer == {"parked": 1, "judged": 0}
                await _until_idle(tmp_path)
                calls = server.totals.requests
                await submit(daemon, "c.json", task_file(1, model="judges/steps-2"))
                if scope != "all":
                    async with asyncio.timeout(PATIENCE_S):
                        await batch_done(daemon, "c")
            async with Daemon(settings) as daemon:
                await asyncio.sleep(0.6)
                asked = [r for r in server.requests if r.model == "steps-30"]
                assert len(asked) <= calls
                (parked,) = (await _ask(tmp_path, "status"))["parked"]
                assert (parked["scope"], parked["cause"], parked["message"]) == (
                    scope,
                    "paused",
                    "lunch",
                )
                answer = await _ask(tmp_path, "resume", scope=scope, name=name)
                assert answer == {"resumed": 1, "trying": [], "held": []}
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
            (result,) = results(tmp_path, "b")
            assert result["status"] == "completed"
            assert result["usage"]["calls"] == 30
            assert result["timing"]["parked_s"] > 0.6
            assert server.totals.repeated == 0

    asyncio.run(scenario())


def test_what_is_parked_for_a_task_that_ended_is_tried_by_the_next(tmp_path: Path) -> None:
    """`status` says that it is out of order, and that none waits for it;
    the next one tries it at once, however long the wait was to be.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings(api_key=_KEY)) as server:
            (tmp_path / "key").write_text("sk-the-wrong-one-0123456789")
            settings = _configured(tmp_path, server, max_probe_s=600.0)
            async with Daemon(settings) as daemon:
                await submit(daemon, "b.json", task_file(2))
                await _until_parked(tmp_path)
                assert "Out of order" not in _status(tmp_path)
                await _ask(tmp_path, "cancel", target="b")
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "b")
                assert "Out of order since" in (said := _status(tmp_path))
                assert "To go on: the next task that needs it tries it, none waits; " in said
                (tmp_path / "key").write_text(_KEY)
                await submit(daemon, "c.json", task_file(2))
                async with asyncio.timeout(PATIENCE_S):
                    await batch_done(daemon, "c")
                assert {r["status"] for r in results(tmp_path, "c")} == {"completed"}
                assert _status(tmp_path) == ""

    asyncio.run(scenario())
