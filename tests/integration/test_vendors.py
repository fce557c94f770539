"""The stand-in in all its dialects:
held to the vendors' types and clients, and to what the vendors refuse.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import aiohttp
import openai
import pytest
import vendors
from patience import PATIENCE_S
from standin import families, faults
from standin.server import ModelServer
from standin.settings import ServerSettings
from vendors import Wire

from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.records import Answer, ToolCall, Usage

DIALECTS = ("chat", "responses", "messages")
NEW = ("responses", "messages")
#: Long enough for every cache.
LONG = "Once more, from the beginning. " * 1000


def run(
    test: Callable[[ModelServer, Wire], Awaitable[None]],
    settings: ServerSettings | None = None,
    recorded: Sequence[Recording] | None = None,
) -> None:
    """Run a test with a server and a client of it."""

    async def go() -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with (
            ModelServer(settings, log_bodies=True, recorded=recorded) as server,
            aiohttp.ClientSession(timeout=timeout) as session,
        ):
            await test(server, Wire(session, server.base_url))

    asyncio.run(go())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_refusal_in_every_dialect(dialect: str) -> None:
    """Each fault has a form in each dialect, strikes as often as it is to,
    and then the conversation goes on.
    """
    special = {"flex-full", "seals-lost", "thoughtless"}

    async def test(_: ModelServer, wire: Wire) -> None:
        for fault in sorted(faults.REFUSALS - special):
            body = vendors.request(dialect, f"{fault}-1+steps-1")
            status, answer, headers = await wire.post(dialect, body)
            assert 400 <= status < 600, fault
            error = json.loads(answer)["error"]
            assert error["message"]
            if dialect != "messages":
                assert error.keys() == {"message", "type", "param", "code"}
            elif fault not in {"409", "413", "llama-overflow"}:
                # The SDK has no type for a conflict, or for what is too large.
                vendors.check_error(answer)
            waits = {"rate-limit", "429", "token-limit", "day-limit", "slow-down"}
            assert ("Retry-After" in headers) == (fault in waits)
            assert vendors.said(dialect, await wire.ask(dialect, body)).text == "Done."

    run(test)


def test_refusals_are_what_the_clients_take_them_for() -> None:
    """The vendors' own clients raise what they raise for the vendors."""
    import anthropic

    async def test(server: ModelServer, _: Wire) -> None:
        async with (
            vendors.openai_at(server.base_url) as ours,
            vendors.anthropic_at(server.base_url) as theirs,
        ):
            for fault, error, code in (
                ("429", openai.RateLimitError, "rate_limit_exceeded"),
                ("slow-down", openai.RateLimitError, "slow_down"),
                ("credit", openai.RateLimitError, "credit_balance_exhausted"),
                ("503", openai.InternalServerError, "server_is_overloaded"),
                ("context-overflow", openai.BadRequestError, "context_length_exceeded"),
            ):
                with pytest.raises(error) as caught:
                    await ours.responses.create(model=fault, input="go")
                assert caught.value.code == code  # type: ignore[attr-defined] # of all of these
            for fault, wrong, status, code in (
                ("429", anthropic.RateLimitError, 429, None),
                ("slow-down", anthropic.RateLimitError, 429, "ramp_limit_exceeded"),
                ("spend-limit", anthropic.RateLimitError, 429, "enforced_spend_limit_reached"),
                ("402", anthropic.APIStatusError, 402, None),
                ("413", anthropic.RequestTooLargeError, 413, None),
                ("503", anthropic.OverloadedError, 529, None),
                ("on-hold", anthropic.BadRequestError, 400, "organization_on_hold"),
            ):
                with pytest.raises(wrong) as hit:
                    await theirs.messages.create(
                        model=fault, max_tokens=9, messages=[{"role": "user", "content": "go"}]
                    )
                assert hit.value.status_code == status
                details = dict(hit.value.body)["error"].get("details") or {}  # type: ignore[call-overload] # a dict
                assert details.get("error_code") == code
                assert hit.value.request_id

    run(test)


