"""The model client against the stand-in server and worse, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import math
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import asdict
from patience import PATIENCE_S
from replacing import replace
from standin.server import ModelServer
from standin.settings import ServerSettings

from batchd import pricing, tokens
from batchd.config import Config
from batchd.config.providers import HoursSection, PricesSection
from batchd.config.sections import ModelSection
from batchd.events import CallAnswered
from batchd.llm import ModelClient, ModelRequest
from batchd.llm.exchange import MAX_BODY_BYTES
from batchd.records import (
    Answer,
    Endpoint,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Purpose,
    Tally,
    Tool,
    ToolCall,
)

KEY = "sk-this-is-a-secret-key-0123456789"
TOOLS = (
    Tool("shell", "Run it.", {"type": "object", "properties": {"command": {"type": "string"}}}),
)
ASK = ModelRequest(
    messages=(Message("system", "You work."), Message("user", "Count to three.")),
    tools=TOOLS,
    max_output_tokens=100,
)


def _setup(model: str, **more: Any) -> ModelSetup:
    return ModelSetup(name=f"standin/{model}", **more)


def _with_server(
    test: Callable[[ModelServer, ModelClient], Awaitable[None]],
    settings: ServerSettings | None = None,
) -> None:
    async def go() -> None:
        async with ModelServer(settings) as server:
            client = ModelClient({"standin": Endpoint(base_url=server.base_url, api_key=KEY)})
            try:
                await test(server, client)
            finally:
                await client.aclose()

    asyncio.run(go())


async def _raw(
    reply: bytes, request: ModelRequest = ASK, *, close: bool = True
) -> Answer | Failure:
    """Return what the client makes of a server that answers with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(h[15:]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-l")
        )
        await reader.readexactly(length)
        writer.write(reply)
        await writer.drain()
        if close:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = ModelClient({"standin": Endpoint(base_url=f"http://127.0.0.1:{port}/v1")})
    try:
        return await client.call(_setup("raw"), request, 5)
    finally:
        await client.aclose()
        server.close()


def _http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def _completion(message: Any, finish_reason: str | None = "stop", **more: Any) -> bytes:
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return _http(json.dumps({"choices": choices, **more}).encode())


def test_a_task_of_calls_and_tools() -> None:
    """Calls, tool replies and the last word go back and forth; usage is what the server counted."""

    async def test(server: ModelServer, client: ModelClient) -> None:
        messages = ASK.messages
        answers = []
        for _ in range(3):
            request = ModelRequest(messages=messages, tools=TOOLS, max_output_tokens=100)
            found = await client.call(_setup("steps-3"), request, 10)
            assert isinstance(found, Answer)
            answers.append(found)
            messages = (*messages, Message("assistant", found.content, found.tool_calls))
            messages += tuple(Message("tool", "ok", (), c.id) for c in found.tool_calls)
        assert [a.finish_reason for a in answers] == ["tool_calls", "tool_calls", "stop"]
        assert json.loads(answers[0].tool_calls[0].arguments)["command"]
        assert answers[2].content == "Done."
        assert answers[1].usage.cached_input_tokens == answers[0].usage.input_tokens
        tallies = (Tally.of_call(a.usage, None) for a in answers)
        assert sum(tallies, Tally()) == server.totals.usage
        assert not any(a.usage.estimated for a in answers)
        assert all(0 < a.seconds < 5 for a in answers)
        assert answers[0].model == "steps-3"

    _with_server(test)


