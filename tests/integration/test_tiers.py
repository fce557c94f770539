"""Service tiers with a real daemon against the stand-in:
half the price, room of their own, judged by the server's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dropping import batch_done, submit
from patience import PATIENCE_S
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import config, control
from batchd.daemon import Daemon
from batchd.errors import UsageError
from batchd.store.queries import StoreReader

pytestmark = pytest.mark.in_turns

_CONFIG = """\
[agent]
model = "standin/{model}"
[providers.standin]
base_url = "{base_url}"
[models."standin/{model}"]
input_usd_per_mtok = 1.0
cached_input_usd_per_mtok = 0.1
cache_write_usd_per_mtok = 1.25
output_usd_per_mtok = 2.0
[models."standin/{model}".tiers.flex]
input_usd_per_mtok = 0.5
cached_input_usd_per_mtok = 0.05
cache_write_usd_per_mtok = 0.625
output_usd_per_mtok = 1.0
[pool]
processes = 1
agents_per_process = {agents}
[evaluation]
by = "none"
[budget]
per_day_usd = 5.0
[limits]
max_output_tokens = 100
"""


def _configured(folder: Path, server: ModelServer, model: str, agents: int = 8) -> config.Config:
    text = _CONFIG.format(base_url=server.base_url, model=model, agents=agents)
    (folder / "config.toml").write_text(text)
    return config.load(folder / "config.toml", {})


def _file(tier: str, count: int, **more: Any) -> bytes:
    tasks = [{"first_prompt": f"{tier} work {n}"} for n in range(count)]
    return json.dumps({"service_tier": tier, "tasks": tasks, **more}).encode()


def _results(folder: Path, batch: str) -> list[dict[str, Any]]:
    texts = (folder / "outbox" / batch / "results.jsonl").read_text().splitlines()
    return [json.loads(text) for text in texts]


def _calls(folder: Path, batch: str) -> list[dict[str, Any]]:
    lines = (
        line
        for path in sorted((folder / "outbox" / batch).glob("0*.jsonl"))
        for line in path.read_text().splitlines()
    )
    return [event for line in lines if (event := json.loads(line))["event"] == "CallStarted"]


def _cost(usage: dict[str, Any], half: float) -> float:
    fresh = usage["input_tokens"] - usage["cached_input_tokens"]
    spent = fresh + 0.1 * usage["cached_input_tokens"] + 2 * usage["output_tokens"]
    return float(half * spent / 1e6)


async def _status(folder: Path) -> dict[str, Any]:
    return await asyncio.to_thread(control.request, folder / ".batchd", "status")


def test_flex_is_half_the_price_and_its_refusals_slow_no_one_down(tmp_path: Path) -> None:
    """In reservation, result, ledger and the day's budget;
    each flex call meets 429s, the standard ones beside it none.
    """
    log = tmp_path / "log.jsonl"

    async def scenario() -> dict[str, Any]:
        async with ModelServer(ServerSettings(), log=log) as server:
            loaded = _configured(tmp_path, server, "steps-3+flex-full-2+retry-after-0.05")
            async with Daemon(loaded) as daemon, asyncio.timeout(PATIENCE_S):
                batches = [
                    await submit(daemon, f"{tier}.json", _file(tier, 4))
                    for tier in ("flex", "standard")
                ]
                for batch in batches:
                    await batch_done(daemon, batch.name)
                return await _status(tmp_path)

    status = asyncio.run(scenario())
    met = Counter(
        (e["tier_asked"], e["status"]) for e in map(json.loads, log.read_text().splitlines())
    )
    assert met == {("default", 200): 12, ("flex", 200): 12, ("flex", 429): 8}
    provider = status["providers"]["standin"]
    assert (provider["rpm"], provider["paused_s"], status["parked"]) == (0, 0.0, [])
    spent = {}
    for tier, half in (("flex", 0.5), ("standard", 1.0)):
        found = _results(tmp_path, tier)
        assert [r["status"] for r in found] == ["completed"] * 4
        for result in found:
            cost, usage = result["cost"], result["usage"]
            assert result["service_tier"] == tier
            assert cost["total"] == pytest.approx(_cost(usage, half), abs=1e-8)
            assert {name: t["calls"] for name, t in cost["tiers"].items()} == {tier: 3}
            assert cost["tiers"][tier]["cost"] == cost["total"]
            share = usage["cached_input_tokens"] / usage["input_tokens"]
            assert usage["cache_share"] == pytest.approx(share, abs=1e-6)
            saved = half * 0.9 * usage["cached_input_tokens"] / 1e6
            assert cost["cache_saved"] == pytest.approx(saved, abs=1e-8)
        for call in _calls(tmp_path, tier):
            given, said = call["reserved_tokens"]
            assert call["reserved_usd"] == pytest.approx(half * (1.25 * given + 2 * said) / 1e6)
        spent[tier] = sum(r["cost"]["total"] for r in found)
    with StoreReader(tmp_path / ".batchd/batchd.db") as reader:
        booked = {row.batch: row for row in reader.spend(("batch",))}
    assert {name: row.tally.cost_usd for name, row in booked.items()} == pytest.approx(
        spent, abs=1e-7
    )
    assert booked["flex"].tally.cache_share is not None
    assert booked["flex"].tally.cache_saved is not None
    assert status["day"]["spent_usd"] == pytest.approx(sum(spent.values()), abs=1e-7)


def test_a_full_tier_gives_its_slots_to_others(tmp_path: Path) -> None:
    """With one slot: flex is parked, the other flex ones do not start,
    the standard ones run; then all complete.
    """

    async def scenario() -> tuple[list[dict[str, Any]], int]:
        async with ModelServer(ServerSettings()) as server:
            model = "steps-2+flex-full-1+retry-after-1000"
            async with (
                Daemon(_configured(tmp_path, server, model, agents=1)) as daemon,
                asyncio.timeout(PATIENCE_S),
            ):
                flex = await submit(daemon, "flex.json", _file("flex", 1))
                while not (parked := (await _status(tmp_path))["parked"]):  # noqa: ASYNC110 (only asking shows it)
                    await asyncio.sleep(0.02)
                more = await submit(daemon, "more.json", _file("flex", 2, priority=9))
                plain = await submit(daemon, "plain.json", _file("standard", 3))
                await batch_done(daemon, plain.name)
                attempts = server.totals.by_status[429]
                # Each of them finds the tier full once more, and has it tried again.
                for batch in (flex, more):
                    task = asyncio.ensure_future(batch_done(daemon, batch.name))
                    while not task.done():
                        for waits in (await _status(tmp_path))["parked"]:
                            where = {"scope": waits["scope"], "name": waits["name"]}
                            with contextlib.suppress(UsageError):  # it has gone on, and ended
                                await asyncio.to_thread(
                                    control.request, tmp_path / ".batchd", "resume", **where
                                )
                        await asyncio.wait({task}, timeout=0.05)
                return parked, attempts

    parked, refused = asyncio.run(scenario())
    ((scope, name, cause),) = [(p["scope"], p["name"], p["cause"]) for p in parked]
    model = "standin/steps-2+flex-full-1+retry-after-1000"
    assert (scope, name, cause) == ("model", f"{model}@flex", "tier_full")
    assert refused == 1
    for batch in ("flex", "more", "plain"):
        assert {r["status"] for r in _results(tmp_path, batch)} == {"completed"}


def test_a_call_without_room_goes_on_at_the_standard_price(tmp_path: Path) -> None:
    """With ``tier_fallback`` 0 at once, and booked as that;
    all of that price was set aside before.
    """

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            model = "steps-2+flex-full-1+retry-after-1000"
            loaded = _configured(tmp_path, server, model)
            async with Daemon(loaded) as daemon, asyncio.timeout(PATIENCE_S):
                batch = await submit(daemon, "flex.json", _file("flex", 1, tier_fallback=0))
                await batch_done(daemon, batch.name)

    asyncio.run(scenario())
    (result,) = _results(tmp_path, "flex")
    assert result["status"] == "completed"
    assert result["cost"]["tiers"]["standard"]["calls"] >= 1
    asked = _calls(tmp_path, "flex")
    assert asked[0]["tier"] == "flex"
    assert asked[1]["tier"] == "standard"
    for call in asked:
        given, said = call["reserved_tokens"]
        assert call["reserved_usd"] == pytest.approx((1.25 * given + 2 * said) / 1e6)