@pytest.mark.parametrize("dialect", NEW)
def test_faults_of_the_way_in_every_dialect(dialect: str) -> None:
    """What never comes, is cut off or is no answer: as in chat completions."""

    async def test(server: ModelServer, wire: Wire) -> None:
        async def body(fault: str) -> bytes:
            return (await wire.post(dialect, vendors.request(dialect, fault)))[1]

        with pytest.raises(aiohttp.ServerDisconnectedError):
            await body("cut")
        with pytest.raises(aiohttp.ClientPayloadError):
            await body("cut-body")
        assert (await body("html")).startswith(b"<!DOCTYPE html>")
        with pytest.raises(json.JSONDecodeError):
            json.loads(await body("broken-json"))
        assert json.loads(await body("error-200"))["error"]["message"]
        failed = json.loads(await body("failed"))
        assert failed["error"]
        assert failed.get("status", "failed") == "failed"
        assert not json.loads(await body("no-choices"))[
            "output" if dialect == "responses" else "content"
        ]
        assert "usage" not in json.loads(await body("no-usage"))
        for fault in ("hang", "hang-body", "drip"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await body(fault)
        assert server.totals.usage.calls == 0
        whole = [e.status for e in server.requests if e.delivered]
        assert whole == [200] * 6

    run(test)


@pytest.mark.parametrize("script", sorted(faults.SCRIPTS))
def test_every_script_says_the_same_in_every_dialect(script: str) -> None:
    """What is said and called is the same, and each form of it is the vendor's."""

    async def test(_: ModelServer, wire: Wire) -> None:
        heard = []
        for dialect in DIALECTS:
            body = vendors.request(dialect, f"{script}-2+steps-1")
            if script.startswith("surrogate"):
                _, answer, _ = await wire.post(dialect, body)
                heard.append(vendors.said(dialect, json.loads(answer)))
                continue
            answer = await wire.ask(dialect, body)
            heard.append(vendors.said(dialect, answer))
        if script == "refusal":
            # Anthropic says it beside the content.
            assert answer["stop_details"]["explanation"] == heard[0].text
            heard[2] = heard[0]
        assert [(s.text, s.calls) for s in heard] == [(heard[0].text, heard[0].calls)] * 3

    run(test)


@pytest.mark.parametrize(
    ("script", "chat", "responses", "messages"),
    [
        ("steps-1", "stop", ("completed", None), "end_turn"),
        ("loop", "tool_calls", ("completed", None), "tool_use"),
        ("length", "length", ("incomplete", "max_output_tokens"), "max_tokens"),
        ("length-tool", "length", ("incomplete", "max_output_tokens"), "max_tokens"),
        ("content-filter", "content_filter", ("incomplete", "content_filter"), "refusal"),
        ("refusal", "stop", ("completed", None), "refusal"),
        ("pause", "stop", ("completed", None), "pause_turn"),
        (
            "full",
            "length",
            ("incomplete", "max_output_tokens"),
            "model_context_window_exceeded",
        ),
    ],
)
def test_how_an_answer_ends(
    script: str, chat: str, responses: tuple[str, str | None], messages: str
) -> None:
    """Each dialect has its own words for why an answer ended."""

    async def test(_: ModelServer, wire: Wire) -> None:
        answers = [await wire.ask(d, vendors.request(d, script)) for d in DIALECTS]
        assert answers[0]["choices"][0]["finish_reason"] == chat
        reason = (answers[1]["incomplete_details"] or {}).get("reason")
        assert (answers[1]["status"], reason) == responses
        assert answers[2]["stop_reason"] == messages

    run(test)


async def _lead(wire: Wire, dialect: str, body: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """Lead a conversation to its end, everything sent back as it came."""
    answers = []
    for _ in range(steps):
        answers.append(await wire.ask(dialect, body))
        vendors.follow(dialect, body, answers[-1], "done, it says")
    return answers


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_conversation_and_what_the_log_says_of_it(dialect: str) -> None:
    """Steps, parallel calls and a judge; the log has tokens,
    cache, account and money of all dialects in one form.
    """
    model = {"chat": "gpt-6-luna", "responses": "gpt-6-luna", "messages": "claude-haiku-5-5"}[
        dialect
    ]
    more: dict[str, Any] = {"reasoning_effort": "none"} if dialect == "chat" else {}
    if dialect == "messages":
        more = {"cache_control": {"type": "ephemeral"}}

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request(dialect, f"{model}+parallel-2+steps-2", LONG, **more)
        answers = await _lead(wire, dialect, body, 4)
        assert vendors.said(dialect, answers[-1]).text == "Done."
        assert len(vendors.said(dialect, answers[0]).calls) == 3
        log = server.requests
        assert [e.turn for e in log] == [0, 1, 2, 3]
        assert {(e.dialect, e.model, e.tier, e.status) for e in log} == {
            (dialect, f"{model}+parallel-2+steps-2", "default", 200)
        }
        assert len({e.account for e in log}) == 1
        assert "sk-x" not in log[0].account
        opaque = 0 if dialect == "chat" else 1
        assert [(e.opaque, e.removed) for e in log] == [(opaque * n, 0) for n in range(4)]
        for before, after in itertools.pairwise(log):
            assert before.usage is not None
            assert after.usage is not None
            assert after.usage.cached_input_tokens == before.usage.input_tokens
            written = after.usage.input_tokens - before.usage.input_tokens
            assert after.usage.cache_write_tokens == written
        for entry in log:
            usage = entry.usage
            assert usage is not None
            fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
            paid = fresh * 0.1 + usage.cached_input_tokens * 0.01
            paid += usage.cache_write_tokens * 0.125 + usage.output_tokens * 0.5
            assert entry.cost == pytest.approx(paid / 1e6, rel=1e-12)
            assert entry.cacheable == usage.cached_input_tokens
        assert server.totals.cost == pytest.approx(sum(e.cost or 0 for e in log))

    run(test)


Edit = Callable[[dict[str, Any]], object]


def _drop(kind: str) -> Edit:
    def edit(body: dict[str, Any]) -> None:
        body["input"] = [i for i in body["input"] if i.get("type") != kind]

    return edit


def _damage(body: dict[str, Any]) -> None:
    item = next(i for i in body["input"] if i.get("type") == "reasoning")
    item["encrypted_content"] = (
        item["encrypted_content"][:40] + "AA" + item["encrypted_content"][42:]
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda b: b["input"].append(
                {"type": "function_call_output", "call_id": "x", "output": ""}
            ),
            "No tool call found for function call output with call_id x",
        ),
        (_drop("function_call"), "without its required following item"),
        (_drop("function_call_output"), "No tool output found for function call"),
        (_drop("reasoning"), "was provided without its required 'reasoning' item"),
        (
            lambda b: b["input"].insert(2, {"role": "user", "content": "x"}),
            "required following item",
        ),
        (_damage, "invalid_encrypted_content"),
        (lambda b: b["input"][1].update(encrypted_content=None), "not found"),
        (lambda b: b["input"][1].update(id="rs_00000001t.x"), "invalid_encrypted_content"),
        (
            lambda b: b["input"][1].update(summary=[{"type": "summary_text", "text": "x"}]),
            "invalid_",
        ),
        (lambda b: b["input"].append({"type": "what"}), "Supported values are"),
        (lambda b: b["input"].append({"role": "tool", "content": "x"}), "role"),
        (lambda b: b["input"][0].update(name="me"), "Unknown parameter: 'input[0].name'"),
        (lambda b: b.update(stop=["x"]), "Unknown parameter: 'stop'"),
        (lambda b: b.update(max_tokens=9), "Unknown parameter: 'max_tokens'"),
        (lambda b: b.pop("model"), "Missing required parameter: 'model'"),
        (lambda b: b.update(max_output_tokens=1), "integer_below_min_value"),
        (lambda b: b["tools"][0].pop("strict"), "additionalProperties"),
        (lambda b: b.update(tools=[{"type": "function", "function": {}}]), "tools"),
        (lambda b: b.update(reasoning={"effort": "huge"}), "Supported values are"),
        (lambda b: b.update(service_tier="cheap"), "service_tier"),
        (lambda b: b.update(input=[]), "too short"),
    ],
)
def test_what_responses_refuses(edit: Edit, words: str) -> None:
    """Items that do not belong together, that were touched, and fields that there are not."""

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request("responses", "steps-3")
        await _lead(wire, "responses", body, 1)
        sound = copy.deepcopy(body)
        edit(body)
        assert words in await wire.refused("responses", body)
        assert server.requests[-1].status == 400
        assert server.requests[-1].usage is None
        await wire.ask("responses", sound)

    run(test)


