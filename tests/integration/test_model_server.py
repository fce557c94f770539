"""The stand-in model server, over HTTP: scripts, faults,
replay, its log, and the recorder before it.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import openai
import pytest
import standin
from openai import AsyncOpenAI
from patience import PATIENCE_S
from standin.record import save
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd.demo import recordings
from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.records import Answer, Usage

pytestmark = pytest.mark.in_turns

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "shell",
            "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
        },
    }
]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": {"type": "object"}}}


@asynccontextmanager
async def _sdk(base_url: str) -> AsyncIterator[AsyncOpenAI]:
    """A client as users have it, that reports faults instead of trying again."""
    async with AsyncOpenAI(base_url=base_url, api_key="sk-x", max_retries=0) as client:
        yield client


def _user(prompt: str = "go") -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _with_answers(prompt: str, *answers: str) -> list[dict[str, Any]]:
    messages = _user(prompt)
    for answer in answers:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "on"}]
    return messages


def _judging(prompt: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "You judge whether an agent's task is done."},
        {"role": "user", "content": f"# The task\n{prompt}\n\n# Its files\n- none"},
    ]


def _run_with(
    test: Callable[[ModelServer, AsyncOpenAI], Awaitable[None]], server: ModelServer | None = None
) -> None:
    async def go() -> None:
        async with server or ModelServer() as running, _sdk(running.base_url) as client:
            await test(running, client)

    asyncio.run(go())


async def _ask(
    client: AsyncOpenAI, model: str, messages: Sequence[Mapping[str, Any]], **more: Any
) -> Any:
    return await client.chat.completions.create(model=model, messages=cast("Any", messages), **more)


def test_steps_makes_n_calls_whose_usage_the_totals_add_up() -> None:
    """`steps-N` calls tools N-1 times, then answers;
    usage is counted, earlier requests are cached input.
    """

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        messages: list[Any] = _user("count to three")
        usages = []
        for _ in range(3):
            answer = await _ask(client, "steps-3", messages, tools=TOOLS)
            usages.append(answer.usage)
            message = answer.choices[0].message
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls or ():
                output = json.loads(call.function.arguments)["command"]
                messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
        assert [m["role"] for m in messages] == ["user", *["assistant", "tool"] * 2, "assistant"]
        assert answer.choices[0].finish_reason == "stop"
        assert messages[-1]["content"] == "Done."
        cached = [u.prompt_tokens_details.cached_tokens for u in usages]
        assert cached == [0, *[u.prompt_tokens for u in usages[:2]]]
        assert server.totals.usage == Usage(
            calls=3,
            input_tokens=sum(u.prompt_tokens for u in usages),
            cached_input_tokens=sum(cached),
            cache_reported_tokens=sum(u.prompt_tokens for u in usages),
            output_tokens=sum(u.completion_tokens for u in usages),
        )
        assert [e.turn for e in server.requests] == [0, 1, 2]
        assert all(e.delivered for e in server.requests)
        assert len({e.hash for e in server.requests}) == 3

    _run_with(test)


@pytest.mark.parametrize(
    ("fault", "error", "status", "code"),
    [
        ("rate-limit", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("429", openai.RateLimitError, 429, "rate_limit_exceeded"),
        ("insufficient-quota", openai.RateLimitError, 429, "insufficient_quota"),
        ("400", openai.BadRequestError, 400, None),
        ("401", openai.AuthenticationError, 401, "invalid_api_key"),
        ("402", openai.APIStatusError, 402, "invalid_request_error"),
        ("403", openai.PermissionDeniedError, 403, "model_not_found"),
        ("404", openai.NotFoundError, 404, "model_not_found"),
        ("500", openai.InternalServerError, 500, None),
        ("503", openai.InternalServerError, 503, "overloaded"),
        ("context-overflow", openai.BadRequestError, 400, "context_length_exceeded"),
        ("llama-overflow", openai.BadRequestError, 400, 400),
        ("prompt-filter", openai.BadRequestError, 400, "content_filter"),
    ],
)
def test_refusals_are_a_providers_own_and_end_after_n(
    fault: str, error: type[openai.APIStatusError], status: int, code: object
) -> None:
    """A refusal has its status and error body;
    with a number it strikes so often, without one for ever.
    """

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        for model in (fault, f"{fault}-always", f"{fault}-2+steps-1"):
            for _ in range(2):
                with pytest.raises(error) as caught:
                    await _ask(client, model, _user())
                assert caught.value.status_code == status
                assert isinstance(caught.value.body, dict)
                assert caught.value.body.keys() == {"message", "type", "param", "code"}
                assert caught.value.body["code"] == code
                wait = caught.value.response.headers.get("Retry-After")
                assert (wait is not None) == (fault in {"429", "rate-limit"})
        answer = await _ask(client, f"{fault}-2+steps-1", _user())
        assert answer.choices[0].message.content == "Done."
        assert server.totals.by_status == {status: 6, 200: 1}

    _run_with(test)


def test_retry_after_is_what_the_model_name_or_the_server_says() -> None:
    """`retry-after-S` sets the header of a 429, and gives a 503 one."""

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        for model, header in [
            ("429", "7"),
            ("429+retry-after-0.05", "0.05"),
            ("503+retry-after-3", "3"),
        ]:
            with pytest.raises(openai.APIStatusError) as caught:
                await _ask(client, model, _user())
            assert caught.value.response.headers["Retry-After"] == header

    _run_with(test, ModelServer(ServerSettings(retry_after_s=7)))


async def _post(session: aiohttp.ClientSession, base_url: str, model: str, **more: Any) -> bytes:
    body = {"model": model, "messages": _user(), **more}
    async with session.post(f"{base_url}/chat/completions", json=body) as reply:
        assert reply.status == 200
        return await reply.read()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("hang", TimeoutError),
        ("hang-body", TimeoutError),
        ("drip", TimeoutError),
        ("cut", aiohttp.ServerDisconnectedError),
        ("cut-body", aiohttp.ClientPayloadError),
    ],
)
def test_faults_of_the_way(fault: str, error: type[Exception]) -> None:
    """Answers that never come, never end, or are cut off;
    nothing is delivered, and the next one is sound.
    """

    async def test() -> None:
        waits_s = 0.3 if error is TimeoutError else PATIENCE_S
        timeout = aiohttp.ClientTimeout(total=waits_s)
        async with ModelServer() as server, aiohttp.ClientSession() as patient:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                with pytest.raises(error):
                    await _post(session, server.base_url, f"{fault}-1")
            assert await _post(patient, server.base_url, f"{fault}-1")
        first, second = server.requests
        assert (first.delivered, second.delivered) == (False, True)
        assert first.status == (0 if fault in {"hang", "cut"} else 200)
        assert server.totals.open == 0
        assert first.seconds is not None

    asyncio.run(test())


def test_a_client_that_gives_up_is_not_counted() -> None:
    """An answer that no client waited for was not begun, and its usage is in no sum."""

    async def test() -> None:
        timeout = aiohttp.ClientTimeout(total=0.2)
        async with ModelServer() as server, aiohttp.ClientSession() as patient:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                with pytest.raises(TimeoutError):
                    await _post(session, server.base_url, "latency-60+steps-1")
            await _post(patient, server.base_url, "steps-1")
        assert server.totals.by_status == {0: 1, 200: 1}
        assert server.totals.usage.calls == 1
        assert server.totals.peak <= 2

    asyncio.run(test())


def test_answers_that_are_none() -> None:
    """Status 200 with HTML, half a JSON, an error or no choice; and a good answer without usage."""

    async def test() -> None:
        async with ModelServer() as server, aiohttp.ClientSession() as session:
            bodies = {
                fault: await _post(session, server.base_url, fault)
                for fault in ("html", "broken-json", "error-200", "no-choices", "no-usage")
            }
        assert bodies["html"].startswith(b"<!DOCTYPE html>")
        with pytest.raises(json.JSONDecodeError):
            json.loads(bodies["broken-json"])
        assert json.loads(bodies["error-200"])["error"]["code"] == 502
        assert json.loads(bodies["no-choices"])["choices"] == []
        good = json.loads(bodies["no-usage"])
        assert good["choices"][0]["message"]["content"] == "Done."
        assert "usage" not in good
        assert server.totals.usage == Usage()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("model", "reason", "content"),
    [
        ("length-2", "length", "Part 1, and "),
        ("length-empty", "length", ""),
        ("text-tool", "stop", '```json\n{"name": "shell"'),
        ("text-tools", "stop", '"content": "one\ntwo\n"'),
        ("tool-tags", "stop", "<tool_call>"),
        ("bash-block", "stop", "```bash\necho hello"),
        ("content-filter", "content_filter", ""),
        ("surrogate", "stop", "\ud83d"),
        ("empty", "stop", ""),
    ],
)
def test_untidy_answers(model: str, reason: str, content: str) -> None:
    """Each script's first answer is what real models have been seen to give."""

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        answer = await _ask(client, model, _user(), tools=TOOLS)
        assert answer.choices[0].finish_reason == reason
        assert content in answer.choices[0].message.content
        assert not answer.choices[0].message.tool_calls

    _run_with(test)