@pytest.mark.parametrize(
    ("fault", "kind", "status", "words"),
    [
        ("429", FailureKind.RATE_LIMITED, 429, "too many requests"),
        ("insufficient-quota", FailureKind.QUOTA, 429, "no money or quota"),
        ("400", FailureKind.BAD_REQUEST, 400, "temperature"),
        ("401", FailureKind.AUTH, 401, "refuses the API key"),
        ("402", FailureKind.QUOTA, 402, "Insufficient Balance"),
        ("403", FailureKind.FORBIDDEN, 403, "does not have access"),
        ("404", FailureKind.BAD_REQUEST, 404, "does not know the model '404'"),
        ("500", FailureKind.OVERLOADED, 500, "failing"),
        ("503", FailureKind.OVERLOADED, 503, "overloaded"),
        ("context-overflow", FailureKind.CONTEXT_OVERFLOW, 400, "window"),
        ("llama-overflow", FailureKind.CONTEXT_OVERFLOW, 400, "window"),
        ("prompt-filter", FailureKind.CONTENT_FILTER, 400, "refuses the content"),
        ("html", FailureKind.BAD_ANSWER, 200, "an HTML page"),
        ("broken-json", FailureKind.BAD_ANSWER, 200, "broken JSON"),
        ("no-choices", FailureKind.BAD_ANSWER, 200, "no choices"),
        ("error-200", FailureKind.OVERLOADED, 502, "Provider returned error"),
        ("cut", FailureKind.CONNECTION, None, "closed the connection"),
        ("cut-body", FailureKind.CONNECTION, None, "closed the connection"),
        ("hang", FailureKind.TIMEOUT, None, "within 0.3 s"),
        ("hang-body", FailureKind.TIMEOUT, None, "within 0.3 s"),
        ("drip", FailureKind.TIMEOUT, None, "within 0.3 s"),
    ],
)
def test_every_fault_is_classified(
    fault: str, kind: FailureKind, status: int | None, words: str
) -> None:
    """Each fault becomes one failure of its kind, in time,
    reported in one line that says what and where.
    """

    async def test(server: ModelServer, client: ModelClient) -> None:
        begun = time.monotonic()
        within_s = 0.3 if kind is FailureKind.TIMEOUT else PATIENCE_S
        failure = await client.call(_setup(fault), ASK, within_s)
        assert time.monotonic() - begun < 60
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.http_status) == (kind, status)
        assert words in failure.message
        host = server.base_url.removeprefix("http://").removesuffix("/v1")
        assert failure.message.startswith(f"standin/{fault} at {host} ")
        assert "\n" not in failure.message
        assert KEY not in failure.message
        assert failure.sent

    _with_server(test)


def test_rate_limits_say_how_long_to_wait() -> None:
    """A 429 carries Retry-After and its limit headers, and the call after the wait is answered."""

    async def test(_server: ModelServer, client: ModelClient) -> None:
        setup = _setup("rate-limit-1+retry-after-7+steps-1")
        failure = await client.call(setup, ASK, 60)
        assert isinstance(failure, Failure)
        assert failure.retry_after_s == 7
        assert failure.headers["retry-after"] == "7"
        assert isinstance(await client.call(setup, ASK, 60), Answer)

    _with_server(test)


def test_untidy_answers_are_answers() -> None:
    """Missing usage is counted and marked; lone surrogates are replaced; cut tool calls say so."""

    async def test(_server: ModelServer, client: ModelClient) -> None:
        async def ask(model: str) -> Answer:
            found = await client.call(_setup(model), ASK, 60)
            assert isinstance(found, Answer), found
            return found

        reported, counted = await ask("steps-1"), await ask("no-usage+steps-1")
        assert counted.usage.estimated
        assert counted.usage.output_tokens == tokens.count("Done.") > 0
        assert counted.usage.input_tokens == pytest.approx(reported.usage.input_tokens, abs=60)
        surrogate = await ask("surrogate")
        surrogate.content.encode()
        assert "�" in surrogate.content
        (await ask("surrogate-tool")).tool_calls[0].arguments.encode()
        assert (await ask("length-1")).finish_reason == "length"
        cut = await ask("length-tool")
        assert cut.finish_reason == "length"
        assert cut.tool_calls
        assert (await ask("reasoning+steps-1")).reasoning
        assert (await ask("empty")).content == ""

    _with_server(test)