def test_gpt_6_2_leaves_reasoning_out_where_what_stood_before_it_changed() -> None:
    """With status 200, and `input_transformations` alone says so;
    later reasoning goes on from what was sent.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request("responses", "gpt-6.2-sol+steps-5", safety_identifier="one")
        await _lead(wire, "responses", body, 2)

        async def removed(changed: dict[str, Any], key: str = "sk-x") -> list[str]:
            answer = await wire.ask("responses", changed, key)
            found = answer["input_transformations"] or []
            assert server.requests[-1].removed == len(found)
            assert [r["id"] for r in found] == [
                i["id"] for i in changed["input"] if i.get("type") == "reasoning"
            ][-len(found) :] or not found
            return [r["reason"] for r in found]

        assert await removed(body) == []
        for edit, reasons in (
            (lambda b: b["input"][0].update(content="other"), ["prefix_mismatch"] * 2),
            (lambda b: b["input"][3].update(output="shorter"), ["prefix_mismatch"]),
            (
                lambda b: b["input"].insert(0, {"role": "developer", "content": "x"}),
                ["prefix_mismatch"] * 2,
            ),
            (lambda b: b["tools"][0].update(description="x"), ["prefix_mismatch"] * 2),
            (lambda b: b.update(model="gpt-6.2-sol+steps-6"), ["model_mismatch"] * 2),
            (lambda b: b.update(safety_identifier="two"), ["end_user_mismatch"] * 2),
            (lambda b: b["input"].append({"role": "developer", "content": "x"}), []),
            (
                lambda b: b["input"].append(
                    {"type": "configuration_update", "reasoning": {"effort": "low"}}
                ),
                [],
            ),
        ):
            changed = copy.deepcopy(body)
            edit(changed)  # type: ignore[no-untyped-call] # a line
            assert await removed(changed) == reasons
        assert await removed(body, "sk-other") == ["organization_mismatch"] * 2
        other = copy.deepcopy(body)
        other["model"] = "gpt-6-luna+steps-5"
        assert "invalid_encrypted_content" in await wire.refused("responses", other)
        # What is lost is lost alone: what is thought on the new prefix holds.
        body["input"][0]["content"] = "other"
        answer = await wire.ask("responses", body)
        vendors.follow("responses", body, answer, "ok")
        assert len((await wire.ask("responses", body))["input_transformations"]) == 2

    run(test)


def _block(body: dict[str, Any], turn: int, place: int = 0) -> dict[str, Any]:
    block: dict[str, Any] = body["messages"][turn]["content"][place]
    return block


def _five(body: dict[str, Any]) -> None:
    mark = {"type": "ephemeral"}
    body["system"] = [{"type": "text", "text": str(n), "cache_control": mark} for n in range(4)]
    body["cache_control"] = mark


def _cut_short(body: dict[str, Any]) -> None:
    """Leave nothing but thinking of an answer."""
    answer, reply = body["messages"][1:3]
    answer["content"] = answer["content"][:1]
    reply["content"] = "Go on."


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda b: b["messages"].pop(2), "prefill|without `tool_result`"),
        (lambda b: _block(b, 2).update(tool_use_id="x"), "unexpected `tool_use_id`"),
        (
            lambda b: b["messages"][2]["content"].insert(0, {"type": "text", "text": "first"}),
            "without `tool_result` blocks immediately after",
        ),
        (
            lambda b: b["messages"].insert(2, {"role": "user", "content": "late"}),
            "without `tool_result`",
        ),
        (lambda b: b["messages"].append({"role": "user", "content": "x"}), "roles must alternate"),
        (lambda b: b["messages"].append({"role": "assistant", "content": "{"}), "prefill"),
        (lambda b: b["messages"].pop(0), "first message must use the user role"),
        (lambda b: b["messages"].append({"role": "tool", "content": "x"}), "role"),
        (lambda b: b.pop("max_tokens"), "max_tokens: Field required"),
        (lambda b: b.update(max_output_tokens=9), "max_output_tokens: Extra inputs"),
        (lambda b: _block(b, 2).update(name="x"), "messages.2.content.0.name: Extra inputs"),
        (lambda b: b.pop("tools"), "must define tools"),
        (lambda b: b["tools"][0].update(parameters={}), "tools.0.parameters: Extra inputs"),
        (lambda b: b["messages"][0].update(content=" "), "non-empty"),
        (lambda b: b["messages"][0].update(content=[]), "non-empty"),
        (_five, "A maximum of 4 blocks with cache_control may be provided. Found 5"),
        (
            lambda b: b.update(
                system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
                cache_control={"type": "ephemeral", "ttl": "1h"},
            ),
            "must not come after",
        ),
        (lambda b: _block(b, 1).update(thinking="other"), "Invalid `signature`"),
        (lambda b: _block(b, 1).update(signature="AAAA"), "Invalid `signature`"),
        (_cut_short, "cannot be `thinking`"),
        (lambda b: b["messages"][0].update(content="other"), "bound to a different conversation"),
        (lambda b: b.update(system="other"), "bound to a different conversation"),
        (lambda b: b["tools"][0].update(description="other"), "bound to a different conversation"),
        (lambda b: b.update(model="claude-haiku-5-5+steps-9"), "bound to a different"),
        (lambda b: b.update(thinking={"type": "enabled", "budget_tokens": 2000}), "thinking.type"),
        (lambda b: b.update(output_config={"effort": "none"}), "output_config.effort"),
        (
            lambda b: b.update(
                output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}}
            ),
            "additionalProperties",
        ),
        (
            lambda b: b.update(thinking={"type": "disabled"}, output_config={"effort": "max"}),
            "effort above high",
        ),
    ],
)
def test_what_messages_refuses(edit: Edit, words: str) -> None:
    """Results missing or late, turns out of turn, touched or moved thinking,
    a fifth breakpoint, unknown fields.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "claude-haiku-5-5+steps-3")
        await _lead(wire, "messages", body, 1)
        sound = copy.deepcopy(body)
        edit(body)
        said = await wire.refused("messages", body)
        assert any(w in said for w in words.split("|")), said
        assert server.requests[-1].usage is None
        await wire.ask("messages", sound)
        assert "different organization" in await wire.refused("messages", sound, "sk-other")

    run(test)