@pytest.mark.parametrize(
    ("model", "reason", "name", "valid"),
    [
        ("loop", "tool_calls", "shell", True),
        ("flood", "tool_calls", "shell", True),
        ("length-tool", "length", "write_file", False),
        ("bad-tool-json", "tool_calls", "shell", False),
        ("unknown-tool", "tool_calls", "teleport", True),
        ("surrogate-tool", "tool_calls", "shell", True),
    ],
)
def test_untidy_tool_calls(model: str, reason: str, name: str, valid: bool) -> None:
    """Each script's first answer is a tool call, with arguments that parse or do not."""

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        answer = await _ask(client, model, _user(), tools=TOOLS)
        assert answer.choices[0].finish_reason == reason
        assert answer.choices[0].message.content is None
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == name
        try:
            json.loads(call.function.arguments)
        except json.JSONDecodeError:
            assert not valid
        else:
            assert valid

    _run_with(test)


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
        stopped = await _ask(client, "bash-block", _user(), stop=["\n```\n"])
        assert stopped.choices[0].message.content.endswith("echo hello > hello.txt")

    _run_with(test)


def test_reasoning_is_shown_and_counted() -> None:
    """`reasoning` adds visible thinking, whose tokens are part of the output."""

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        answer = await _ask(client, "reasoning+steps-1", _user())
        assert answer.choices[0].message.reasoning_content
        thought = answer.usage.completion_tokens_details.reasoning_tokens
        assert 0 < thought < answer.usage.completion_tokens

    _run_with(test)


