"""The daemon's watch over what could move and does not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from dropping import batch_done, submit

from batchd import control
from batchd.config import Config, load
from batchd.daemon import Daemon
from batchd.daemon.self_check import Movable, SelfCheck
from batchd.lifecycle import inputs
from batchd.lifecycle.effects import End
from batchd.records import Reason, Ref, TaskStatus, TurnFacts

T = TypeVar("T")

_CONFIG = """\
[agent]
model = "standin/{model}"
[providers.standin]
base_url = "{base_url}"
[models."standin/{model}"]
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[pool]
processes = 1
drain_s = 1
[limits]
tool_timeout_s = 1.0
[evaluation]
by = "none"
"""


def _configured(folder: Path, base_url: str, model: str) -> Config:
    (folder / "config.toml").write_text(_CONFIG.format(base_url=base_url, model=model))
    return load(folder / "config.toml", {})


def _file(count: int) -> bytes:
    return json.dumps({"tasks": [{"first_prompt": f"task {i}"} for i in range(count)]}).encode()


async def _until(condition: Any, limit_s: float = 90) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 (a worker's process sets no events here)
            await asyncio.sleep(0.02)


def _looking_at(daemon: Daemon) -> SelfCheck:
    return SelfCheck(
        daemon.lifecycle,
        daemon.troubles,
        daemon.governor,
        daemon.batches,
        daemon.turns,
        daemon.attempts,
    )


def test_a_task_whose_wake_up_was_lost_is_named(tmp_path: Path, model_server: str) -> None:
    """A hanging call and tasks that wait for its slot could not move;
    a task that nothing woke up could.
    """

    async def scenario() -> None:
        async with Daemon(_configured(tmp_path, model_server, "hang"), watch=False) as daemon:
            check = _looking_at(daemon)
            assert list(check.movables()) == []
            # As if the wake-up that comes with a task were lost.
            lost = TurnFacts(Ref("a", "001"), priority=0, order=0, directory=str(tmp_path))
            daemon.lifecycle.take(inputs.Accepted(lost))
            (queued,) = check.movables()
            assert queued.what == "a/001, queued, and a slot is free"
            daemon.lifecycle.take(
                inputs.GiveUp(End(lost.ref, TaskStatus.CANCELLED, Reason.USER, ""))
            )
            daemon.lifecycle.take(inputs.Ended(lost.ref, TaskStatus.CANCELLED))
            daemon.lifecycle.take(inputs.Published(lost.ref, TaskStatus.CANCELLED))
            await submit(daemon, "b.json", _file(2))
            await _until(lambda: any(a.step == "model" for a in daemon.attempts.active))
            (call,) = check.movables()
            assert call.what == "b/001, about which its worker is silent (model)"
            assert call.may_s == 660.0

    asyncio.run(scenario())


def test_an_order_that_ends_many_for_long_is_no_stall(tmp_path: Path) -> None:
    """The results of what it ends wait for its last transaction: each one before that moves."""
    seen: list[set[Movable]] = []

    async def scenario() -> None:
        settings = _configured(tmp_path, "http://127.0.0.1:9/v1", "steps-1")
        async with Daemon(settings, work=False) as daemon:
            check = _looking_at(daemon)

            async def looking(work: Callable[..., T], *args: object, **kwargs: object) -> T:
                seen.append({*check.movables()})
                return await daemon.store.write(work, *args, **kwargs)

            await submit(daemon, "b.json", _file(1201))
            ends = []
            for i in range(1, 1202):
                end = End(Ref("b", f"{i:03d}"), TaskStatus.CANCELLED, Reason.USER, "no")
                ends += daemon.lifecycle.take(inputs.GiveUp(end))
            with daemon.publisher.ending_many():
                await daemon.publisher.finish_all(ends, looking)
            await batch_done(daemon, "b")

    asyncio.run(scenario())
    assert len(seen) == 3
    assert all(seen)
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


def test_a_daemon_whose_parts_differ_ends(tmp_path: Path) -> None:
    """Where tests ask for it, as they all do: a task that the lifecycle has and no batch holds."""

    async def scenario() -> None:
        daemon = Daemon(_configured(tmp_path, "http://127.0.0.1:9/v1", "steps-1"))
        running = asyncio.create_task(daemon.run())
        await _until((tmp_path / ".batchd/control.sock").exists)
        # Else it may be begun before anybody looks.
        await asyncio.to_thread(control.request, tmp_path / ".batchd", "pause", scope="all")
        stray = TurnFacts(Ref("a", "001"), priority=0, order=0, directory=str(tmp_path))
        daemon.lifecycle.take(inputs.Accepted(stray))
        await running

    with pytest.raises(AssertionError, match="a/001: its batch is not open"):
        asyncio.run(scenario())


@pytest.mark.long
def test_an_agent_that_waits_for_what_never_comes_is_reported(
    tmp_path: Path, model_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` has the task and the fix after its minute,
    and no more once the task is cancelled.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings = _configured(tmp_path, model_server, "steps-2")
    state = tmp_path / ".batchd"

    def troubles() -> list[dict[str, Any]]:
        return [dict(each) for each in control.request(state, "status")["troubles"]]

    async def scenario() -> None:
        agent = "scripted_agents:waits_for_ever"
        async with Daemon(settings, agent=agent, watch=False) as daemon:
            await submit(daemon, "b.json", _file(1))
            begun = time.monotonic()
            while not (found := await asyncio.to_thread(troubles)):
                assert time.monotonic() - begun < 200
                await asyncio.sleep(1)
            assert time.monotonic() - begun > 60
            assert (found[0]["what"], len(found)) == ("stalled", 1)
            assert found[0]["message"] == "b/001, about which its worker is silent (starting)"
            assert found[0]["mend"].startswith("restart batchd")

    asyncio.run(scenario())