def test_thinking_of_another_model_is_left_out_where_it_is_not_bound() -> None:
    """Older models drop what they cannot read,
    hold to the bytes of what they can, and do not mind an edit.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "claude-opus-5+steps-4")
        await _lead(wire, "messages", body, 2)
        body["messages"][0]["content"] = "other"
        await wire.ask("messages", body)
        assert server.requests[-1].removed == 0
        body["model"] = "claude-haiku-4-5+steps-4"
        await wire.ask("messages", body)
        assert server.requests[-1].removed == 2
        body["model"] = "claude-opus-5+steps-4"
        _block(body, 1)["thinking"] += "."
        assert "Invalid `signature`" in await wire.refused("messages", body)

    run(test)


def test_versions_of_messages() -> None:
    """A version is needed, and the newer one takes no sampling parameters."""

    async def test(_: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "steps-1", temperature=1)
        for version, expected in (("2023-06-01", 200), ("2026-10-21", 400), ("2020-01-01", 400)):
            status, _, _ = await wire.post("messages", body, **{"anthropic-version": version})
            assert status == expected
        async with wire.session.post(f"{wire.base_url}/messages", json=body) as reply:
            assert reply.status == 400
            assert "anthropic-version" in await reply.text()

    run(test)


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("gpt-6-luna", {}, "reasoning_effort"),
        ("gpt-6-luna", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("gpt-6-luna", {"reasoning_effort": "none"}, ""),
        ("gpt-6-luna", {"reasoning_effort": "none", "temperature": 0.2}, ""),
        ("gpt-6-luna", {"tools": None, "temperature": 0.2}, "temperature"),
        ("gpt-6-luna", {"tools": None, "max_tokens": 99}, "max_completion_tokens"),
        ("gpt-6.2-sol", {"reasoning_effort": "low"}, "/v1/responses"),
        ("gpt-6.2-sol", {"tools": None, "reasoning_effort": "none"}, "Supported values"),
        ("gpt-6.2-sol", {"tools": None, "service_tier": "flex"}, "service_tier"),
        ("gpt-6.1-sol", {"tools": None}, ""),
        (
            "gpt-6.1-sol",
            {"tools": None, "input": "x"},
            "Unrecognized request argument supplied: input",
        ),
        ("claude-haiku-5-5", {"max_tokens": 99, "temperature": 0.2}, ""),
        ("gpt-5-mini", {}, ""),
        ("steps-1", {"temperature": 0.2, "max_tokens": 99}, ""),
    ],
)
def test_what_models_take_on_chat_completions(model: str, more: dict[str, Any], words: str) -> None:
    """Tools beside reasoning, temperatures, efforts,
    tiers and the old limit: as each model has it.
    """

    async def test(_: ModelServer, wire: Wire) -> None:
        body = {k: v for k, v in vendors.request("chat", model, **more).items() if v is not None}
        if words:
            assert words in await wire.refused("chat", body)
        else:
            await wire.ask("chat", body)

    run(test)


async def _cached(
    wire: Wire, server: ModelServer, dialect: str, body: dict[str, Any]
) -> tuple[int, ...]:
    """Return what of a request is fresh, read, written for short and for long, by the log."""
    await wire.ask(dialect, body)
    entry = server.requests[-1]
    usage = entry.usage
    assert usage is not None
    fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    short = usage.cache_write_tokens - entry.long_writes
    return fresh, usage.cached_input_tokens, short, entry.long_writes


def test_the_cache_of_responses() -> None:
    """From 1,024 tokens, up to the end of what is sent, by key,
    effort, tier and account; for 30 minutes or 12 hours.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        def body(prompt: str = LONG, **more: Any) -> dict[str, Any]:
            model = more.pop("model", "gpt-6-luna+steps-9")
            return vendors.request("responses", model, prompt, prompt_cache_key="a", **more)

        async def cached(of: dict[str, Any]) -> tuple[int, ...]:
            return await _cached(wire, server, "responses", of)

        first = body()
        fresh, read, size, long = await cached(first)
        assert (fresh, read, long) == (0, 0, 0)
        assert size > 6000
        assert await cached(first) == (0, size, 0, 0)
        # A second turn reads the first, and writes what is behind it: the answer and the output.
        await _lead(wire, "responses", first, 1)
        fresh, read, added, _ = await cached(first)
        assert (fresh, read) == (0, size)
        assert added > 0
        for changed in (
            body(reasoning={"effort": "high"}),
            body(text={"verbosity": "low"}),
            body(service_tier="flex"),
            {**body(), "prompt_cache_key": "b"},
            {**body(), "tools": []},
        ):
            assert (await cached(changed))[1] == 0
        await wire.ask("responses", body(), "sk-other")
        assert server.requests[-1].usage.cached_input_tokens == 0  # type: ignore[union-attr] # an answer
        assert (await cached(body("short")))[1:] == (0, 0, 0)
        assert (await cached(body("short")))[1:] == (0, 0, 0)
        free = body(model="gpt-5-mini+steps-9")
        assert (await cached(free))[1:] == (0, 0, 0)
        assert (await cached(free))[1] == size
        server.control(aged_s=1801)
        assert (await cached(body()))[1:] == (0, size, 0)
        server.control(aged_s=1801 + 1799)
        assert (await cached(body()))[1] == size
        long_lived = body(prompt_cache_options={"ttl": "12h"}, reasoning={"effort": "low"})
        assert (await cached(long_lived))[1:] == (0, 0, size)
        server.control(aged_s=40_000)
        assert (await cached(long_lived))[1:] == (size, 0, 0)

    run(test)