def test_what_is_sent() -> None:
    """The body is the plain form of chat completions, with the provider's own fields on top."""

    async def test(server: ModelServer, client: ModelClient) -> None:
        calls = (ToolCall("c1", "shell", '{"command": "ls"}'), ToolCall("c2", "shell", '{"com'))
        messages = (
            *ASK.messages,
            Message("assistant", "", calls),
            Message("tool", "a\ud800b", tool_call_id="c1"),
            Message("tool", "cut off", tool_call_id="c2"),
            Message("assistant", "```bash\nls\n```"),
            Message("tool", "in text"),
        )
        request = ModelRequest(
            messages=messages,
            tools=TOOLS,
            max_output_tokens=77,
            stop=("\n```\n",),
            schema={"type": "object"},
        )
        setup = _setup("steps-9", output_limit_field="max_tokens", extra_body={"seed": 4})
        for mode in ("json_schema", "json_object", "none"):
            await client.call(ModelSetup(**_fields(setup), json_mode=mode), request, 5)
        schema, plain, none = [json.loads(str(e.request)) for e in server.requests]
        assert (schema["max_tokens"], schema["seed"], schema["stop"]) == (77, 4, ["\n```\n"])
        assert schema["tools"] == [{"type": "function", "function": asdict(tool)} for tool in TOOLS]
        assert schema["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert plain["response_format"] == {"type": "json_object"}
        assert "response_format" not in none
        sent = schema["messages"]
        assert sent[2]["content"] is None
        assert sent[2]["tool_calls"][0] == {
            "id": "c1",
            "type": "function",
            "function": {"name": "shell", "arguments": '{"command": "ls"}'},
        }
        # Servers that parse the arguments of the past must not choke on them.
        malformed = json.loads(sent[2]["tool_calls"][1]["function"]["arguments"])
        assert malformed == {"malformed": '{"com'}
        assert sent[3] == {"role": "tool", "tool_call_id": "c1", "content": "a�b"}
        assert sent[6] == {"role": "user", "content": "in text"}

    def _fields(setup: ModelSetup) -> dict[str, Any]:
        return {n: getattr(setup, n) for n in ("name", "output_limit_field", "extra_body")}

    async def go() -> None:
        async with ModelServer(log_bodies=True) as server:
            client = ModelClient({"standin": Endpoint(base_url=server.base_url)})
            await test(server, client)
            await client.aclose()

    asyncio.run(go())


def test_a_conversation_keeps_its_first_bytes() -> None:
    """A longer conversation begins with the bytes of the shorter one, so that prompt caches hit."""

    async def go() -> None:
        async with ModelServer(log_bodies=True) as server:
            client = ModelClient({"standin": Endpoint(base_url=server.base_url)})
            longer = (*ASK.messages, Message("assistant", "1"), Message("user", "go on"))
            for messages in (ASK.messages, longer):
                request = ModelRequest(messages=messages, tools=TOOLS, max_output_tokens=9)
                await client.call(_setup("steps-9"), request, 5)
            await client.aclose()
        first, second = [str(e.request) for e in server.requests]
        assert second.startswith(first.partition("]")[0])

    asyncio.run(go())


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider gets its own key and headers, nothing from the environment;
    messages hide the key.
    """
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-provider")
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        body = json.dumps({"error": {"message": f"Bad key {KEY}\nand token hunter2-hunter2."}})
        writer.write(_http(body.encode(), "401 Unauthorized"))
        await writer.drain()
        writer.close()

    async def go() -> Failure | Answer:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        base_url = f"http://127.0.0.1:{port}/v1"
        endpoint = Endpoint(base_url=base_url, api_key=KEY, headers={"X-Team": "hunter2-hunter2"})
        client = ModelClient({"standin": endpoint})
        failure = await client.call(_setup("x"), ASK, 60)
        await client.aclose()
        server.close()
        return failure

    failure = asyncio.run(go())
    assert isinstance(failure, Failure)
    assert failure.message.endswith("Bad key [secret] and token [secret]")
    head = seen[0].lower()
    assert b"authorization: bearer " + KEY.encode() in head
    assert b"x-team: hunter2" in head
    assert b"another" not in head


def test_the_environment_names_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proxy is asked, but for the hosts that need none;
    a header of one's own takes the place of ours.
    """
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(_completion({"content": "hi"}))
        await writer.drain()
        writer.close()

    async def go() -> list[Answer | Failure]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "near.invalid")
        own = {"authorization": "Token of-my-own"}
        endpoints = {
            "far": Endpoint(base_url="http://far.invalid/v1", api_key=KEY, headers=own),
            "near": Endpoint(base_url="http://near.invalid/v1"),
        }
        client = ModelClient(endpoints)
        found = [await client.call(ModelSetup(name=f"{n}/x"), ASK, 60) for n in endpoints]
        await client.aclose()
        server.close()
        return found

    far, near = asyncio.run(go())
    assert isinstance(far, Answer), far
    assert isinstance(near, Failure)
    assert not near.sent
    (head,) = seen
    assert head.startswith(b"POST http://far.invalid/v1/chat/completions ")
    assert b"\r\nauthorization: token of-my-own\r\n" in head.lower()
    assert KEY.encode() not in head


