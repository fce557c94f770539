from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import Any

import pytest
from genai_prices.data import providers
from replacing import replace

from batchd.llm import ModelRequest
from batchd.llm.answer import CACHED, MAX_TEXT_CHARS, UnreadableError
from batchd.llm.chat import DIALECT
from batchd.llm.dialect import ModelTarget
from batchd.llm.exchange import encoded, fields
from batchd.llm.failures import CallPlace, error_in_answer, http_failure, retry_after, until_reset
from batchd.masking import Masker
from batchd.records import (
    Answer,
    Endpoint,
    FailureKind,
    Message,
    ModelSetup,
    Tool,
    ToolCall,
    Usage,
)

PLACE = CallPlace(
    ModelSetup(name="acme/big-1"),
    Endpoint(base_url="https://api.acme.example/v1", api_key="k" * 20),
)
TARGET = ModelTarget.of(PLACE.setup, PLACE.endpoint_host, "")
REQUEST = ModelRequest(messages=(Message("user", "hi"),), tools=(), max_output_tokens=10)


def _answer(message: Any, finish_reason: str | None = "stop", **more: Any) -> Answer:
    body = {"choices": [{"message": message, "finish_reason": finish_reason}], **more}
    return _decoded(json.dumps(body).encode())


def _decoded(body: bytes, request: ModelRequest = REQUEST) -> Answer:
    answer = DIALECT.decode(PLACE, TARGET, body, request, 1.0)
    assert isinstance(answer, Answer)
    return answer


def _usage(**usage: Any) -> Usage:
    return _answer({"content": "some words"}, usage=usage).usage


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {"message": "no"}, FailureKind.AUTH),
        (400, {"message": "API key not valid. Please pass a valid API key."}, FailureKind.AUTH),
        (403, {"message": "x", "code": "invalid_api_key"}, FailureKind.AUTH),
        (400, {"message": "This organization has been disabled."}, FailureKind.AUTH),
        (400, {"message": "x", "type": "organization_on_hold"}, FailureKind.AUTH),
        (403, {"message": "x", "code": "account_deactivated"}, FailureKind.AUTH),
        (402, {"message": "This request requires more credits"}, FailureKind.QUOTA),
        (429, {"message": "x", "type": "insufficient_quota"}, FailureKind.QUOTA),
        (403, {"message": "x", "code": "insufficient_quota"}, FailureKind.QUOTA),
        (400, {"message": "Your credit balance is too low to access"}, FailureKind.QUOTA),
        # Gemini says this of a limit that passes within a minute.
        (429, {"message": "You exceeded your current quota"}, FailureKind.RATE_LIMITED),
        (403, {"message": "no access to this model"}, FailureKind.FORBIDDEN),
        (
            403,
            {"message": "your input was flagged: requires moderation"},
            FailureKind.CONTENT_FILTER,
        ),
        (400, {"message": "x", "code": "content_policy_violation"}, FailureKind.CONTENT_FILTER),
        (400, {"message": "Content Exists Risk"}, FailureKind.CONTENT_FILTER),
        (400, {"message": "x", "code": "context_length_exceeded"}, FailureKind.CONTEXT_OVERFLOW),
        (400, {"message": "prompt is too long: 9 tokens > 8"}, FailureKind.CONTEXT_OVERFLOW),
        (400, {"message": "exceeds the maximum number of tokens"}, FailureKind.CONTEXT_OVERFLOW),
        (400, {"message": "x", "type": "exceed_context_size_error"}, FailureKind.CONTEXT_OVERFLOW),
        (413, {"message": "Request Entity Too Large"}, FailureKind.CONTEXT_OVERFLOW),
        (400, {"message": "max_tokens is too large"}, FailureKind.BAD_REQUEST),
        (404, {"message": "model 'x' not found, try pulling it first"}, FailureKind.BAD_REQUEST),
        (404, {"message": "Big-1: not found"}, FailureKind.BAD_REQUEST),
        (404, {"message": "No endpoints found for this request"}, FailureKind.BAD_REQUEST),
        (404, {"message": "Invalid URL (POST /v1/responses)"}, FailureKind.UNFIT),
        (403, {"message": "Rate limit exceeded"}, FailureKind.RATE_LIMITED),
        (409, {"message": "conflict"}, FailureKind.OVERLOADED),
        (418, {"message": "teapot"}, FailureKind.BAD_REQUEST),
        (408, {"message": "x"}, FailureKind.TIMEOUT),
        (504, {"message": "x"}, FailureKind.TIMEOUT),
        (500, {"message": "insufficient_quota is no matter here"}, FailureKind.OVERLOADED),
        (529, {"message": "Overloaded", "type": "overloaded_error"}, FailureKind.OVERLOADED),
    ],
)
def test_http_errors(status: int, error: dict[str, Any], kind: FailureKind) -> None:
    """Status, code, type and words of the known providers say what kind of failure it is."""
    for body in ({"error": error}, error, [{"error": error}], {"error": {"code": 1, **error}}):
        failure = http_failure(PLACE, status, {}, json.dumps(body).encode())
        assert failure.kind is kind
        assert failure.http_status == status
        assert error["message"].rstrip(".") in failure.message