def test_cache_writes_are_reported() -> None:
    """`cache-write` reports all input that was not read from the cache as written to it."""

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        for messages in (_user("go"), _with_answers("go", "x")):
            usage = (await _ask(client, "cache-write+steps-2", messages)).usage
            details = usage.prompt_tokens_details
            assert details.cached_tokens + details.cache_write_tokens == usage.prompt_tokens
        assert details.cached_tokens > 0
        assert 0 < server.totals.usage.cache_write_tokens < server.totals.usage.input_tokens

    _run_with(test)


def test_judges() -> None:
    """A judge is known by its schema or its prompt;
    it says no N times for each task, prose, or yes.
    """

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        async def verdict(model: str, prompt: str) -> str:
            messages = _judging(prompt)
            answer = await _ask(client, model, messages, response_format=SCHEMA)
            return str(answer.choices[0].message.content)

        for prompt in ("write a poem", "write a poem in prose"):
            await _ask(client, "judge-no-2+steps-1", _user(prompt))
        for prompt in ("write a poem", "write a poem in prose"):
            said = [
                json.loads(await verdict("judge-no-2+steps-1", f"{prompt}\n"))["done"]
                for _ in range(3)
            ]
            assert said == [False, False, True]
        with pytest.raises(json.JSONDecodeError):
            json.loads(await verdict("judge-prose", "x"))
        assert json.loads(await verdict("steps-3", "y"))["done"] is True
        without_schema = await _ask(client, "steps-3", _judging("z"))
        assert json.loads(without_schema.choices[0].message.content)["done"] is True
        assert server.totals.by_purpose == {"agent": 2, "judge": 9}

    _run_with(test)


def test_a_small_window_overflows_and_a_summary_does_not_start_the_script_again() -> None:
    """`window-N` refuses longer prompts; behind a summary the steps go on where they were."""

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        model = "window-200+steps-4"
        for turn in range(2):
            await _ask(client, model, _with_answers("go", *["x"] * turn))
        with pytest.raises(openai.BadRequestError) as caught:
            await _ask(client, model, _with_answers("go", "long " * 300))
        assert caught.value.code == "context_length_exceeded"
        summary = [*_with_answers("go", "x"), *_user("Too long. Answer with the summary only.")]
        assert "work so far" in (await _ask(client, model, summary)).choices[0].message.content
        shortened = [*_user("go"), *_user("Summary of the work so far: …")]
        said = await _ask(client, model, shortened)
        assert "echo step 3" in said.choices[0].message.content

    _run_with(test)


FIZZ = Recording(
    first_prompt="Write FizzBuzz, please.",
    model="real",
    answers=(
        Answer(content="one", usage=Usage(output_tokens=11, reasoning_tokens=4)),
        Answer(content="two"),
    ),
    judge=(
        RecordedVerdict(done=False, feedback="line 15", after=1),
        RecordedVerdict(done=True, after=2, usage=Usage(output_tokens=9)),
    ),
)