def test_explicit_breakpoints_of_responses() -> None:
    """Only what stands before a breakpoint is cached where nothing else is asked for;
    four are the most.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
        part = {"type": "input_text", "text": LONG}
        body = vendors.request(
            "responses", "gpt-6-luna+steps-9", prompt_cache_options={"mode": "explicit"}
        )
        body["input"] = [
            {"role": "user", "content": [{**part, **mark}]},
            {"role": "user", "content": [part]},
        ]
        fresh, read, written, _ = await _cached(wire, server, "responses", body)
        assert read == 0
        assert 0 < abs(fresh - written) < 100
        # The mark itself is no part of what is cached.
        body["input"][0]["content"][0].pop("prompt_cache_breakpoint")
        body["input"][1]["content"][0] = {**part, **mark}
        assert (await _cached(wire, server, "responses", body))[:2] == (0, written)
        body["input"] = [{"role": "user", "content": [{**part, **mark}] * 5}]
        assert "at most 4" in await wire.refused("responses", body)

    run(test)


def test_what_could_have_been_read_is_known() -> None:
    """A client that marks nothing, changes its key or speaks
    to Claude over chat pays again for what could be cached.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        model = "claude-haiku-5-5+steps-3"
        for dialect, body, more in (
            ("messages", vendors.request("messages", model, LONG), {}),
            ("chat", vendors.request("chat", model, LONG), {}),
            (
                "responses",
                vendors.request("responses", "gpt-6-luna+steps-3", LONG),
                {"prompt_cache_key": "b"},
            ),
        ):
            await _lead(wire, dialect, body, 1)
            await wire.ask(dialect, {**body, **more})
            first, second = server.requests[-2:]
            assert first.usage is not None
            assert second.usage is not None
            assert first.cacheable == 0
            assert second.cacheable == first.usage.input_tokens > 6000
            assert second.usage.cached_input_tokens == 0

    run(test)