def test_what_never_left_is_not_booked() -> None:
    """A refused connection, an unknown host and a provider without endpoint: nothing was sent."""

    async def go() -> list[Answer | Failure]:
        endpoints = {
            "standin": Endpoint(base_url="http://127.0.0.1:9/v1"),
            "nowhere": Endpoint(base_url="http://no-such-host.invalid/v1"),
            "odd": Endpoint(base_url="http://[::1/v1"),
            "user": Endpoint(base_url="http://user:password@127.0.0.1/v1"),
            "scheme": Endpoint(base_url="ftp://127.0.0.1/v1"),
        }
        client = ModelClient(endpoints)
        names = ["standin/x", "nowhere/x", "scheme/x", "odd/x", "user/x", "missing/x"]
        found = [await client.call(ModelSetup(name=n), ASK, 60) for n in names]
        await client.aclose()
        return found

    *unreached, odd, user, missing = asyncio.run(go())
    for failure in unreached:
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.unsettled) == (FailureKind.CONNECTION, False), failure
        assert "cannot be reached" in failure.message
    for bad in (odd, user):
        assert isinstance(bad, Failure)
        assert bad.kind is FailureKind.BAD_REQUEST
        assert "bad base_url" in bad.message
        assert "password" not in bad.message
    assert isinstance(missing, Failure)
    assert missing.kind is FailureKind.AUTH
    assert "'missing'" in missing.message


def test_a_call_without_time_is_not_made() -> None:
    """A task may run out of its time while it waits for its turn:
    what was never asked for is not booked.
    """

    async def test(server: ModelServer, client: ModelClient) -> None:
        failure = await client.call(_setup("steps-2"), ASK, -0.01)
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.unsettled) == (FailureKind.TIMEOUT, False)
        assert server.totals.requests == 0

    _with_server(test)


def test_a_conversation_beyond_all_bounds_is_not_sent() -> None:
    """It is too long for the window, whatever that is: so it is shortened, or the task ends."""

    async def test(server: ModelServer, client: ModelClient) -> None:
        long = replace(ASK, messages=(*ASK.messages, Message("user", "x" * (33 << 20))))
        failure = await client.call(_setup("steps-2"), long, 60)
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.unsettled) == (FailureKind.CONTEXT_OVERFLOW, False)
        assert "33 MB, and a request at most 32 MB" in failure.message
        assert server.totals.requests == 0

    _with_server(test)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"SSH-2.0-OpenSSH_10\r\n", FailureKind.BAD_ANSWER),
        (b"", FailureKind.CONNECTION),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", FailureKind.CONNECTION),
        (_http(b""), FailureKind.BAD_ANSWER),
        (_http(b"null"), FailureKind.BAD_ANSWER),
        (_http(b'{"choices": [null]}'), FailureKind.BAD_ANSWER),
        (_http(b'{"choices": [{"message": null}]}'), FailureKind.BAD_ANSWER),
        (_http(b'{"choices": [{"message": {"content": 5}}]}'), FailureKind.BAD_ANSWER),
        (_http(b'{"x": ' + b"[" * 200_000), FailureKind.BAD_ANSWER),
        (_http(b'data: {"choices": []}\n\n'), FailureKind.BAD_ANSWER),
        (_http(b"x" * 50, headers="Content-Encoding: gzip\r\n"), FailureKind.BAD_ANSWER),
        (_http(b"", "301 Moved", "Location: https://elsewhere/\r\n"), FailureKind.BAD_REQUEST),
        (_http(b"<html>no", "404 Not Found"), FailureKind.UNFIT),
        (_http(b"\xff\xfe", "503 Unavailable"), FailureKind.OVERLOADED),
        (_http(b"[" * 100_000, "500 Broken"), FailureKind.OVERLOADED),
        (_completion({"content": "par"}, "insufficient_system_resource"), FailureKind.OVERLOADED),
    ],
)
def test_what_is_no_answer_is_a_failure(reply: bytes, kind: FailureKind) -> None:
    """Whatever comes back, the call returns a failure and raises nothing."""
    failure = asyncio.run(_raw(reply))
    assert isinstance(failure, Failure), failure
    assert failure.kind is kind, failure
    assert len(failure.message) < 500


