"""Whole daemons over each dialect,
judged by the log of a stand-in server that refuses what the real ones refuse.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import vendors
import warm
from dropping import batch_done, submit
from patience import PATIENCE_S
from replacing import replace
from standin.exchanges import Exchange
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import config, control
from batchd.daemon import Daemon, Listener
from batchd.errors import NoDaemonError
from batchd.events import CallFailed, Event
from batchd.records import FailureKind, Ref

pytestmark = pytest.mark.in_turns

APIS = ("chat", "responses", "messages")
_COUNTED = (
    "calls",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
)
_CONFIG = """\
[agent]
model = "standin/{model}"
effort = "{effort}"
[providers.standin]
base_url = "{base_url}"
api = "{api}"
output_limit_field = "max_completion_tokens"
[models."standin/{model}"]
input_usd_per_mtok = 0.25
cached_input_usd_per_mtok = 0.025
output_usd_per_mtok = 2.0
[pool]
processes = 2
agents_per_process = 5
[evaluation]
by = "none"
[report]
enabled = false
[governor]
first_backoff_s = 0.05
"""


class Watching(Listener):
    """Notes every event of tasks."""

    def __init__(self) -> None:
        self.events: list[tuple[Ref, Event]] = []

    def task_event(self, ref: Ref, event: Event) -> None:
        """Note."""
        self.events.append((ref, event))

    def failures(self) -> list[FailureKind]:
        """Return what calls failed of."""
        return [e.failure.kind for _, e in self.events if isinstance(e, CallFailed)]


def _configure(
    folder: Path, base_url: str, api: str, model: str, effort: str = ""
) -> config.Config:
    text = _CONFIG.format(base_url=base_url, api=api, model=model, effort=effort)
    (folder / "config.toml").write_text(text)
    return config.load(folder / "config.toml", {})


def _file(count: int, **more: Any) -> bytes:
    tasks = [{"first_prompt": f"task number {i}, {'and on ' * 800}", **more} for i in range(count)]
    return json.dumps({"tasks": tasks}).encode()


def _results(folder: Path, batch: str = "b") -> list[dict[str, Any]]:
    found = [p for p in (folder / "outbox" / batch).glob("*.json") if p.stem.isdigit()]
    return [json.loads(p.read_bytes()) for p in sorted(found)]


def _run(
    test: Callable[[ModelServer], Awaitable[None]], settings: ServerSettings | None = None
) -> None:
    async def go() -> None:
        async with ModelServer(settings or ServerSettings(), log_bodies=True) as server:
            await test(server)

    asyncio.run(go())


async def _work(settings: config.Config, data: bytes, watching: Watching | None = None) -> None:
    async with Daemon(settings, listeners=[watching] if watching else []) as daemon:
        batch = await submit(daemon, "b.json", data)
        await batch_done(daemon, batch.name)


def _items(exchange: Exchange) -> Sequence[bytes]:
    """Return the items of an answer as they were sent."""
    key = "output" if exchange.dialect == "responses" else "content"
    body = msgspec.json.decode(exchange.answer.encode(), type=dict[str, msgspec.Raw])
    return [bytes(raw) for raw in msgspec.json.decode(body[key], type=list[msgspec.Raw])]


def _conversations(server: ModelServer) -> Mapping[str, list[Exchange]]:
    talks: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in server.requests:
        talks[exchange.prompt].append(exchange)
    return talks


def _shown(folder: Path, server: ModelServer) -> int:
    """Return how many of the opaque texts in answers stand in a file of the outbox."""
    written = "".join(p.read_text() for p in (folder / "outbox").rglob("*.json*"))
    items = [json.loads(item) for exchange in server.requests for item in _items(exchange)]
    opaque = [i.get("encrypted_content") or i.get("signature") for i in items]
    assert any(opaque)
    return sum(text in written for text in opaque if text)


def _hold_items(server: ModelServer) -> int:
    """Hold every request to the vendor's type, and to the items of the answers before it;
    return how many there were.
    """
    held = 0
    for talk in _conversations(server).values():
        for at, exchange in enumerate(talk):
            vendors.check_request(exchange.dialect, exchange.request)
            before = [e for e in talk[:at] if e.delivered and e.turn < exchange.turn]
            for items in {e.turn: _items(e) for e in before}.values():
                back = b",".join(items) in exchange.request.encode()
                assert back
                held += len(items)
    return held


@pytest.mark.parametrize("api", APIS)
def test_a_batch_over_each_dialect_comes_to_the_servers_own_count(tmp_path: Path, api: str) -> None:
    """20 tasks of 4 steps: the same results,
    tokens and money to the last digit by the server's log.
    """

    async def test(server: ModelServer) -> None:
        model = "claude-sonnet-5-5+steps-4" if api == "messages" else "gpt-5-mini+steps-4"
        await _work(_configure(tmp_path, server.base_url, api, model), _file(20))
        found, totals = _results(tmp_path), server.totals
        assert [(r["status"], r["answer"]) for r in found] == [("completed", "Done.")] * 20
        assert totals.requests == 80
        assert totals.by_status == {200: 80}
        for key in _COUNTED:
            assert sum(r["usage"][key] for r in found) == getattr(totals.usage, key)
        if api != "messages":
            paid = sum(r["cost"]["total"] for r in found)
            # A result rounds to a hundredth of a millionth.
            assert abs(paid - totals.cost) < 20 * 1e-8
        if api == "chat":
            for exchange in server.requests:
                vendors.check_request(exchange.dialect, exchange.request)
        else:
            assert _hold_items(server) > 0
            assert totals.removed == 0
            assert _shown(tmp_path, server) == 0

    _run(test)


@contextlib.contextmanager
def _serve(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "batchd", "--config", str(folder / "config.toml"), "serve"]
    with (folder / "log").open("ab") as log, warm.Popen(command, stderr=log) as daemon:
        try:
            yield daemon
        finally:
            daemon.kill()


async def _until(condition: Callable[[], object], why: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, why()
        await asyncio.sleep(0.01)


def _status(folder: Path) -> dict[str, Any]:
    try:
        return dict(control.request(folder / ".batchd", "status"))
    except NoDaemonError:
        return {}


def _rows(folder: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / ".batchd/batchd.db")) as db:
        return db.execute(query).fetchall()


def _drop(folder: Path, data: bytes) -> None:
    (folder / "new").write_bytes(data)
    (folder / "new").rename(folder / "inbox" / "b.json")


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_items_are_back_byte_for_byte_after_a_kill(tmp_path: Path, api: str) -> None:
    """SIGKILL of the daemon mid-batch:
    no recorded answer is paid twice, and what came goes back as it came.
    """

    async def test(server: ModelServer) -> None:
        _configure(tmp_path, server.base_url, api, "latency-0.1+steps-4")
        (tmp_path / "inbox").mkdir()
        with _serve(tmp_path) as daemon:
            await _until(lambda: _status(tmp_path))
            _drop(tmp_path, _file(20))
            await _until(lambda: server.totals.requests > 25)
            daemon.kill()
            daemon.wait(PATIENCE_S)
        with _serve(tmp_path) as daemon:
            await _until((tmp_path / "outbox/b/summary.json").exists)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
        found, totals = _results(tmp_path), server.totals
        assert [r["status"] for r in found] == ["completed"] * 20
        unsettled = sum(r["usage"]["unsettled_calls"] for r in found)
        assert sum(r["usage"]["calls"] for r in found) == 80
        assert totals.repeated <= unsettled
        assert 80 <= totals.requests <= 80 + unsettled
        assert totals.removed == 0
        assert _hold_items(server) >= 80

    _run(test)


def _prefix(exchange: Exchange) -> tuple[bytes, list[Any]]:
    """Return what a provider caches of a request, beside what marks breakpoints:
    its tools, and its items or blocks.
    """
    body = msgspec.json.decode(exchange.request.encode(), type=dict[str, msgspec.Raw])
    if exchange.dialect != "messages":
        key = "input" if exchange.dialect == "responses" else "messages"
        return bytes(body["tools"]), msgspec.json.decode(body[key], type=list[msgspec.Raw])
    sent = json.loads(exchange.request)
    turns = [{"role": "system", "content": sent["system"]}, *sent["messages"]]
    blocks = [(turn["role"], block) for turn in turns for block in turn["content"]]
    for _, block in blocks:
        block.pop("cache_control", None)
    return bytes(body["tools"]), blocks


@pytest.mark.parametrize(
    ("api", "model"), [("responses", "gpt-6-luna"), ("messages", "claude-haiku-5-5")]
)
def test_a_long_conversation_is_read_from_the_cache(tmp_path: Path, api: str, model: str) -> None:
    """20 steps: it grows at its end alone, and at least 98 %
    of what the rules let be cached comes from the cache.
    """

    async def test(server: ModelServer) -> None:
        settings = _configure(tmp_path, server.base_url, api, f"{model}+steps-20", "low")
        await _work(settings, _file(1))
        assert [r["status"] for r in _results(tmp_path)] == ["completed"]
        assert server.totals.requests == 20
        before: tuple[bytes, list[Any]] | None = None
        for exchange in server.requests:
            prefix = _prefix(exchange)
            if before is not None:
                assert prefix[0] == before[0]
                grown = prefix[1][: len(before[1])] == before[1]
                assert grown
            before = prefix
        totals = server.totals
        assert totals.cacheable > 20_000
        assert totals.usage.cached_input_tokens >= 0.98 * totals.cacheable

    _run(test)


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_a_refused_replay_is_stripped_once_and_tried_again(tmp_path: Path, api: str) -> None:
    """The conversation goes on in neutral text and calls, and its later items go back again."""

    async def test(server: ModelServer) -> None:
        watching = Watching()
        settings = _configure(tmp_path, server.base_url, api, "seals-lost-1+steps-4")
        await _work(settings, _file(3), watching)
        assert [r["status"] for r in _results(tmp_path)] == ["completed"] * 3
        assert watching.failures() == [FailureKind.REPLAY] * 3
        assert server.totals.by_status == {200: 12, 400: 3}
        for talk in _conversations(server).values():
            refused = next(i for i, e in enumerate(talk) if e.status == 400)
            assert talk[refused].opaque > 0
            assert talk[refused + 1].opaque == 0
            assert talk[-1].opaque > 0

    _run(test)


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_an_answer_that_is_nothing_but_thinking_is_sent_back_as_its_provider_takes_it(
    tmp_path: Path, api: str
) -> None:
    """It was cut off in the middle of its thinking:
    nothing is refused for that, and later items go back as they came.
    """

    async def test(server: ModelServer) -> None:
        watching = Watching()
        settings = _configure(tmp_path, server.base_url, api, "length-empty-1+steps-4")
        await _work(settings, _file(3), watching)
        assert [r["status"] for r in _results(tmp_path)] == ["completed"] * 3
        assert watching.failures() == []
        assert {*server.totals.by_status} == {200}
        assert all(talk[-1].opaque > 0 for talk in _conversations(server).values())

    _run(test)


def test_calls_without_their_thinking_go_back_where_it_has_a_budget(tmp_path: Path) -> None:
    """The API wants thinking at the beginning of the last calls, and one that was cut off has none
    any more: those behind it are asked for without.
    """

    async def test(server: ModelServer) -> None:
        watching = Watching()
        model = "length-tool-1+steps-3"
        settings = _configure(tmp_path, server.base_url, "messages", model)
        thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
        provider = replace(settings.providers["standin"], extra_body=thinking)
        settings = replace(settings, providers={"standin": provider})
        await _work(settings, _file(1), watching)
        assert [r["status"] for r in _results(tmp_path)] == ["completed"]
        assert watching.failures() == []
        asked = [json.loads(e.request)["thinking"]["type"] for e in server.requests]
        assert asked == ["enabled", "disabled", "disabled", "disabled"]

    _run(test)


@pytest.mark.parametrize("api", APIS)
def test_calls_that_are_named_as_earlier_ones_are_get_names_of_their_own(
    tmp_path: Path, api: str
) -> None:
    """Some servers count the calls of each answer from the beginning,
    and refuse two of one name.
    """

    async def test(server: ModelServer) -> None:
        watching = Watching()
        settings = _configure(tmp_path, server.base_url, api, "length-tool-1+steps-3")
        await _work(settings, _file(1), watching)
        assert [r["status"] for r in _results(tmp_path)] == ["completed"]
        assert watching.failures() == []

    _run(test)


@pytest.mark.parametrize("api", APIS)
def test_a_refusal_is_no_answer_in_any_dialect(tmp_path: Path, api: str) -> None:
    """It ends its task with the model's own words, and is paid."""

    async def test(server: ModelServer) -> None:
        settings = _configure(tmp_path, server.base_url, api, "refusal")
        await _work(settings, _file(1))
        (result,) = _results(tmp_path)
        assert (result["status"], result["error"]["type"]) == ("error", "content_filter")
        assert "I cannot help with that." in result["error"]["message"]
        assert result["usage"]["calls"] == 1

    _run(test)