@pytest.mark.parametrize(
    ("error", "names"),
    [
        ({"message": "no access to model `big-1`"}, True),
        ({"message": "Rate limit reached for Big-1 in organization"}, True),
        ({"message": "No access to acme/big-1."}, True),
        ({"message": "x", "code": "model_not_found"}, True),
        ({"message": "no access to this API"}, False),
        ({"message": "big-1-mini and big-1.5 are not for you"}, False),
    ],
)
def test_a_refusal_that_names_its_model(error: dict[str, Any], *, names: bool) -> None:
    """Its own name as a word, or OpenAI's code:
    another model's, or that of a longer name, says nothing of it.
    """
    failure = http_failure(PLACE, 401, {}, json.dumps({"error": error}).encode())
    assert failure.of_model == names


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"3",
        b'"x"',
        b"[]",
        b'{"error": null}',
        b'{"error": "text"}',
        b"\xff",
    ],
)
def test_any_error_body_makes_one_line(body: bytes) -> None:
    """Whatever the body is, there is one line that says what and where."""
    failure = http_failure(PLACE, 404, {}, body)
    assert failure.message.startswith(
        "acme/big-1 at api.acme.example has no chat completions under"
    )
    assert "\n" not in failure.message
    assert ("text" in failure.message) == (b"text" in body)


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (403, "Your organization is not active", "refuses the account (HTTP 403)"),
        (429, "Resource Unavailable: no flex now", "has no room for the request (HTTP 429)"),
        (429, "Too many requests", "has had too many requests or tokens (HTTP 429)"),
        (404, "No endpoints found for your policy", "refuses the request (HTTP 404)"),
        (404, "model: gone", "does not know the model 'big-1' (HTTP 404)"),
    ],
)
def test_a_failure_is_said_as_what_it_is(status: int, said: str, words: str) -> None:
    """An account that is shut is no wrong key, a tier without room no rate limit,
    a router's refusal no wrong address.
    """
    body = json.dumps({"error": {"message": said}}).encode()
    message = http_failure(PLACE, status, {}, body).message
    assert message == f"acme/big-1 at api.acme.example {words}: {said}"


def test_an_address_that_speaks_no_such_dialect_is_named_with_the_fix() -> None:
    """As it is configured, without a name and password in it, and where to change it."""
    endpoint = replace(PLACE.endpoint, base_url="https://me:secret@api.acme.example/v1/responses")
    failure = http_failure(replace(PLACE, endpoint=endpoint), 404, {}, b"404 page not found")
    assert (failure.kind, failure.of_model) == (FailureKind.UNFIT, False)
    assert "base_url https://api.acme.example/v1/responses: " in failure.message
    assert "[providers.acme]" in failure.message
    assert "secret" not in failure.message


