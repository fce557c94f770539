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
import pytest
import vendors
from patience import PATIENCE_S
from standin import faults, scripts
from standin.server import ModelServer
from standin.settings import ServerSettings
from vendors import Wire

from batchd.demo.recordings import RecordedVerdict, Recording
from batchd.records import Answer, ToolCall, Usage

DIALECTS = ("chat", "responses", "messages")
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
            elif fault != "llama-overflow":
                vendors.check_error(answer)
            waits = {"rate-limit", "429", "token-limit", "day-limit"}
            assert ("Retry-After" in headers) == (fault in waits)
            assert vendors.said(dialect, await wire.ask(dialect, body)).text == "Done."

    run(test)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_answers_that_are_none_in_every_dialect(dialect: str) -> None:
    """Errors and nothing at all under status 200, as each dialect has them; none is counted."""

    async def test(server: ModelServer, wire: Wire) -> None:
        async def body(fault: str) -> Any:
            return json.loads((await wire.post(dialect, vendors.request(dialect, fault)))[1])

        assert (await body("error-200"))["error"]["message"]
        assert (await body("failed"))["error"]
        nothing = {"chat": "choices", "responses": "output", "messages": "content"}
        assert (await body("no-choices"))[nothing[dialect]] == []
        assert "usage" not in await body("no-usage")
        assert server.totals.usage.calls == 0

    run(test)