def test_an_address_without_the_dialect_holds_its_tasks_until_it_is_changed(tmp_path: Path) -> None:
    """The address goes one step too far, as it is copied from a vendor's examples:
    no task ends of that.
    """

    async def test(server: ModelServer) -> None:
        _configure(tmp_path, f"{server.base_url}/responses", "responses", "steps-2")
        (tmp_path / "inbox").mkdir()
        with _serve(tmp_path) as daemon:
            await _until(lambda: _status(tmp_path))
            _drop(tmp_path, _file(20))
            await _until(lambda: _status(tmp_path)["parked"])
            [parked] = [p for p in _status(tmp_path)["parked"] if p["scope"] == "provider"]
            assert parked["cause"] == "model_unfit"
            assert f"base_url {server.base_url}/responses: " in parked["message"]
            _configure(tmp_path, server.base_url, "responses", "steps-2")
            daemon.send_signal(signal.SIGHUP)
            await _until((tmp_path / "outbox/b/summary.json").exists)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
        assert [r["status"] for r in _results(tmp_path)] == ["completed"] * 20

    _run(test)


def test_a_model_that_takes_no_tools_gives_one_reason_and_goes_on_once_that_is_changed(
    tmp_path: Path,
) -> None:
    """200 tasks over chat wait for one cause, and the change
    that they ask for brings all of them to their end.
    """

    async def test(server: ModelServer) -> None:
        model = "gpt-6.2-sol+steps-2"
        _configure(tmp_path, server.base_url, "chat", model)
        (tmp_path / "inbox").mkdir()
        with _serve(tmp_path) as daemon:
            await _until(lambda: _status(tmp_path))
            _drop(tmp_path, _file(200))
            await _until(lambda: _status(tmp_path)["parked"])
            # What was under way then has found out the same.
            await _until(
                lambda: not _rows(tmp_path, "SELECT 1 FROM tasks WHERE status = 'running'")
            )
            [parked] = [p for p in _status(tmp_path)["parked"] if p["scope"] == "model"]
            assert (parked["name"], parked["cause"]) == (f"standin/{model}", "model_unfit")
            assert "api" in parked["message"]
            assert _results(tmp_path) == []
            assert server.totals.requests <= 10
            _configure(tmp_path, server.base_url, "responses", model)
            daemon.send_signal(signal.SIGHUP)
            done = (tmp_path / "outbox/b/summary.json").exists
            await _until(done, lambda: (_status(tmp_path), (tmp_path / "log").read_text()[-9000:]))
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE_S) == 0
        assert [r["status"] for r in _results(tmp_path)] == ["completed"] * 200
        assert server.totals.by_status[200] == 400

    _run(test)