def test_of_an_answer_without_end_a_part_is_read() -> None:
    """A provider that sends on and on does not fill the memory;
    what it sent may have been billed.
    """
    answer = b'{"choices": [{"message": {"content": "x"}}]}'
    assert isinstance(asyncio.run(_raw(_http(answer.ljust(MAX_BODY_BYTES)))), Answer)
    long = answer.ljust(MAX_BODY_BYTES + 1)
    packed = _http(gzip.compress(long), headers="Content-Encoding: gzip\r\n")
    for reply in (_http(long), packed):
        failure = asyncio.run(_raw(reply))
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.unsettled) == (FailureKind.BAD_ANSWER, True)
        assert "without an end" in failure.message


def test_an_answer_that_broke_off_may_have_been_billed() -> None:
    """It had begun; what follows a status of refusal had not."""
    for reply, billed in (
        (_completion({"content": "par"}, "error"), True),
        (_http(b"", "503 Unavailable"), False),
    ):
        failure = asyncio.run(_raw(reply))
        assert isinstance(failure, Failure), failure
        assert failure.unsettled is billed


def test_a_compressed_answer_is_read() -> None:
    """Providers compress their answers."""
    body = gzip.compress(b'{"choices": [{"message": {"content": "hi"}}]}')
    found = asyncio.run(_raw(_http(body, headers="Content-Encoding: gzip\r\n")))
    assert isinstance(found, Answer)
    assert found.content == "hi"


def test_cancelling_closes_the_connection() -> None:
    """A cancelled call passes the cancellation on, at once,
    and the server sees the connection close.
    """

    async def go() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            while await reader.read(1 << 16):
                pass
            gone.set()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = ModelClient({"standin": Endpoint(base_url=f"http://127.0.0.1:{port}/v1")})
        call = asyncio.create_task(client.call(_setup("x"), ASK, 60))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
        await client.aclose()
        server.close()

    asyncio.run(go())


def test_retune_under_way() -> None:
    """After a reload calls under way end on the old endpoint, new ones use the new one."""

    async def test(server: ModelServer, client: ModelClient) -> None:
        async with ModelServer() as other:
            before = asyncio.create_task(client.call(_setup("latency-0.2+steps-1"), ASK, 60))
            while not server.requests:  # noqa: ASYNC110 (the server sets no event when it is asked)
                await asyncio.sleep(0.001)
            client.retune({"standin": Endpoint(base_url=other.base_url)})
            assert isinstance(await client.call(_setup("steps-1"), ASK, 60), Answer)
            assert len(other.requests) == 1
            assert isinstance(await before, Answer)
            assert not client._retired

    _with_server(test)


def test_many_calls_share_one_client() -> None:
    """Three hundred calls at once all wait together and are all answered."""

    async def test(server: ModelServer, client: ModelClient) -> None:
        begun = time.monotonic()
        calls = [client.call(_setup("latency-1+steps-1"), ASK, PATIENCE_S) for _ in range(300)]
        found = await asyncio.gather(*calls)
        assert all(isinstance(f, Answer) for f in found)
        assert time.monotonic() - begun < 100, "one after another they take 300 s"
        assert len(server.requests) == 300
        assert len(client._lines) == 1

    _with_server(test, ServerSettings(count=False))


@pytest.mark.parametrize(
    ("said", "connections"),
    [
        # Without a word, and where the server keeps them long, all but the first calls share one:
        # the first one's ends when its server has said how long the next may stay.
        ((None, None, None, None), [1, 1, 1, 1]),
        ((65, 65, 65, 65), [1, 2, 2, 2]),
        # A server behind the same name that closes at once has each call connect;
        # no later word makes it longer.
        ((65, 0, 65, 65), [1, 2, 3, 4]),
    ],
)
def test_connections_stay_idle_as_long_as_their_server_says(
    said: tuple[int | None, ...], connections: list[int]
) -> None:
    """``Keep-Alive: timeout=N`` decides how long a connection is kept for the next call;
    the lowest N counts.
    """
    used: list[int] = []
    words = iter(said)
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        number = opened
        body = json.dumps(
            {"choices": [{"index": 0, "message": {"content": "1"}, "finish_reason": "stop"}]}
        ).encode()
        gone = contextlib.suppress(asyncio.IncompleteReadError, ConnectionError)
        with gone, contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(h[15:]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-l")
                )
                await reader.readexactly(length)
                used.append(number)
                seconds = next(words)
                keeps = "" if seconds is None else f"Keep-Alive: timeout={seconds}, max=100\r\n"
                writer.write(_http(body, headers=keeps))

    async def go() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = ModelClient({"standin": Endpoint(base_url=f"http://127.0.0.1:{port}/v1")})
        for _ in said:
            answer = await client.call(_setup("raw"), ASK, PATIENCE_S)
            assert isinstance(answer, Answer), answer
        await client.aclose()
        server.close()

    asyncio.run(go())
    assert used == connections