def test_errors_under_status_200() -> None:
    """A gateway's error carries its own provider's status, and both their words."""
    failure = error_in_answer(
        PLACE,
        {
            "code": 429,
            "message": "Provider returned error",
            "metadata": {"raw": "slow down\nplease"},
        },
    )
    assert (failure.kind, failure.http_status) == (FailureKind.RATE_LIMITED, 429)
    assert "Provider returned error: slow down please" in failure.message
    for odd in ({"code": "x"}, "text", 5, {"code": "²"}, {"code": 12}, {"code": "9" * 5000}):
        assert error_in_answer(PLACE, odd).kind is FailureKind.BAD_ANSWER


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1e300"}, 365 * 86400),
        ({"retry-after-ms": "1e300"}, 365 * 86400),
        ({"retry-after": formatdate(time.time() - 60, usegmt=True)}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        ({"retry-after": "Thu, 31 Dec 2026 23:59:59 +99999999999999999999"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Retry-After comes in seconds, in milliseconds or as a date; nonsense says nothing."""
    found = retry_after(headers)
    assert found == (None if seconds is None else pytest.approx(seconds, rel=0.1))


def test_a_moment_is_a_wait_from_now_on() -> None:
    """Where a header says not how long, but until when:
    as a date, in seconds or in milliseconds since the epoch.
    """
    then = time.time() + 7200
    assert retry_after({"retry-after": formatdate(then, usegmt=True)}) == pytest.approx(7200, abs=5)
    for moment in (then, then * 1000):
        found = until_reset({"x-ratelimit-reset": str(int(moment))}, "")
        assert found == pytest.approx(7200, abs=5)


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m2.5s",
                "x-ratelimit-remaining-tokens": "100",
                "x-ratelimit-reset-tokens": "6h",
            },
            "",
            62.5,
        ),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "6h"}, "", None),
        ({"x-ratelimit-reset-requests": "120ms"}, "", 0.12),
        ({"anthropic-ratelimit-requests-reset": "2020-01-01T00:00:00Z"}, "", 0),
        ({}, "Rate limit reached. Please try again in 6m0s.", 360),
        ({}, "Please retry in 34.5s.", 34.5),
        ({}, '{"retryDelay": "34s"}', 34),
        ({}, "Please try again later.", None),
    ],
)
def test_the_wait_where_there_is_no_retry_after(
    headers: dict[str, str], body: str, seconds: float | None
) -> None:
    """The limit that ran out says when it is back, or else the message does."""
    found = until_reset(headers, body)
    assert found == (None if seconds is None else pytest.approx(seconds, rel=0.1))


def test_what_served_a_call_and_what_it_says_to_cost() -> None:
    """The tier in the provider's own word, and a cost in dollars;
    what is none, or is billed elsewhere, is left out.
    """
    counts = {"prompt_tokens": 9, "completion_tokens": 1}

    def read(tier: Any = "flex", **more: Any) -> Answer:
        return _answer({"content": "x"}, usage={**counts, **more}, service_tier=tier)

    found = read(cost=0.0125)
    assert (found.service_tier, found.stated_usd) == ("flex", 0.0125)
    for cost in (None, "0.01", {"total": 1}, -1, True, 1e300):
        assert read(cost=cost).stated_usd is None, cost
    assert read(cost=0.0125, is_byok=True).stated_usd is None
    for tier in (["flex"], None, 7):
        assert read(tier).service_tier == ""


def test_a_tier_is_asked_for_where_one_is_set() -> None:
    """A provider that sells none is not sent the field;
    the configuration's own fields go over it.
    """
    request = replace(REQUEST, service_tier="flex")
    assert fields(DIALECT, PLACE.setup, TARGET, request)["service_tier"] == "flex"
    assert "service_tier" not in fields(DIALECT, PLACE.setup, TARGET, REQUEST)
    own = replace(PLACE.setup, extra_body={"service_tier": "scale"})
    assert fields(DIALECT, own, TARGET, request)["service_tier"] == "scale"


def test_usage_in_every_dialect() -> None:
    """Cached, written, reasoning and hidden output are found under each provider's names."""
    assert _usage(
        prompt_tokens=100,
        completion_tokens=20,
        total_tokens=120,
        prompt_tokens_details={"cached_tokens": 60, "cache_write_tokens": 70},
        completion_tokens_details={"reasoning_tokens": 5},
    ) == Usage(
        calls=1,
        input_tokens=100,
        cached_input_tokens=60,
        cache_write_tokens=40,
        cache_reported_tokens=100,
        output_tokens=20,
        reasoning_tokens=5,
    )
    for name in CACHED:
        read = _usage(prompt_tokens=100, completion_tokens=20, **{name: 64})
        assert (read.cached_input_tokens, read.cache_share) == (64, 0.64)
    wrote = _usage(prompt_tokens=100, completion_tokens=1, cache_creation_input_tokens=9)
    assert wrote.cache_write_tokens == 9
    # By the package that the prices are from.
    extractors = [e for p in providers for e in p.extractors or () if e.api_flavor == "chat"]
    paths = [m.path for e in extractors for m in e.mappings if m.dest == "cache_read_tokens"]
    assert paths
    assert {path if isinstance(path, str) else path[-1] for path in paths} <= {*CACHED}
    kept = {"cached_tokens": 0, "cache_write_tokens": 90}
    for_long = {**kept, "cache_write_tokens_details": {"ttl_30m_tokens": 80, "ttl_12h_tokens": 10}}
    long = _usage(prompt_tokens=100, completion_tokens=1, prompt_tokens_details=for_long)
    assert (long.cache_write_tokens, long.cache_write_long_tokens) == (90, 10)
    # Nothing from the cache is a figure, none at all is not.
    assert long.cache_share == 0.0
    assert _usage(prompt_tokens=100, completion_tokens=1).cache_share is None
    gemini = _usage(prompt_tokens=100, completion_tokens=20, total_tokens=150)
    assert (gemini.output_tokens, gemini.estimated) == (50, False)
    odd = _usage(prompt_tokens=10.0, completion_tokens="x", prompt_tokens_details=None)
    assert (odd.input_tokens, odd.output_tokens, odd.estimated) == (10, 2, True)
    for nothing in ({}, {"prompt_tokens": None}, {"prompt_tokens": -1, "completion_tokens": 1e99}):
        counted = _usage(**nothing)
        assert counted.estimated
        assert (counted.input_tokens, counted.output_tokens) == (5, 2)
    for mess in ([], "none", 3):
        counted = _answer({"content": "some words"}, usage=mess).usage
        assert (counted.input_tokens, counted.output_tokens, counted.estimated) == (5, 2, True)
        inside = _usage(prompt_tokens=9, completion_tokens=3, prompt_tokens_details=mess)
        assert (inside.input_tokens, inside.output_tokens, inside.estimated) == (9, 3, False)
    silent = _answer({"content": ""}, usage={"prompt_tokens": 7, "completion_tokens": 0}).usage
    assert not silent.estimated


@pytest.mark.parametrize(
    ("message", "content", "reasoning"),
    [
        ({}, "", ""),
        ({"content": None, "tool_calls": None}, "", ""),
        ({"content": None, "refusal": "I will not."}, "", ""),
        ({"content": "Well.", "refusal": "I will not."}, "Well.", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}, "b"]}, "ab", ""),
        ({"content": [{"type": "thinking", "thinking": []}, {"text": "x"}]}, "x", ""),
        ({"content": [{"type": {}, "text": "a"}, {"type": ["text"]}, {"text": "x"}]}, "x", ""),
        ({"content": "x", "reasoning_content": "why"}, "x", "why"),
        ({"content": "x", "reasoning": "why", "reasoning_details": [{}]}, "x", "why"),
        ({"content": "<think>\nwhy\n</think>\n\nx"}, "x", "why"),
        ({"content": "x <think>not in front</think>"}, "x <think>not in front</think>", ""),
        ({"content": "a\ud800b\udf00"}, "a�b�", ""),
    ],
)
def test_content_in_every_form(message: dict[str, Any], content: str, reasoning: str) -> None:
    """Text comes as a string, as parts or not at all, and thinking is kept apart from it."""
    found = _answer(message)
    assert (found.content, found.reasoning) == (content, reasoning)
    refused = not content and message.get("refusal", "")
    assert found.finish_reason == ("content_filter" if refused else "stop")
    assert found.refusal == (refused or "")