def test_demo_replays_by_prompt_and_turn(tmp_path: Path) -> None:
    """Recordings survive their file, match a prompt
    that reads the same, and end with a final text.
    """
    save(tmp_path, FIZZ)
    assert recordings.load(tmp_path) == (FIZZ,)

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        async def said(messages: list[dict[str, Any]]) -> Any:
            return await _ask(client, "demo", messages)

        for prompt in (FIZZ.first_prompt, " write  fizzbuzz, please.\n"):
            one = await said(_with_answers(prompt))
            assert one.choices[0].message.content == "one"
            assert one.usage.completion_tokens == 11
            assert one.usage.completion_tokens_details.reasoning_tokens == 4
            no = json.loads((await said(_judging(prompt))).choices[0].message.content)
            assert no == {"done": False, "feedback": "line 15"}
            # What stands between does not matter, only how many answers there were.
            two = await said(_with_answers(prompt, "something else"))
            assert two.choices[0].message.content == "two"
            yes = json.loads((await said(_judging(prompt))).choices[0].message.content)
            assert yes["done"] is True
            end = await said(_with_answers(prompt, "a", "b", "c"))
            assert end.choices[0].message.content == "Done."
        unknown = (await said(_user("Build me a ship"))).choices[0].message.content
        assert "stand-in" in unknown
        assert not json.loads((await said(_judging("Build me a ship"))).choices[0].message.content)[
            "done"
        ]

    _run_with(test, ModelServer(recorded=recordings.load(tmp_path)))


def test_a_recorded_command_comes_as_a_call_where_tools_are_offered() -> None:
    """Else as it was recorded, in the text protocol."""
    text = "Now:\n```bash\necho a\necho b\n```"
    answers = (Answer(content=text),)
    recorded = (
        Recording(first_prompt="Go.", model="real", answers=answers, without_tools=True),
        Recording(first_prompt="Report.", model="real", answers=answers),
    )

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        (plain,) = (await _ask(client, "demo", _user("Go."))).choices
        assert plain.message.content == text
        (called,) = (await _ask(client, "demo", _user("Go."), tools=TOOLS)).choices
        assert called.message.content == "Now:"
        assert called.finish_reason == "tool_calls"
        (call,) = called.message.tool_calls
        assert json.loads(call.function.arguments) == {"command": "echo a\necho b"}
        # One that had tools, and wrote of a command all the same.
        (written,) = (await _ask(client, "demo", _user("Report."), tools=TOOLS)).choices
        assert written.message.content == text

    _run_with(test, ModelServer(recorded=recorded))


def test_damaged_recordings_are_named(tmp_path: Path) -> None:
    """A file that is no recording is reported by its name, as is a folder that is not there."""
    (tmp_path / "bad.json").write_text('{"first_prompt": 3}')
    with pytest.raises(recordings.RecordingError, match=r"bad\.json.*first_prompt"):
        recordings.load(tmp_path)
    with pytest.raises(recordings.RecordingError, match="no such folder"):
        recordings.load(tmp_path / "none")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "tool", "content": "x", "tool_call_id": "c"}],
        [{"role": "assistant", "content": None}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "user", "content": "no reply to the call"},
        ],
        "none",
    ],
)
def test_conversations_out_of_order_are_refused(messages: Any) -> None:
    """What a real provider refuses is refused here too, and logged."""

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError):
            await _ask(client, "steps-1", messages)
        assert server.totals.by_status == {400: 1}

    _run_with(test)


def test_unknown_models() -> None:
    """A name that is no script is refused, unless the server has a default for such names."""

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        for model in ("gpt-9", "steps-x", "latency", "demo-1", "steps-1+what"):
            with pytest.raises(openai.NotFoundError):
                await _ask(client, model, _user())
        server.control(default="steps-1")
        assert (await _ask(client, "gpt-9", _user())).choices[0].message.content == "Done."
        assert "demo" in [m.id async for m in client.models.list()]

    _run_with(test)


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as may be: a user's processes often begin with 1,024."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_a_thousand_requests_at_once() -> None:
    """A thousand clients are served at the same time, not one after another."""

    async def test() -> None:
        clients = {
            "connector": aiohttp.TCPConnector(limit=0),
            "timeout": aiohttp.ClientTimeout(total=PATIENCE_S, sock_connect=PATIENCE_S),
        }
        async with ModelServer() as server, aiohttp.ClientSession(**clients) as session:
            calls = (_post(session, server.base_url, "latency-2+steps-1") for _ in range(1000))
            assert all(await asyncio.gather(*calls))
        assert server.totals.peak == 1000
        assert server.totals.by_status == {200: 1000}

    asyncio.run(test())