def test_the_cache_of_messages() -> None:
    """By breakpoints, from a least length, twenty blocks back,
    for five minutes or an hour; what is read stays.
    """
    short = {"cache_control": {"type": "ephemeral"}}
    long = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}

    async def test(server: ModelServer, wire: Wire) -> None:
        def body(**more: Any) -> dict[str, Any]:
            return vendors.request("messages", "claude-sonnet-5-5+steps-99", LONG, **more)

        async def cached(of: dict[str, Any]) -> tuple[int, ...]:
            return await _cached(wire, server, "messages", of)

        size, *rest = await cached(body())
        assert rest == [0, 0, 0]
        assert await cached(body()) == (size, 0, 0, 0)
        assert await cached(body(**short)) == (0, 0, size, 0)
        assert await cached(body(**short)) == (0, size, 0, 0)
        server.control(aged_s=299)
        assert await cached(body(**short)) == (0, size, 0, 0)
        server.control(aged_s=299 + 299)
        assert await cached(body(**short)) == (0, size, 0, 0)
        server.control(aged_s=299 + 299 + 301)
        assert await cached(body(**short)) == (0, 0, size, 0)
        # System for an hour, the conversation for five minutes.
        mixed = body(system=[{"type": "text", "text": LONG, **long}], **short)
        fresh, read, five, hour = await cached(mixed)
        assert (fresh, read) == (0, 0)
        assert five > 6000
        assert hour > 6000
        server.control(aged_s=2000)
        assert await cached(mixed) == (0, hour, five, 0)
        # A breakpoint below the least length is none.
        little = vendors.request("messages", "claude-sonnet-5-5+steps-9", "short", **short)
        assert (await cached(little))[1:] == (0, 0, 0)
        medium = vendors.request("messages", "claude-haiku-5-5+steps-9", "word " * 700, **short)
        assert (await cached(medium))[2] > 700
        medium["model"] = "claude-haiku-4-5+steps-9"
        assert (await cached(medium))[1:] == (0, 0, 0)
        # Twenty places back, and no further.
        for blocks, found in ((19, size), (20, 0)):
            far = body(**short)
            first = {"type": "text", "text": LONG}
            far["messages"][0]["content"] = [first, *[{"type": "text", "text": "x"}] * blocks]
            far["model"] += f"+loop-{blocks}"
            near = body(**short)
            near["model"] = far["model"]
            await cached(near)
            assert (await cached(far))[1] == found

    run(test)


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_tiers(dialect: str) -> None:
    """Flex costs half and may be full, priority twice; the answer and the log say which served."""
    more: dict[str, Any] = {"reasoning_effort": "none"} if dialect == "chat" else {}

    async def test(server: ModelServer, wire: Wire) -> None:
        async def served(model: str, tier: str) -> tuple[str, str, float]:
            body = vendors.request(dialect, model, service_tier=tier, **more)
            answer = await wire.ask(dialect, body)
            entry = server.requests[-1]
            assert answer["service_tier"] == entry.tier
            assert entry.cost is not None
            return entry.tier_asked, entry.tier, entry.cost

        model = "gpt-6-luna+steps-1"
        asked, tier, whole = await served(model, "default")
        assert (asked, tier) == ("default", "default")
        assert (await served(model, "auto"))[1] == "default"
        assert await served(model, "flex") == ("flex", "flex", pytest.approx(whole / 2))
        for name in ("priority", "fast"):
            assert await served(model, name) == ("priority", "priority", pytest.approx(whole * 2))
        falls = "tier-falls+" + model
        assert await served(falls, "priority") == ("priority", "default", pytest.approx(whole))
        full = "flex-full-1+" + model
        await served(full, "default")
        status, answer, _ = await wire.post(
            dialect, vendors.request(dialect, full, service_tier="flex", **more)
        )
        assert status == 429
        assert b"Resource Unavailable" in answer
        assert (await served(full, "flex"))[1] == "flex"

    run(test)