@pytest.mark.parametrize(("before", "after"), [("chat", "responses"), ("messages", "chat")])
def test_a_task_ends_in_the_dialect_in_which_it_had_its_first_answer(
    tmp_path: Path, before: str, after: str
) -> None:
    """A reload changes it for those that begin later; a kill in between changes nothing of that."""

    async def test(server: ModelServer) -> None:
        _configure(tmp_path, server.base_url, before, "latency-0.2+steps-4")
        (tmp_path / "inbox").mkdir()
        with _serve(tmp_path) as daemon:
            await _until(lambda: _status(tmp_path))
            _drop(tmp_path, _file(3))
            # Each has had an answer by now.
            await _until(lambda: sum(e.turn == 1 for e in server.requests) == 3)
            _configure(tmp_path, server.base_url, after, "latency-0.2+steps-4")
            daemon.send_signal(signal.SIGHUP)
            await _until(lambda: "config_reloaded" in (tmp_path / "log").read_text())
            daemon.kill()
            daemon.wait()
        settings = config.load(tmp_path / "config.toml", {})
        async with Daemon(settings) as again:
            await batch_done(again, "b")
            old = len(server.requests)
            assert {e.dialect for e in server.requests} == {before}
            await submit(again, "c.json", _file(2))
            await batch_done(again, "c")
        assert {e.dialect for e in server.requests[old:]} == {after}
        for batch, count in (("b", 3), ("c", 2)):
            assert [r["status"] for r in _results(tmp_path, batch)] == ["completed"] * count
        # 0: broken off by the kill.
        assert {*server.totals.by_status} <= {0, 200}

    _run(test)


