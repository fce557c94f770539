"""The stand-in model server, over HTTP: scripts, faults, replay, its settings and its log.

What it says in each dialect, and what it refuses, is in ``test_vendors``; that each of its faults
is the failure that it stands for, in ``test_llm``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import openai
import pytest
import standin
import vendors
from openai import AsyncOpenAI
from patience import PATIENCE_S
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd.demo import recordings

pytestmark = pytest.mark.in_turns


def _user(prompt: str = "go") -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _with_answers(prompt: str, *answers: str) -> list[dict[str, Any]]:
    messages = _user(prompt)
    for answer in answers:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "on"}]
    return messages


def _run_with(
    test: Callable[[ModelServer, AsyncOpenAI], Awaitable[None]], server: ModelServer | None = None
) -> None:
    async def go() -> None:
        async with (
            server or ModelServer() as running,
            vendors.openai_at(running.base_url) as client,
        ):
            await test(running, client)

    asyncio.run(go())


async def _ask(
    client: AsyncOpenAI, model: str, messages: Sequence[Mapping[str, Any]], **more: Any
) -> Any:
    return await client.chat.completions.create(model=model, messages=cast("Any", messages), **more)


def test_the_log_knows_turns_and_what_had_an_answer_before() -> None:
    """What was refused may be asked again; what was answered is repeated."""

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.InternalServerError):
            await _ask(client, "500-1+steps-3", _user())
        for answers in ([], ["x"], ["x"]):
            await _ask(client, "500-1+steps-3", _with_answers("go", *answers))
        assert [(e.turn, e.status, e.delivered) for e in server.requests] == [
            *((0, 500, True), (0, 200, True)),
            *((1, 200, True), (1, 200, True)),
        ]
        assert len({e.hash for e in server.requests}) == 2
        assert server.totals.repeated == 1

    _run_with(test)


async def _post(session: aiohttp.ClientSession, base_url: str, model: str) -> bytes:
    body = {"model": model, "messages": _user()}
    async with session.post(f"{base_url}/chat/completions", json=body) as reply:
        assert reply.status == 200
        return await reply.read()


@pytest.mark.parametrize("fault", ["hang", "hang-body", "drip", "cut", "cut-body", "latency-60"])
def test_what_did_not_arrive_is_not_counted(fault: str) -> None:
    """Answers that never come, never end, are cut off or were not waited for:
    nothing is delivered, and the next one is sound.
    """

    async def test() -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S if fault.startswith("cut") else 0.3)
        model = fault if fault == "latency-60" else f"{fault}-1"
        async with ModelServer() as server, aiohttp.ClientSession() as patient:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                with pytest.raises((TimeoutError, aiohttp.ClientError)):
                    await _post(session, server.base_url, model)
            next_one = "steps-1" if fault == "latency-60" else model
            assert await _post(patient, server.base_url, next_one)
        first, second = server.requests
        assert (first.delivered, second.delivered) == (False, True)
        assert first.status == (200 if fault in {"hang-body", "drip", "cut-body"} else 0)
        assert server.totals.open == 0
        assert server.totals.usage.calls == 1

    asyncio.run(test())


def test_scripts_play_one_after_another_and_retries_get_the_same_answer() -> None:
    """The turn is read from the request:
    scripts follow each other, and asking again changes nothing.
    """

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        said = []
        for turn in range(4):
            messages = _with_answers("go", *["x"] * turn)
            for _again in range(2):
                answer = await _ask(client, "length-1+steps-3", messages)
                said.append(answer.choices[0].message.content)
        assert said[::2] == said[1::2]
        assert said[0] == "Part 1, and "
        # Without tools in the request the steps come in the text protocol.
        assert said[2] == "Next step.\n```bash\necho step 1\n```\n"
        assert said[4] == "Next step.\n```bash\necho step 2\n```\n"
        assert said[6] == "Done."
        stopped = await _ask(client, "chatter", _user(), stop=["\n```\n"])
        assert stopped.choices[0].message.content.endswith("echo thought 0")

    _run_with(test)


def test_damaged_recordings_are_named(tmp_path: Path) -> None:
    """A file that is no recording is reported by its name, as is a folder that is not there."""
    (tmp_path / "bad.json").write_text('{"first_prompt": 3}')
    with pytest.raises(recordings.RecordingError, match=r"bad\.json.*first_prompt"):
        recordings.load(tmp_path)
    with pytest.raises(recordings.RecordingError, match="no such folder"):
        recordings.load(tmp_path / "none")


def test_unknown_models() -> None:
    """A name that is no script is refused, unless the server has a default for such names."""

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        for model in ("gpt-9", "steps-x", "latency", "demo-1", "steps-1+what"):
            with pytest.raises(openai.NotFoundError):
                await _ask(client, model, _user())
        server.control(default="steps-1")
        assert (await _ask(client, "gpt-9", _user())).choices[0].message.content == "Done."
        assert {"demo", "steps-3"} < {m.id async for m in client.models.list()}

    _run_with(test)


def test_weather_of_a_part_of_all_requests_and_of_one_model() -> None:
    """A share of the requests is struck, evenly;
    a model's own faults strike it alone, and all of its requests.
    """

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        async def statuses(model: str, count: int) -> list[int]:
            found = []
            for i in range(count):
                try:
                    await _ask(client, model, _user(f"{model}, {i}"))
                    found.append(200)
                except openai.APIStatusError as error:
                    found.append(error.status_code)
            return found

        server.control(faults="503", share=0.25)
        assert await statuses("steps-1", 8) == [200, 200, 200, 503] * 2
        server.control(faults="", model_faults={"steps-2": "401"})
        assert await statuses("steps-1", 2) == [200, 200]
        assert await statuses("steps-2", 2) == [401, 401]
        server.control(model_faults={})
        assert await statuses("steps-2", 1) == [200]
        for wrong in ({"share": 1.5}, {"model_faults": {"steps-1": "what"}}):
            with pytest.raises(ValueError, match=r"share|what"):
                server.control(**wrong)

    _run_with(test, ModelServer(ServerSettings(count=False)))


def test_control_changes_a_running_server() -> None:
    """POST /control takes a server down and up, sets faults for all,
    asks for a key, forgets; or refuses.
    """

    async def test() -> None:
        async with ModelServer() as server, aiohttp.ClientSession() as session:
            root = server.base_url.removesuffix("/v1")

            async def control(**changes: Any) -> int:
                async with session.post(f"{root}/control", json=changes) as reply:
                    return reply.status

            async def status() -> int:
                body = {"model": "500-1+steps-1", "messages": _user()}
                async with session.post(f"{root}/v1/chat/completions", json=body) as reply:
                    return reply.status

            assert [await status(), await status()] == [500, 200]
            assert await control(down=True) == 200
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await status()
            assert await control(down=False, faults="503-1") == 200
            assert [await status(), await status()] == [503, 200]
            assert await control(faults="", api_key="sk-right") == 200
            assert await status() == 401
            assert await control(api_key="", reset=True) == 200
            assert [await status(), await status()] == [500, 200]
            for wrong in ({"dwon": True}, {"rps": "many"}, {"faults": "what"}):
                assert await control(**wrong) == 400
            async with session.get(f"{root}/totals") as reply:
                totals = await reply.json()
            assert totals["by_status"] == {"500": 1, "200": 1}
            async with session.get(f"{root}/log") as reply:
                assert [e["status"] for e in await reply.json()] == [500, 200]
            async with session.get(f"{root}/v1/nothing") as reply:
                assert reply.status == 404

    asyncio.run(test())


def test_answers_take_as_long_as_they_are() -> None:
    """Under `tokens_per_second` an answer takes its output's time."""

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        answer = await _ask(client, "surrogate", _user())
        (exchange,) = server.requests
        assert exchange.seconds is not None
        assert exchange.seconds >= 0.9 * answer.usage.completion_tokens / 50

    _run_with(test, ModelServer(ServerSettings(tokens_per_second=50)))