@pytest.mark.parametrize("dialect", NEW)
def test_opaque_items_are_unique_and_as_long_as_asked_for(dialect: str) -> None:
    """No two are the same; their length, what was thought,
    and that a server has lost them can be asked for.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        found = []
        for _ in range(2):
            body = vendors.request(dialect, "opaque-20000+thinks-500+seals-lost-1+steps-3")
            answer = await wire.ask(dialect, body)
            found += vendors.said(dialect, answer).opaque
            usage = server.requests[-1].usage
            assert usage is not None
            assert usage.reasoning_tokens == 500
            assert usage.output_tokens > 500
        assert len({*found}) == 2
        assert all(19_900 < len(text) < 20_100 for text in found)
        vendors.follow(dialect, body, answer, "ok")
        assert "nvalid" in await wire.refused(dialect, body)
        await wire.ask(dialect, body)
        # Too low a limit leaves thinking alone.
        limit = "max_output_tokens" if dialect == "responses" else "max_tokens"
        cut = vendors.request(dialect, "thinks-500+steps-3", **{limit: 400})
        answer = await wire.ask(dialect, cut)
        usage = server.requests[-1].usage
        assert usage is not None
        assert (usage.output_tokens, usage.reasoning_tokens) == (400, 400)
        assert vendors.said(dialect, answer).calls == []

    run(test)


def test_no_thinking_where_none_is_asked_for() -> None:
    """Effort none, or thinking disabled: no opaque items.

    Redacted, or left out: nothing to read.
    """

    async def test(_: ModelServer, wire: Wire) -> None:
        plain = vendors.request("responses", "steps-2", reasoning={"effort": "none"})
        assert [i["type"] for i in (await wire.ask("responses", plain))["output"]] == [
            "function_call"
        ]
        shown = vendors.request("responses", "steps-2", reasoning={"summary": "auto"})
        answer = await wire.ask("responses", shown)
        assert answer["output"][0]["summary"][0]["text"]
        vendors.follow("responses", shown, answer, "ok")
        await wire.ask("responses", shown)

        older = vendors.request("messages", "claude-haiku-4-5+steps-2")
        assert (await wire.ask("messages", older))["content"][0]["type"] == "tool_use"
        off = vendors.request("messages", "steps-2", thinking={"type": "disabled"})
        assert [b["type"] for b in (await wire.ask("messages", off))["content"]] == ["tool_use"]
        for model, more, kind in (
            ("redacted+steps-2", {}, "redacted_thinking"),
            ("steps-2", {"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking"),
        ):
            body = vendors.request("messages", model, **more)
            answer = await wire.ask("messages", body)
            block = answer["content"][0]
            assert block["type"] == kind
            assert block.get("thinking", "") == ""
            vendors.follow("messages", body, answer, "ok")
            await wire.ask("messages", body)

    run(test)


def test_a_turn_that_pauses_goes_on_when_it_is_sent_back() -> None:
    """`pause_turn` is the one answer that a conversation may end with."""

    async def test(_: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "claude-haiku-5-5+pause+steps-1")
        answer = await wire.ask("messages", body)
        assert answer["stop_reason"] == "pause_turn"
        vendors.follow("messages", body, answer, "")
        assert (await wire.ask("messages", body))["stop_reason"] == "end_turn"

    run(test)


def test_texts_of_the_user_that_share_a_turn_are_heard_one_by_one() -> None:
    """Messages wants turns by turns:
    a summary behind the prompt starts no other conversation, and a judge is known.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "steps-5")
        await _lead(wire, "messages", body, 2)
        asked = {"type": "text", "text": "Too long. Answer with the summary only."}
        body["messages"][-1]["content"].append(asked)
        assert "work so far" in vendors.said("messages", await wire.ask("messages", body)).text
        short = vendors.request("messages", "steps-5")
        texts = ("go", "Summary of the work so far: two steps.")
        short["messages"][0]["content"] = [{"type": "text", "text": text} for text in texts]
        answer = await wire.ask("messages", short)
        assert vendors.said("messages", answer).calls == [("shell", {"command": "echo step 3"})]
        judged = vendors.request("messages", "steps-5", system="You judge whether it is done.")
        del judged["tools"]
        await wire.ask("messages", judged)
        purposes = [e.purpose for e in server.requests]
        assert purposes == ["agent", "agent", "compaction", "agent", "judge"]

    run(test)


def test_stop_sequences_are_named() -> None:
    """Messages says which sequence ended an answer."""

    async def test(_: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "bash-block", stop_sequences=["never", "\n```\n"])
        answer = await wire.ask("messages", body)
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "\n```\n")
        assert answer["content"][-1]["text"].endswith("hello.txt")

    run(test)


def test_accounts() -> None:
    """Each key has an account of its own, or the one it is given;
    answers and log name it, and never the key.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        named = {}
        for dialect in DIALECTS:
            for key in ("sk-one", "sk-two", "sk-three"):
                _, _, headers = await wire.post(dialect, vendors.request(dialect, "steps-1"), key)
                of = "anthropic" if dialect == "messages" else "openai"
                name = headers[
                    "anthropic-organization-id" if of == "anthropic" else "openai-organization"
                ]
                assert server.requests[-1].account == name
                assert named.setdefault(key, name) == name
        assert named["sk-two"] == named["sk-three"] == "org-shared"
        assert "one" not in named["sk-one"]
        body = vendors.request("messages", "steps-3")
        await _lead(wire, "messages", body, 1)
        await wire.refused("messages", body, "sk-two")
        async with wire.session.post(
            f"{wire.base_url}/messages", json=body, headers={"x-api-key": "sk-x", **vendors.VERSION}
        ) as reply:
            assert reply.status == 200

    run(test, ServerSettings(accounts={"sk-two": "org-shared", "sk-three": "org-shared"}))


def test_models_in_both_vendors_shapes() -> None:
    """Each vendor's client lists the models, with the day on which one ends;
    what is not listed is not there.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        async with (
            vendors.openai_at(server.base_url) as ours,
            vendors.anthropic_at(server.base_url) as theirs,
        ):
            everything = {m.id: m async for m in ours.models.list()}
            assert everything["gpt-5-mini"].shutdown_date == "2026-12-11"
            assert {"demo", "steps-3", "claude-haiku-5-5"} < everything.keys()
            server.control(
                models={"steps-2": "2099-01-01", "gpt-6-luna": "", "claude-haiku-5-5": ""}
            )
            listed = {m.id: m async for m in ours.models.list()}
            assert listed["gpt-6-luna"].shutdown_date is None
            assert listed["steps-2"].shutdown_date == "2099-01-01"
            assert "steps-3" not in listed
            infos = {m.id: m async for m in theirs.models.list()}
            assert infos["claude-haiku-5-5"].lifecycle == "active"
            assert infos["steps-2"].lifecycle == "deprecated"
            assert infos["steps-2"].retires_at is not None
            assert infos["steps-2"].retires_at.year == 2099
        for dialect in DIALECTS:
            status, answer, _ = await wire.post(dialect, vendors.request(dialect, "steps-3"))
            assert status == 404
            assert json.loads(answer)["error"]["message"]
            await wire.ask(dialect, vendors.request(dialect, "steps-2"))

    run(test)