def test_what_a_model_refuses_is_learned_once_and_stored(tmp_path: Path) -> None:
    """No call ends for it; a later daemon knows it, and another configuration forgets it."""

    async def test(server: ModelServer) -> None:
        model = "gpt-6.1-sol+steps-2"
        watching = Watching()
        settings = _configure(tmp_path, server.base_url, "responses", model, "minimal")
        await _work(settings, _file(20), watching)
        assert [r["status"] for r in _results(tmp_path)] == ["completed"] * 20
        assert {*watching.failures()} == {FailureKind.SPARED}
        rows = _rows(tmp_path, "SELECT model, lesson FROM refused ORDER BY lesson")
        assert rows == [(f"standin/{model}", f"effort:{w}") for w in ("minimal", "none")]
        efforts = {
            json.loads(e.request)["reasoning"]["effort"]
            for e in server.requests
            if e.delivered and e.status == 200
        }
        assert efforts == {"low"}
        server.log.reset()
        async with Daemon(settings) as daemon:
            await submit(daemon, "again.json", _file(3))
            await batch_done(daemon, "again")
        assert server.totals.by_status == {200: 6}
        text = (tmp_path / "config.toml").read_text()
        (tmp_path / "config.toml").write_text(text.replace('api = "', 'tools = "native"\napi = "'))
        async with Daemon(config.load(tmp_path / "config.toml", {})) as daemon:
            await submit(daemon, "changed.json", _file(3))
            await batch_done(daemon, "changed")
        assert server.totals.by_status[400] > 0

    _run(test)


def test_an_effort_that_a_dialect_has_no_word_for_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model gets the nearest lower one; the log says so once,
    over batches and restarts, and no call is lost for it.
    """

    async def test(server: ModelServer) -> None:
        settings = _configure(tmp_path, server.base_url, "messages", "steps-2", "minimal")
        for name in ("one", "two"):
            async with Daemon(settings) as daemon:
                for part in ("a", "b"):
                    await submit(daemon, f"{name}-{part}.json", _file(3))
                    await batch_done(daemon, f"{name}-{part}")
        asked = [json.loads(e.request).get("thinking") for e in server.requests]
        assert asked == [{"type": "disabled"}] * 24
        assert server.totals.by_status == {200: 24}

    _run(test)
    said = [line for line in capsys.readouterr().out.splitlines() if "model_refuses" in line]
    assert len(said) == 1
    assert "effort:minimal" in said[0]