def test_values_are_counted_and_signs_in_texts_are_none() -> None:
    """A text is one value, whatever stands in it, quotes and backslashes too;
    so many values as fill a memory are refused.
    """
    for sign in ("[{,", '",",', "\\", "\\,", ",\n\t"):
        text = sign * 300_000
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        assert _decoded(body).content == text[:MAX_TEXT_CHARS]
    many = json.dumps({"choices": [], "usage": [{}] * 140_000, "x": '","'})
    opened = '"' + '\\",' * 300_000
    for crowded, why in (
        (many, "more than 262,144 values"),
        (f'{{"model": {opened}', "broken JSON"),
    ):
        with pytest.raises(UnreadableError, match=why):
            _decoded(crowded.encode())


def test_tool_calls_are_made_whole() -> None:
    """Arguments become JSON text, and each call has an id of its own."""
    calls = _answer(
        {
            "tool_calls": [
                {"id": "a", "function": {"name": "shell", "arguments": '{"x": 1}'}},
                {"id": "a", "function": {"name": "shell", "arguments": {"x": 1}}},
                {"id": None, "function": {"name": "shell", "arguments": ""}},
                {"function": None},
            ]
        },
        "tool_calls",
    ).tool_calls
    assert calls[0] == ToolCall("a", "shell", '{"x": 1}')
    assert json.loads(calls[1].arguments) == {"x": 1}
    assert [c.arguments for c in calls[2:]] == ["{}", "{}"]
    assert calls[3].name == ""
    assert len({c.id for c in calls}) == 4
    assert all(c.id for c in calls)


