"""A real daemon against a server that limits requests and tokens:
judged by the server's own log.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from dropping import batch_done, submit
from patience import PATIENCE_S
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import config, control
from batchd.daemon import Daemon
from tests.integration.test_daemon import task_file, until

pytestmark = pytest.mark.in_turns

_RPM = "providers.standin.rpm"
_CONFIG = """\
[agent]
model = "standin/steps-2"
[providers.standin]
base_url = "{base_url}"
rpm = {rpm}
[pool]
processes = 2
agents_per_process = {agents}
[limits]
max_output_tokens = 100
[evaluation]
by = "none"
"""


async def _run(
    folder: Path, server: ModelServer, tasks: int, *, rpm: int = 0, agents: int = 8, tuned: str = ""
) -> dict[str, Any]:
    """Run tasks of two calls each to their end;
    return what the daemon then says of the provider.
    """
    text = _CONFIG.format(base_url=server.base_url, rpm=rpm, agents=agents)
    (folder / "config.toml").write_text(text)
    async with Daemon(config.load(folder / "config.toml", {})) as daemon:
        batch = await submit(daemon, "b.json", task_file(tasks))
        if tuned:
            await until(lambda: bool(server.totals.requests))
            state = folder / ".batchd"
            await asyncio.to_thread(control.request, state, "tune", changes={_RPM: tuned})
        async with asyncio.timeout(PATIENCE_S):
            await batch_done(daemon, batch.name)
        status = await asyncio.to_thread(control.request, folder / ".batchd", "status")
    pace: dict[str, Any] = status["providers"]["standin"]
    return pace


def _counts(server: ModelServer) -> tuple[int, int]:
    by_status = server.totals.by_status
    assert set(by_status) <= {200, 429}
    return by_status[200], by_status[429]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("headers", [False, True])
def test_a_storm_costs_few_requests_and_no_task(tmp_path: Path, *, headers: bool) -> None:
    """Sixteen agents at a provider of ten requests a second:
    all is answered, at its pace, with or without headers.
    """

    async def scenario() -> None:
        limits = ServerSettings(
            rps=10, burst=10, retry_after_s=0.5, limit_headers=headers, default="steps-2"
        )
        async with ModelServer(limits) as server:
            begun = time.monotonic()
            pace = await _run(tmp_path, server, 40)
            took = time.monotonic() - begun
            answered, refused = _counts(server)
            assert answered == 80
            assert refused <= answered / 2, "where no task learns, it is several for each answer"
            assert took < PATIENCE_S, "seven seconds are the provider's own"
            slowest, fastest = (480, 720) if headers else (240, 2400)
            assert slowest <= pace["rpm"] <= fastest

    asyncio.run(scenario())


def test_headers_of_answers_spare_the_first_refusal_too(tmp_path: Path) -> None:
    """Few agents and a large burst: nearing its end, the rate is known from answers alone."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings(rps=10, burst=40, default="steps-2")) as server:
            begun = time.monotonic()
            pace = await _run(tmp_path, server, 40, agents=2)
            took = time.monotonic() - begun
            assert _counts(server) == (80, 0)
            if took < 4:  # else the burst was filled again as fast as it was used up
                assert 540 <= pace["rpm"] <= 720

    asyncio.run(scenario())


def test_a_limit_on_tokens_is_learned_as_one_on_tokens(tmp_path: Path) -> None:
    """The server says which: requests are not held back, tokens are."""

    async def scenario() -> None:
        # An answer counts 1,050 tokens.
        limits = ServerSettings(tps=10_500, token_burst=10_500, retry_after_s=0.5, count=False)
        async with ModelServer(limits) as server:
            pace = await _run(tmp_path, server, 40)
            answered, refused = _counts(server)
            assert answered == 80
            assert refused <= answered / 2
            assert pace["rpm"] == 0
            assert pace["tpm"] > 0

    asyncio.run(scenario())


def test_a_configured_rate_is_kept_and_may_be_tuned(tmp_path: Path) -> None:
    """The server never sees more than the rate and its burst; `tune` changes it under way."""

    async def scenario() -> None:
        async with ModelServer(ServerSettings()) as server:
            pace = await _run(tmp_path, server, 10, rpm=300)
            times = sorted(exchange.at for exchange in server.requests)
            assert len(times) == 20
            assert times[-1] - times[0] >= (20 - 5 - 2) / 5
            assert pace["rpm"] == pytest.approx(296, abs=2)
        (tmp_path / "again").mkdir()
        async with ModelServer(ServerSettings()) as server:
            begun = time.monotonic()
            await _run(tmp_path / "again", server, 10, rpm=6, tuned="6000")
            assert time.monotonic() - begun < 120, "it would have been three minutes"

    asyncio.run(scenario())


def test_tasks_that_run_out_of_their_own_time_slow_no_others_down(tmp_path: Path) -> None:
    """A call that is broken off at the end of its task's time is no sign
    that its provider has too much to do.
    """
    text = _CONFIG.replace("[limits]", "[limits]\ntimeout_s = 0.8")

    async def scenario() -> None:
        async with ModelServer(ServerSettings(latency_s=1.5)) as server:
            path = tmp_path / "config.toml"
            path.write_text(text.format(base_url=server.base_url, rpm=0, agents=8))
            async with Daemon(config.load(path, {})) as daemon, asyncio.timeout(PATIENCE_S):
                batch = await submit(daemon, "b.json", task_file(16))
                await batch_done(daemon, batch.name)
                status = await asyncio.to_thread(control.request, tmp_path / ".batchd", "status")
        assert status["providers"]["standin"]["concurrent"] == 32

    asyncio.run(scenario())
    ends = (tmp_path / "outbox/b/results.jsonl").read_text().splitlines()
    assert {json.loads(end)["reason"] for end in ends} == {"wall_clock"}