def test_a_call_that_waits_keeps_no_copy_of_its_request() -> None:
    """What was sent is let go of before the answer comes:
    a thousand calls may wait at a time, each with all it has read.
    """

    async def test() -> None:
        arrived, over = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"chunked" not in head.lower()
            left = int(head.lower().partition(b"content-length:")[2].split()[0])
            while left:
                left -= len(await reader.read(1 << 16))
            arrived.set()
            await over.wait()
            writer.close()

        request = replace(ASK, messages=(Message("user", "x" * (8 << 20)),))
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = ModelClient({"standin": Endpoint(base_url=f"http://127.0.0.1:{port}/v1")})
            before, _ = tracemalloc.get_traced_memory()
            call = asyncio.create_task(client.call(_setup("silent"), request, PATIENCE_S))
            async with asyncio.timeout(PATIENCE_S):
                await arrived.wait()
                while tracemalloc.get_traced_memory()[0] - before > 4 << 20:  # noqa: ASYNC110 (memory has no event)
                    await asyncio.sleep(0.01)
            assert not call.done()
            over.set()
            assert isinstance(await call, Failure)
            await client.aclose()

    tracemalloc.start()
    try:
        asyncio.run(test())
    finally:
        tracemalloc.stop()


def test_a_week_of_calls_is_booked_as_its_provider_bills_it_by_the_hour() -> None:
    """Every hour of a week with a holiday, and minutes about each edge, where the dearer counts:
    equal to the last digit, with the hours that are configured and those that are listed.
    """
    monday = datetime(2026, 9, 28, tzinfo=UTC)
    minutes = {60 * hour + past for hour in range(168) for past in (0, 30)}
    edges = [1440 * day + 60 * hour for day in range(7) for hour in (1, 4, 6, 10)]
    minutes |= {edge + off for edge in edges for off in (-3, -2, -1, 1, 2, 3)}

    def dear(at: float) -> bool:
        when = datetime.fromtimestamp(at, UTC)
        return when.weekday() < 5 and when.day != 1 and when.hour in {1, 2, 3, 6, 7, 8, 9}

    flash = "deepseek/deepseek-flash"
    given = ModelSection(
        input_usd_per_mtok=0.15,
        cached_input_usd_per_mtok=0.003,
        output_usd_per_mtok=0.6,
        hours=HoursSection(
            days="mon-fri",
            utc=("01:00-04:00", "06:00-10:00"),
            peak=PricesSection(
                input_usd_per_mtok=0.3, cached_input_usd_per_mtok=0.006, output_usd_per_mtok=1.2
            ),
            except_=("2026-10-01",),
        ),
    )
    configured = pricing.price(flash, Config(models={flash: given}))
    listed = pricing.price(flash, Config())
    long = Message("system", " ".join(map(str, range(1000))))

    async def test(server: ModelServer, client: ModelClient) -> None:
        spent = []
        for minute in sorted(minutes):
            at = monday.timestamp() + 60 * minute
            # Whatever its clock says within two minutes of ours: we book no less.
            server.control(now=next((m for m in (at, at - 119.9, at + 120) if dear(m)), at))
            asked = Message("user", f"Count to {minute % 5}.")
            request = ModelRequest(messages=(long, asked), tools=TOOLS, max_output_tokens=100)
            answer = await client.call(_setup("steps-1+deepseek-flash"), request, 10)
            assert isinstance(answer, Answer)
            event = CallAnswered(at=0, purpose=Purpose.AGENT, answer=answer, sent_at=at)
            cost = event.paid(configured)
            assert cost
            if datetime.fromtimestamp(at, UTC).day != 1:  # of which the list knows nothing
                assert event.paid(listed) == cost
            spent.append(cost.total)
        billed = [exchange.cost for exchange in server.requests]
        nano = [[round(1e9 * (usd or 0.0)) for usd in books] for books in (spent, billed)]
        assert nano[0] == nano[1]
        assert round(1e9 * math.fsum(spent)) == round(1e9 * server.totals.cost)
        assert sum(exchange.usage.cached_input_tokens > 0 for exchange in server.requests) > 400

    _with_server(test, ServerSettings(count=True))