@pytest.mark.parametrize(
    ("given", "plain", "called"),
    [
        ("stop", "stop", "tool_calls"),
        ("tool_calls", "stop", "tool_calls"),
        ("function_call", "stop", "tool_calls"),
        ("end_turn", "stop", "tool_calls"),
        (None, "stop", "tool_calls"),
        ("length", "length", "length"),
        ("MAX_TOKENS", "length", "length"),
        ("content_filter", "content_filter", "content_filter"),
    ],
)
def test_finish_reasons(given: str | None, plain: str, called: str) -> None:
    """Every provider's reason to end becomes one of four; calls count, whatever the word."""
    assert _answer({"content": "x"}, given).finish_reason == plain
    calls = [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]
    assert _answer({"tool_calls": calls}, given).finish_reason == called


def test_secrets_are_cut_out_of_messages() -> None:
    """Neither our key nor what looks like one appears in a message."""
    body = {"error": {"message": f"bad {'k' * 20}, sk-proj-{'a' * 30}, Bearer abc.def"}}
    place = replace(PLACE, masker=Masker(PLACE.endpoint.secrets()))
    message = http_failure(place, 400, {}, json.dumps(body).encode()).message
    assert message.endswith("bad [secret], [secret], [secret]")


@pytest.mark.parametrize(
    ("status", "message", "window"),
    [
        (
            400,
            (
                "This model's maximum context length is 8192 tokens. However, your messages "
                "resulted in 9001 tokens."
            ),
            8192,
        ),
        (
            400,
            (
                "'max_tokens' is too large: 2000. This model's maximum context length is 4096 tokens "
                "and your request has 2104 input tokens (2000 > 4096 - 2104)."
            ),
            4096,
        ),
        (400, "Prompt contains 40000 tokens, too large for 32768 maximum context length", 32768),
        (400, "prompt is too long: 208310 tokens > 200000 maximum", 200_000),
        (400, "`max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease it", 200_000),
        (
            400,
            "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
            1_048_576,
        ),
        (400, "maximum prompt length is 131072 but the request contains 537812 tokens", 131_072),
        (400, "request (9001 tokens) exceeds the available context size (8192 tokens)", 8192),
        (400, "Your request exceeded model token limit: 8,192 (requested: 9000)", 8192),
        (400, "`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000", 8193),
        (400, "Your input exceeds the context window of this model.", 0),
        (400, "This model has a context window of 200k", 0),
        # More than a minute's tokens at once: no wait helps, only a shorter request does.
        (
            429,
            "Request too large for big-1 on tokens per min (TPM): Limit 30000, Requested 45000",
            30_000,
        ),
        (413, "Request too large on tokens per minute (TPM): Limit 6000, Requested 9000", 6000),
    ],
)
def test_overflows_name_the_window_in_many_ways(status: int, message: str, window: int) -> None:
    """What a provider says of its window is believed; where it names none, it is 0."""
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    failure = http_failure(PLACE, status, {}, body)
    assert (failure.kind, failure.window) == (FailureKind.CONTEXT_OVERFLOW, window)