def test_limits_in_both_vendors_headers() -> None:
    """OpenAI says how long, Anthropic until when; the cache does not use up Anthropic's tokens."""

    async def test(server: ModelServer, wire: Wire) -> None:
        openais, anthropics = "x-ratelimit-", "anthropic-ratelimit-"
        _, _, headers = await wire.post("responses", vendors.request("responses", "steps-1"))
        assert headers[f"{openais}remaining-requests"] == "9"
        assert headers[f"{openais}reset-requests"].endswith("s")
        assert int(headers[f"{openais}remaining-tokens"]) < 100_000
        body = vendors.request("messages", "steps-1", LONG, cache_control={"type": "ephemeral"})
        left = []
        for _ in range(2):
            _, _, headers = await wire.post("messages", body)
            assert headers[f"{anthropics}requests-limit"] == "10"
            assert datetime.fromisoformat(headers[f"{anthropics}requests-reset"]).tzinfo
            left.append(int(headers[f"{anthropics}input-tokens-remaining"]))
            assert headers[f"{anthropics}tokens-remaining"] == str(left[-1])
        assert left[0] < 95_000
        assert left[0] - left[1] < 100
        server.control(rps=0.0001, burst=1)
        for dialect in ("messages", "responses"):
            await wire.post(dialect, vendors.request(dialect, "steps-1"))
            status, answer, headers = await wire.post(dialect, vendors.request(dialect, "steps-1"))
            assert status == 429
            assert headers["Retry-After"] == "1"
        assert json.loads(answer)["error"]["code"] == "rate_limit_exceeded"

    run(test, ServerSettings(rps=0.0001, burst=10, tps=0.0001, token_burst=100_000))


def test_recordings_and_judges_in_every_dialect() -> None:
    """A recording is replayed by its prompt and turn,
    and a judge is known by what binds its answer.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        heard = []
        for dialect in DIALECTS:
            body = vendors.request(dialect, "demo", "Say one, then two.")
            turns = []
            for _ in range(2):
                answer = await wire.ask(dialect, body)
                turns.append(vendors.said(dialect, answer))
                vendors.follow(dialect, body, answer, "1")
            heard.append([(s.text, s.calls) for s in turns])
            assert server.requests[-2].usage is not None
            assert server.requests[-2].usage.output_tokens == 11
            schema = {
                "type": "object",
                "properties": {"done": {"type": "boolean"}},
                "required": ["done"],
                "additionalProperties": False,
            }
            bound: dict[str, Any] = {
                "chat": {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "v", "schema": schema},
                    }
                },
                "responses": {
                    "text": {
                        "format": {
                            "type": "json_schema",
                            "name": "v",
                            "schema": schema,
                            "strict": True,
                        }
                    }
                },
                "messages": {
                    "output_config": {"format": {"type": "json_schema", "schema": schema}}
                },
            }[dialect]
            asked = vendors.request(dialect, "demo", "# The task\nSay one, then two.", **bound)
            del asked["tools"]
            verdict = vendors.said(dialect, await wire.ask(dialect, asked)).text
            assert json.loads(verdict) == {"done": False, "feedback": "no"}
            assert server.requests[-1].purpose == "judge"
        assert heard == [heard[0]] * 3
        assert heard[0] == [("", [("shell", {"command": "echo 1"})]), ("two", [])]

    one = ToolCall("call_0", "shell", '{"command": "echo 1"}')
    answers = (
        Answer(
            content="",
            tool_calls=(one,),
            finish_reason="tool_calls",
            usage=Usage(output_tokens=11, reasoning_tokens=4),
        ),
        Answer(content="two"),
    )
    recording = Recording(
        first_prompt="Say one, then two.",
        model="real",
        answers=answers,
        judge=(RecordedVerdict(done=False, feedback="no", after=2),),
    )
    run(test, recorded=(recording,))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_cliff_is_over_the_whole_request(dialect: str) -> None:
    """Beyond it, input and output cost more, all of it."""
    names = {"chat": "gpt-5.6-sol", "responses": "gpt-6.1-terra", "messages": "claude-haiku-5-5"}
    family = families.FAMILIES[names[dialect]]
    prices = family.prices
    assert prices is not None
    for tokens, dear in ((prices.cliff, 1.0), (prices.cliff + 1, float(prices.cliff_input))):
        usage = Usage(input_tokens=tokens, output_tokens=0)
        expected = tokens * float(prices.input) * dear / 1e6
        assert prices.cost(usage, 0, "default") == pytest.approx(expected)
        written = Usage(input_tokens=tokens, cache_write_tokens=tokens)
        expected = tokens * float(prices.long_write) * dear / 1e6
        assert prices.cost(written, tokens, "default") == pytest.approx(expected)