@pytest.mark.parametrize("script", sorted(scripts.TURNS))
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
    more = {"cache_control": {"type": "ephemeral"}} if dialect == "messages" else {}

    async def test(server: ModelServer, wire: Wire) -> None:
        body = vendors.request(dialect, f"{model}+parallel-2+steps-2", LONG, **more)
        answers = await _lead(wire, dialect, body, 4)
        assert vendors.said(dialect, answers[-1]).text == "Done."
        assert len(vendors.said(dialect, answers[0]).calls) == 3
        log = server.requests
        assert [e.turn for e in log] == [0, 1, 2, 3]
        assert {(e.dialect, e.model, e.tier_asked, e.status) for e in log} == {
            (dialect, f"{model}+parallel-2+steps-2", "default", 200)
        }
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
        (lambda b: b["input"].append({"type": "what"}), "Supported values are"),
        (lambda b: b.pop("model"), "Missing required parameter: 'model'"),
        (lambda b: b.update(max_output_tokens=1), "integer_below_min_value"),
        (lambda b: b["tools"][0].pop("strict"), "additionalProperties"),
        (lambda b: b.update(reasoning={"effort": "huge"}), "Supported values are"),
        (lambda b: b.update(service_tier="cheap"), "service_tier"),
        (lambda b: b.update(input=[]), "too short"),
    ],
)
def test_what_responses_refuses(edit: Edit, words: str) -> None:
    """Items that do not belong together, that were touched, and what its models do not take."""

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
        body = vendors.request("responses", "gpt-6.2-sol+steps-5")
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
            (lambda b: b["input"].append({"role": "developer", "content": "x"}), []),
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
        (lambda b: b.pop("tools"), "must define tools"),
        (lambda b: b["messages"][0].update(content=" "), "non-empty"),
        (lambda b: b["messages"][0].update(content=[]), "non-empty"),
        (_five, "A maximum of 4 blocks with cache_control may be provided. Found 5"),
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
    ],
)
def test_what_messages_refuses(edit: Edit, words: str) -> None:
    """Results missing or late, turns out of turn, touched or moved thinking,
    a fifth breakpoint, and what its models do not take.
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


def test_messages_wants_its_version() -> None:
    """In a header, and one that there is."""

    async def test(_: ModelServer, wire: Wire) -> None:
        body = vendors.request("messages", "steps-1")
        for version, expected in (("2023-06-01", 200), ("2020-01-01", 400)):
            status, _, _ = await wire.post("messages", body, **{"anthropic-version": version})
            assert status == expected
        async with wire.session.post(f"{wire.base_url}/messages", json=body) as reply:
            assert reply.status == 400
            assert "anthropic-version" in await reply.text()

    run(test)


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("gpt-6.2-sol", {}, "/v1/responses"),
        ("gpt-6.2-sol", {"tools": [], "reasoning_effort": "none"}, "Supported values"),
        ("gpt-6-luna", {"max_tokens": 99}, "max_completion_tokens"),
        ("gpt-6-luna", {"service_tier": "cheap"}, "service_tier"),
        ("steps-1", {"max_tokens": 99, "reasoning_effort": "none"}, ""),
    ],
)
def test_what_models_take_on_chat_completions(model: str, more: dict[str, Any], words: str) -> None:
    """Tools, efforts and the old limit: as each model has it."""

    async def test(_: ModelServer, wire: Wire) -> None:
        body = vendors.request("chat", model, **more)
        if words:
            assert words in await wire.refused("chat", body)
        else:
            await wire.ask("chat", body)

    run(test)


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
def test_what_chat_completions_refuses(messages: Any) -> None:
    """Conversations out of order."""

    async def test(server: ModelServer, wire: Wire) -> None:
        await wire.refused("chat", {"model": "steps-1", "messages": messages})
        assert server.totals.by_status == {400: 1}

    run(test)


def test_calls_without_their_thinking_are_refused_where_it_has_a_field() -> None:
    """As DeepSeek does."""

    async def test(_: ModelServer, wire: Wire) -> None:
        body = vendors.request("chat", "reasoning+steps-3")
        _, answer, _ = await wire.post("chat", body)
        vendors.follow("chat", body, json.loads(answer), "ok")
        assert (await wire.post("chat", body))[0] == 200
        body["messages"][1].pop("reasoning_content")
        assert "reasoning_content" in await wire.refused("chat", body)

    run(test)


async def _cached(
    wire: Wire, server: ModelServer, dialect: str, body: dict[str, Any]
) -> tuple[int, ...]:
    """Return what of a request is fresh, read, and written, by the log."""
    await wire.ask(dialect, body)
    usage = server.requests[-1].usage
    assert usage is not None
    fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    return fresh, usage.cached_input_tokens, usage.cache_write_tokens


def test_the_cache_of_responses() -> None:
    """From 1,024 tokens, up to the end of what is sent, by key, effort, tier and account."""

    async def test(server: ModelServer, wire: Wire) -> None:
        def body(prompt: str = LONG, **more: Any) -> dict[str, Any]:
            model = more.pop("model", "gpt-6-luna+steps-9")
            return vendors.request("responses", model, prompt, prompt_cache_key="a", **more)

        async def cached(of: dict[str, Any]) -> tuple[int, ...]:
            return await _cached(wire, server, "responses", of)

        first = body()
        fresh, read, size = await cached(first)
        assert (fresh, read) == (0, 0)
        assert size > 6000
        assert await cached(first) == (0, size, 0)
        # A second turn reads the first, and writes what is behind it: the answer and the output.
        await _lead(wire, "responses", first, 1)
        fresh, read, added = await cached(first)
        assert (fresh, read) == (0, size)
        assert added > 0
        for changed in (
            body(reasoning={"effort": "high"}),
            body(service_tier="flex"),
            {**body(), "prompt_cache_key": "b"},
            {**body(), "tools": []},
        ):
            assert (await cached(changed))[1] == 0
        await wire.ask("responses", body(), "sk-other")
        assert server.requests[-1].usage.cached_input_tokens == 0  # type: ignore[union-attr] # an answer
        for _ in range(2):
            assert (await cached(body("short")))[1:] == (0, 0)
        free = body(model="gpt-5-mini+steps-9")
        assert (await cached(free))[1:] == (0, 0)
        assert (await cached(free))[1] == size

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
    """By breakpoints, from a least length, twenty blocks back."""
    mark = {"cache_control": {"type": "ephemeral"}}

    async def test(server: ModelServer, wire: Wire) -> None:
        def body(**more: Any) -> dict[str, Any]:
            return vendors.request("messages", "claude-sonnet-5-5+steps-99", LONG, **more)

        async def cached(of: dict[str, Any]) -> tuple[int, ...]:
            return await _cached(wire, server, "messages", of)

        size, *rest = await cached(body())
        assert rest == [0, 0]
        assert await cached(body()) == (size, 0, 0)
        assert await cached(body(**mark)) == (0, 0, size)
        assert await cached(body(**mark)) == (0, size, 0)
        # What is written of a system prompt is read behind it, whatever else is asked.
        system = [{"type": "text", "text": LONG, **mark}]
        _, read, written = await cached(body(system=system))
        assert (read, written > 6000) == (0, True)
        other = vendors.request("messages", "claude-sonnet-5-5+steps-99", "x", system=system)
        assert (await cached(other))[1:] == (written, 0)
        # A breakpoint below the least length is none.
        medium = vendors.request("messages", "claude-haiku-5-5+steps-9", "word " * 700, **mark)
        assert (await cached(medium))[2] > 700
        medium["model"] = "claude-sonnet-5-5+steps-9"
        assert (await cached(medium))[1:] == (0, 0)
        # Twenty places back, and no further.
        for blocks, found in ((19, size), (20, 0)):
            far = body(**mark)
            first = {"type": "text", "text": LONG}
            far["messages"][0]["content"] = [first, *[{"type": "text", "text": "x"}] * blocks]
            far["model"] += f"+loop-{blocks}"
            near = body(**mark)
            near["model"] = far["model"]
            await cached(near)
            assert (await cached(far))[1] == found

    run(test)


@pytest.mark.parametrize("dialect", ["chat", "responses"])
def test_tiers(dialect: str) -> None:
    """Flex costs half and may be full, priority twice; the answer says which served."""

    async def test(server: ModelServer, wire: Wire) -> None:
        async def served(model: str, tier: str) -> tuple[str, float]:
            body = vendors.request(dialect, model, service_tier=tier)
            answer = await wire.ask(dialect, body)
            entry = server.requests[-1]
            assert answer["service_tier"] == entry.tier_asked
            assert entry.cost is not None
            return entry.tier_asked, entry.cost

        model = "gpt-6-luna+steps-1"
        tier, whole = await served(model, "default")
        assert tier == "default"
        assert (await served(model, "auto"))[0] == "default"
        assert await served(model, "flex") == ("flex", pytest.approx(whole / 2))
        for name in ("priority", "fast"):
            assert await served(model, name) == ("priority", pytest.approx(whole * 2))
        full = "flex-full-1+" + model
        await served(full, "default")
        status, answer, _ = await wire.post(
            dialect, vendors.request(dialect, full, service_tier="flex")
        )
        assert status == 429
        assert b"Resource Unavailable" in answer
        assert (await served(full, "flex"))[0] == "flex"

    run(test)


@pytest.mark.parametrize(
    ("dialect", "more"),
    [
        ("responses", {"reasoning": {"effort": "none"}}),
        ("messages", {"thinking": {"type": "disabled"}}),
    ],
)
def test_no_thinking_where_none_is_asked_for(dialect: str, more: dict[str, Any]) -> None:
    """Then nothing is sealed."""

    async def test(_: ModelServer, wire: Wire) -> None:
        answer = await wire.ask(dialect, vendors.request(dialect, "steps-2", **more))
        assert vendors.said(dialect, answer).opaque == []
        answer = await wire.ask(dialect, vendors.request(dialect, "steps-2"))
        assert len(vendors.said(dialect, answer).opaque) == 1

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
        body = vendors.request("messages", "chatter", stop_sequences=["never", " on, and"])
        answer = await wire.ask("messages", body)
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", " on, and")
        assert answer["content"][-1]["text"].endswith("and so")

    run(test)


def test_accounts_and_limits_stand_in_the_headers() -> None:
    """Each key has an account of its own; the headers name it, and never the key, and say of limits
    what each vendor says. The cache does not use up Anthropic's tokens.
    """

    async def test(server: ModelServer, wire: Wire) -> None:
        named = {}
        for dialect in DIALECTS:
            of = "anthropic-organization-id" if dialect == "messages" else "openai-organization"
            for key in ("sk-one", "sk-two"):
                _, _, headers = await wire.post(dialect, vendors.request(dialect, "steps-1"), key)
                assert named.setdefault(key, headers[of]) == headers[of]
        assert named["sk-one"] != named["sk-two"]
        assert "one" not in named["sk-one"]
        body = vendors.request("messages", "claude-sonnet-5-5+steps-1", LONG)
        body["cache_control"] = {"type": "ephemeral"}
        left = []
        for _ in range(2):
            _, _, headers = await wire.post("messages", body)
            assert headers["anthropic-ratelimit-requests-limit"] == "10"
            assert datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"]).tzinfo
            left.append(int(headers["anthropic-ratelimit-tokens-remaining"]))
        assert left[0] < 95_000
        assert left[0] - left[1] < 100
        _, _, headers = await wire.post("responses", vendors.request("responses", "steps-1"))
        assert headers["x-ratelimit-remaining-requests"] == "1"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
        server.control(rps=0.0001, burst=1)
        for dialect in ("messages", "responses"):
            status, _, headers = await wire.post(dialect, vendors.request(dialect, "steps-1"))
        assert (status, headers["Retry-After"]) == (429, "1")

    run(test, ServerSettings(rps=0.0001, burst=10, tps=0.0001, token_burst=100_000))


def test_models_in_both_vendors_shapes() -> None:
    """Each vendor's client lists the models, OpenAI's with the day on which one ends;
    what is not listed is not there.
    """

    async def test(_: ModelServer, wire: Wire) -> None:
        async with (
            vendors.openai_at(wire.base_url) as ours,
            vendors.anthropic_at(wire.base_url) as theirs,
        ):
            listed = {m.id: m async for m in ours.models.list()}
            assert listed["gpt-6-luna"].shutdown_date is None
            assert listed["steps-2"].shutdown_date == "2099-01-01"
            assert {m.id async for m in theirs.models.list()} == listed.keys()
        for dialect in DIALECTS:
            status, _, _ = await wire.post(dialect, vendors.request(dialect, "steps-3"))
            assert status == 404
            await wire.ask(dialect, vendors.request(dialect, "steps-2"))

    run(test, ServerSettings(models={"steps-2": "2099-01-01", "gpt-6-luna": ""}))


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