def test_a_common_rate_limit_is_no_overflow() -> None:
    """Its numbers are of tokens a minute that pass."""
    said = "Rate limit reached on tokens per min (TPM): Limit 10000, Used 9000, Requested 2000"
    failure = http_failure(PLACE, 429, {}, json.dumps({"error": {"message": said}}).encode())
    assert (failure.kind, failure.window) == (FailureKind.RATE_LIMITED, 0)
    served = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":2048}}'
    assert http_failure(PLACE, 400, {}, served).window == 2048


def _sent(*messages: Message) -> list[dict[str, Any]]:
    request = ModelRequest(messages=messages, tools=(), max_output_tokens=10)
    body = encoded(fields(DIALECT, PLACE.setup, TARGET, request))
    sent: list[dict[str, Any]] = json.loads(body)["messages"]
    return sent


def test_messages_of_the_user_that_follow_each_other_go_as_one() -> None:
    """Strict chat templates refuse two running;
    outputs of native calls are messages of their own.
    """
    call = ToolCall("1", "shell", "{}")
    text = _sent(
        Message("user", "a"), Message("assistant", "b"), Message("tool", "c"), Message("user", "d")
    )
    assert [m["role"] for m in text] == ["user", "assistant", "user"]
    assert text[-1]["content"] == "c\n\nd"
    native = _sent(
        Message("assistant", "", (call,)), Message("tool", "c", (), "1"), Message("user", "d")
    )
    assert [m["role"] for m in native] == ["assistant", "tool", "user"]


def test_thinking_goes_back_only_where_it_came_as_reasoning_content() -> None:
    """A provider that never sent the field never gets it: many refuse what they do not know."""
    sent = _sent(Message("assistant", "a", reasoning="so"), Message("assistant", "b"))
    assert [m.get("reasoning_content") for m in sent] == ["so", None]
    assert "reasoning_content" not in sent[1]
    tools = ModelRequest(messages=(), tools=(Tool("shell", "", {}),), max_output_tokens=10)
    for message, request, back in (
        ({"content": "x", "reasoning_content": ""}, tools, True),
        ({"content": "x", "reasoning_content": "so"}, REQUEST, False),
        ({"content": "x", "reasoning": "so"}, tools, False),
        ({"content": "<think>so</think>x"}, tools, False),
    ):
        body = json.dumps({"choices": [{"message": message}]}).encode()
        assert _decoded(body, request).reasoning_back is back