_ENVIRON = {**os.environ, "PYTHONPATH": standin.PYTHONPATH}


@asynccontextmanager
async def _program(*arguments: str) -> AsyncIterator[str]:
    """The server as a program, and the address that it says it listens on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "standin.server", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=_ENVIRON,
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on http://127.0.0.1:")
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def test_as_a_program_it_logs_to_a_file_and_ends_on_sigterm(tmp_path: Path) -> None:
    """The program says where it listens, writes a line an exchange, and refuses a port in use."""
    log = tmp_path / "log.jsonl"

    async def test() -> None:
        options = ("--log", str(log), "--log-bodies", "--no-count", "--latency", "0.01")
        async with _program(*options) as url, vendors.openai_at(url) as client:
            await _ask(client, "steps-1", _user("hello"))
            async with asyncio.timeout(PATIENCE_S):
                while not log.read_text().endswith("\n"):  # noqa: ASYNC110 (the line comes behind the answer)
                    await asyncio.sleep(0.01)
            line = json.loads(log.read_text())
            assert (line["status"], line["purpose"]) == (200, "agent")
            assert line["usage"]["input_tokens"] == 1000
            assert json.loads(line["request"])["messages"] == _user("hello")
            assert json.loads(line["answer"])["choices"][0]["message"]["content"] == "Done."
            assert line["seconds"] >= 0.01
            port = url.removesuffix("/v1").rpartition(":")[2]
            second = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "standin.server", "--no-count", "--port", port),
                stderr=asyncio.subprocess.PIPE,
                env=_ENVIRON,
            )
            _, complaint = await second.communicate()
            assert second.returncode == 3
            assert b"cannot listen" in complaint

    asyncio.run(test())