def test_the_rate_limit_is_one_for_all_and_stands_in_the_headers() -> None:
    """Of a burst as many pass as it allows;
    the others get 429 with Retry-After and what is left.
    """

    async def test(server: ModelServer, client: AsyncOpenAI) -> None:
        raw = client.chat.completions.with_raw_response

        async def call(i: int) -> Any:
            model = f"steps-{i % 3 + 1}"
            try:
                return await raw.create(model=model, messages=_user(f"{i}"))  # type: ignore[arg-type] # plain
            except openai.RateLimitError as exc:
                return exc

        replies = await asyncio.gather(*map(call, range(12)))
        refused = [r for r in replies if isinstance(r, openai.RateLimitError)]
        passed = [r for r in replies if not isinstance(r, openai.RateLimitError)]
        assert (len(passed), len(refused)) == (5, 7)
        assert {r.headers["x-ratelimit-limit-requests"] for r in passed} == {"5"}
        left = sorted(int(r.headers["x-ratelimit-remaining-requests"]) for r in passed)
        assert left == [0, 1, 2, 3, 4]
        assert {r.response.headers["Retry-After"] for r in refused} == {"2"}
        assert refused[0].response.headers["x-ratelimit-reset-requests"].endswith("s")
        assert refused[0].code == "rate_limit_exceeded"
        server.control(rps=0)
        await _ask(client, "steps-1", _user())

    _run_with(test, ModelServer(ServerSettings(rps=0.001, burst=5, retry_after_s=2)))


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


def test_faults_from_a_later_turn_on() -> None:
    """``after-1``: the first answer of a conversation comes, whatever strikes behind it."""

    async def test(_server: ModelServer, client: AsyncOpenAI) -> None:
        first = _user("later")
        reply = await _ask(client, "after-1+503+steps-3", first)
        said = reply.choices[0].message.model_dump(exclude_none=True)
        with pytest.raises(openai.InternalServerError):
            await _ask(client, "after-1+503+steps-3", [*first, said, *_user("go on")])

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
        least = answer.usage.completion_tokens / 50
        for exchange in server.requests:
            assert exchange.seconds is not None
            assert exchange.seconds >= least * 0.9

    _run_with(test, ModelServer(ServerSettings(tokens_per_second=50)))


def test_usage_is_fixed_where_nothing_is_counted() -> None:
    """Without counting, every answer carries the same usage."""

    async def test(_: ModelServer, client: AsyncOpenAI) -> None:
        usages = [(await _ask(client, "steps-1", _user("x" * n))).usage for n in (1, 1000)]
        assert usages[0] == usages[1]
        assert usages[0].prompt_tokens == 1000

    _run_with(test, ModelServer(ServerSettings(count=False)))


_ENVIRON = {**os.environ, "PYTHONPATH": standin.PYTHONPATH}


@asynccontextmanager
async def _program(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A program of the demo, and the address that it says it listens on."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments), stdout=asyncio.subprocess.PIPE, env=_ENVIRON
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def test_as_a_program_it_logs_to_a_file_and_ends_on_sigterm(tmp_path: Path) -> None:
    """The program says where it listens, writes a line an exchange, and refuses a port in use."""
    log = tmp_path / "log.jsonl"

    async def test() -> None:
        options = ("--log", str(log), "--log-bodies", "--no-count", "--latency", "0.01")
        async with _program("standin.server", *options) as (_, url), _sdk(url) as client:
            await _ask(client, "steps-1", _user("hello"))
            async with asyncio.timeout(PATIENCE_S):
                while not log.read_text().endswith("\n"):  # noqa: ASYNC110 (the line comes behind the answer)
                    await asyncio.sleep(0.01)
            line = json.loads(log.read_text())
            assert line["status"] == 200
            assert line["purpose"] == "agent"
            assert line["usage"]["input_tokens"] == 1000
            assert json.loads(line["request"])["messages"] == _user("hello")
            assert json.loads(line["answer"])["choices"][0]["message"]["content"] == "Done."
            assert line["seconds"] >= 0.01
            port = url.removesuffix("/v1").rpartition(":")[2]
            for wrong, code, said in (
                (("--port", port), 3, b"cannot listen"),
                (("--faults", "what"), 2, b"what"),
                (("--recordings", "/none"), 3, b"/none"),
            ):
                second = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "standin.server", "--no-count", *wrong),
                    stderr=asyncio.subprocess.PIPE,
                    env=_ENVIRON,
                )
                _, complaint = await second.communicate()
                assert second.returncode == code
                assert said in complaint
                assert b"Traceback" not in complaint

    asyncio.run(test())
