from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from replacing import replace
from vendors import check_request

from batchd import events
from batchd.agent import prompts
from batchd.agent.answers import masked
from batchd.config import providers
from batchd.llm import exchange
from batchd.llm.dialect import ModelRequest, ModelTarget, repaired
from batchd.llm.failures import CallPlace, http_failure
from batchd.llm.model_client import DIALECTS
from batchd.masking import Masker
from batchd.records import (
    APIS,
    EFFORTS,
    PATHS,
    Answer,
    AskedEffort,
    Endpoint,
    Failure,
    FailureKind,
    Message,
    ModelSetup,
    Replay,
    ToolCall,
)

ENDPOINT = Endpoint(base_url="https://api.example.com/v1", api_key="k" * 20)
SYSTEM, FIRST = Message("system", "You work."), Message("user", "Count to three.")
ASK = ModelRequest(
    messages=(SYSTEM, FIRST),
    tools=prompts.TOOLS,
    max_output_tokens=900,
    cache_key="batch/001",
)
#: With odd spaces, an unknown key and escapes: what a decoder would not write again.
REASONING = b'{"id":"rs_1", "type":"reasoning","summary":[],"encrypted_content":"gAA\\u0041=="}'
SPOKEN = (
    b'{"type":"message","id":"msg_1","status":"completed","role":"assistant",  "phase":"commentary",'
    b'"content":[{"type":"output_text","text":"Now.","annotations":[],"logprobs":[]}]}'
)
CALLED = (
    b'{"type":"function_call","id":"fc_1","call_id":"call_1","name":"shell","arguments":"{\\"command\\": \\"ls\\"}",'
    b'"status":"completed"}'
)
CALLED_TOO = CALLED.replace(b"_1", b"_2")
THINKING = b'{"type":"thinking","thinking":"","signature":"c2ln\\u0041=="}'
REDACTED = b'{"type":"redacted_thinking", "data":"c2ln"}'
TEXT = b'{"type":"text","text":"Now."}'
USED = b'{"type":"tool_use","id":"toolu_1","name":"shell","input":{"command":  "ls"}}'
USED_TOO = USED.replace(b"_1", b"_2")


def _setup(api: str, **more: Any) -> ModelSetup:
    return ModelSetup(name="p/m-1", api=api, **more)


def _target(api: str, account: str = "") -> ModelTarget:
    return ModelTarget.of(_setup(api), "api.example.com", account)


def _body(api: str, request: ModelRequest, **more: Any) -> bytes:
    """Return a request's body, held to the vendor's own types."""
    setup = _setup(api, **more)
    sent = exchange.fields(DIALECTS[api], setup, _target(api), request)
    body = exchange.encoded(sent)
    check_request(api, body)
    return body


def _sent(api: str, request: ModelRequest = ASK, **more: Any) -> dict[str, Any]:
    sent: dict[str, Any] = json.loads(_body(api, request, **more))
    return sent


def _decoded(
    api: str, body: dict[str, Any], *items: bytes, request: ModelRequest = ASK
) -> Answer | Failure:
    place = CallPlace(_setup(api), ENDPOINT)
    key = b"output" if api == "responses" else b"content"
    inside = json.dumps(body).encode()[1:-1]
    whole = b'{"%b":[%b]%b}' % (key, b", ".join(items), b"," + inside if inside else b"")
    return DIALECTS[api].decode(place, _target(api), whole, request, 1.0)


def _answer(api: str, body: dict[str, Any], *items: bytes, request: ModelRequest = ASK) -> Answer:
    answer = _decoded(api, body, *items, request=request)
    assert isinstance(answer, Answer), answer
    return answer


def _said(answer: Answer) -> Message:
    return Message("assistant", answer.content, answer.tool_calls, replay=answer.replay)


NO_TOOLS = (
    "Function tools with reasoning_effort are not supported for gpt-6 in /v1/chat/completions. "
    "Please use /v1/responses instead"
)
RESPONSE = {
    "status": "completed",
    "model": "m-1",
    "usage": {
        "input_tokens": 1000,
        "input_tokens_details": {
            "cached_tokens": 700,
            "cache_write_tokens": 200,
            "cache_write_tokens_details": {"ttl_30m_tokens": 150, "ttl_12h_tokens": 50},
        },
        "output_tokens": 60,
        "output_tokens_details": {"reasoning_tokens": 40},
    },
}
MESSAGE = {
    "stop_reason": "tool_use",
    "model": "m-1",
    "usage": {
        "input_tokens": 100,
        "cache_creation_input_tokens": 200,
        "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
        "cache_read_input_tokens": 700,
        "output_tokens": 60,
        "output_tokens_details": {"thinking_tokens": 40},
    },
}
TURNS = {
    "responses": (RESPONSE, (REASONING, SPOKEN, CALLED, CALLED_TOO)),
    "messages": (MESSAGE, (THINKING, REDACTED, TEXT, USED, USED_TOO)),
}


def test_the_configuration_names_the_dialects_that_there_are() -> None:
    """A dialect is a file and a row; its name and the efforts are what users may write."""
    assert tuple(DIALECTS) == tuple(PATHS) == APIS
    assert providers.AskedApi.__args__ == ("", *APIS)
    assert AskedEffort.__args__ == ("", *EFFORTS)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("effort", ["", *EFFORTS])
def test_requests_are_what_the_vendors_types_say(api: str, effort: str) -> None:
    """A whole conversation, native and in text, with a judge's schema, at every effort."""
    messages = (
        SYSTEM,
        FIRST,
        Message("assistant", "", (ToolCall("c1", "shell", '{"a": 1}'), ToolCall("c2", "x", '{"b'))),
        Message("tool", "", tool_call_id="c1"),
        Message("tool", "out", tool_call_id="c2"),
        Message("user", "Not done."),
        Message("assistant", ""),
        Message("user", " "),
        Message("assistant", "```bash\nls\n``` "),
        Message("tool", "in text"),
    )
    request = replace(ASK, messages=messages, stop=() if api == "responses" else ("\n```\n",))
    _body(api, request, effort=effort)
    _body(api, replace(request, tools=(), schema=prompts.JUDGE_SCHEMA), effort=effort)


@pytest.mark.parametrize("api", TURNS)
def test_items_go_back_byte_for_byte_and_to_their_maker_alone(api: str) -> None:
    """Through the journal too; another dialect, provider,
    model, account or server gets neutral text and calls.
    """
    body, items = TURNS[api]
    answer = _answer(api, body, *items)
    assert answer.replay is not None
    event = events.CallAnswered(at=1.0, purpose=events.Purpose.AGENT, answer=answer)
    again = events.decode(events.encode(event))
    assert isinstance(again, events.CallAnswered)
    answer = again.answer
    assert answer.replay is not None
    assert tuple(map(bytes, answer.replay.items)) == items
    replies = [Message("tool", "x", tool_call_id=c.id) for c in answer.tool_calls]
    request = replace(ASK, messages=(SYSTEM, FIRST, _said(answer), *replies))
    setup = _setup(api)
    home = replace(_target(api), account="org-1")
    mine = replace(answer.replay, account="org-1")
    said = replace(_said(answer), replay=mine)
    request = replace(request, messages=(SYSTEM, FIRST, said, *replies))
    target_and_back = [
        (home, True),
        (replace(home, account=""), True),
        (replace(home, account="org-2"), False),
        (replace(home, model="m-2"), False),
        (replace(home, provider="q"), False),
        (replace(home, host="other"), False),
        (replace(home, api="chat"), False),
    ]
    for target, back in target_and_back:
        sent = exchange.encoded(exchange.fields(DIALECTS[api], setup, target, request))
        check_request(api, sent)
        assert (b",".join(items) in sent) is back
        if not back:
            assert not any(opaque in sent for opaque in (REASONING, THINKING, REDACTED))
    chat = exchange.encoded(exchange.fields(DIALECTS["chat"], setup, home, request))
    check_request("chat", chat)


@pytest.mark.parametrize("api", TURNS)
def test_an_answer_is_read_whole(api: str) -> None:
    """Texts, parallel calls and tokens:
    the input with what the cache gave and took, its long writes apart.
    """
    body, items = TURNS[api]
    answer = _answer(api, body, *items)
    assert (answer.content, answer.finish_reason) == ("Now.", "tool_calls")
    assert [(c.name, c.given()) for c in answer.tool_calls] == [("shell", {"command": "ls"})] * 2
    usage = answer.usage
    assert (usage.input_tokens, usage.cached_input_tokens) == (1000, 700)
    assert (usage.cache_write_tokens, usage.cache_write_long_tokens) == (200, 50)
    assert (usage.output_tokens, usage.reasoning_tokens, usage.estimated) == (60, 40, False)
    assert answer.replay is not None
    assert answer.replay.thinking_tokens == 40


def test_a_responses_request_is_stateless_and_starts_with_its_system_prompt() -> None:
    """Nothing is kept at the provider's, tools are not strict, and the key of the cache fits."""
    sent = _sent("responses", replace(ASK, cache_key="b" * 90 + "/001"), effort="low")
    assert sent["store"] is False
    assert sent["include"] == ["reasoning.encrypted_content"]
    assert sent["input"][0] == {"role": "developer", "content": "You work."}
    assert not any(tool["strict"] for tool in sent["tools"])
    assert len(sent["prompt_cache_key"]) == 64
    assert sent["reasoning"] == {"effort": "low"}
    assert sent.keys().isdisjoint({"stop", "instructions", "max_tokens"})
    other = _sent("responses", replace(ASK, cache_key="b" * 90 + "/002"))
    assert other["prompt_cache_key"] != sent["prompt_cache_key"]


@pytest.mark.parametrize(
    ("body", "items", "finish", "content"),
    [
        ({"status": "completed"}, (SPOKEN,), "stop", "Now."),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            (REASONING,),
            "length",
            "",
        ),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            (),
            "content_filter",
            "",
        ),
        (
            {"status": "completed"},
            (SPOKEN.replace(b'"output_text","text"', b'"refusal","refusal"'),),
            "content_filter",
            "",
        ),
    ],
)
def test_a_response_says_how_it_ended(
    body: dict[str, Any], items: tuple[bytes, ...], finish: str, content: str
) -> None:
    """Its status comes before its content; a refusal is neither an answer nor a verdict."""
    answer = _answer("responses", body, *items)
    assert (answer.finish_reason, answer.content) == (finish, content)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"status": "failed", "error": {"code": "server_error"}}, FailureKind.OVERLOADED),
        ({"status": "failed", "error": {"code": "rate_limit_exceeded"}}, FailureKind.RATE_LIMITED),
        ({"status": "failed", "error": {"code": "bio_policy"}}, FailureKind.CONTENT_FILTER),
        ({"status": "failed", "error": {"code": "invalid_prompt"}}, FailureKind.CONTENT_FILTER),
        (
            {"status": "failed", "error": {"code": "misalignment_policy_violation"}},
            FailureKind.CONTENT_FILTER,
        ),
        ({"status": "failed", "error": {"code": "novel"}}, FailureKind.BAD_ANSWER),
        ({"status": "failed"}, FailureKind.BAD_ANSWER),
        ({"status": "cancelled"}, FailureKind.BAD_ANSWER),
        ({"status": "in_progress"}, FailureKind.BAD_ANSWER),
        ({}, FailureKind.BAD_ANSWER),
    ],
)
def test_a_response_with_status_200_may_have_failed(
    body: dict[str, Any], kind: FailureKind
) -> None:
    """What failed is a failure by its code, whatever stands in its output."""
    failure = _decoded("responses", body, SPOKEN)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.http_status) == (kind, 200)


def test_a_call_that_was_cut_off_does_not_run() -> None:
    """Its arguments may be half, and in order all the same;
    and what has half a call does not go back as it came.
    """
    half = CALLED.replace(b'"completed"', b'"incomplete"')
    why = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    for answer in (
        _answer("responses", why, REASONING, half),
        _answer("messages", {"stop_reason": "max_tokens"}, THINKING, USED),
    ):
        assert answer.finish_reason == "length"
        with pytest.raises(ValueError, match="line 1"):
            json.loads(answer.tool_calls[0].arguments)
        assert answer.replay is None


def test_what_a_model_said_elsewhere_goes_as_a_typed_message() -> None:
    """What it said over another dialect, or in the text protocol,
    has no items of its own; llama.cpp's server wants its type.
    """
    said = Message("assistant", "Done.")
    messages = (Message("user", "Do it."), said, Message("user", "Again."))
    request = replace(ASK, messages=messages)
    _, answer, _ = _sent("responses", request)["input"]
    assert (answer["type"], answer["role"], answer["content"]) == ("message", "assistant", "Done.")


def test_a_response_is_cut_where_it_should_have_stopped() -> None:
    """The API has no `stop`: what stands behind the first block is paid,
    and not part of the conversation.
    """
    text = "Look.\n```bash\nls\n```\ninvented output"
    item = SPOKEN.replace(b'"Now."', json.dumps(text).encode())
    answer = _answer(
        "responses", {"status": "completed"}, item, request=replace(ASK, stop=prompts.TEXT_STOP)
    )
    assert answer.content == "Look.\n```bash\nls"
    assert answer.replay is None


def test_items_that_the_provider_left_out_are_reported() -> None:
    """It answers 200: this is the only sign."""
    removed = [
        {"id": "rs_1", "action": "removed", "type": "reasoning", "reason": "prefix_mismatch"}
    ]
    answer = _answer("responses", {**RESPONSE, "input_transformations": removed}, SPOKEN)
    assert answer.removed == ("prefix_mismatch",)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("pause_turn", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
    ],
)
def test_a_message_says_why_it_stopped(reason: str, finish: str) -> None:
    """Every reason that there is; a full window is known from then on."""
    details = {"type": "refusal", "category": "cyber", "explanation": "no"}
    answer = _answer("messages", {"stop_reason": reason, "stop_details": details}, TEXT)
    assert answer.finish_reason == finish
    assert answer.window_full == (reason == "model_context_window_exceeded")
    refused = reason == "refusal"
    assert (answer.content, answer.refusal) == (("", "cyber: no") if refused else ("Now.", ""))


def test_turns_of_messages_alternate_and_results_come_first_and_complete() -> None:
    """All results of a turn stand in the one message behind it, in front of any text."""
    calls = (ToolCall("c1", "shell", "{}"), ToolCall("c2", "shell", "{}"))
    messages = (
        SYSTEM,
        FIRST,
        Message("user", "And more."),
        Message("assistant", "Now.", calls),
        Message("tool", "one", tool_call_id="c1"),
        Message("tool", "two", tool_call_id="c2"),
        Message("user", "Not done."),
    )
    turns = _sent("messages", replace(ASK, messages=messages))["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert [b["type"] for b in turns[2]["content"]] == ["tool_result", "tool_result", "text"]


def test_breakpoints_are_where_this_request_ends_and_the_one_before_did() -> None:
    """At most four, however long a conversation is;
    beside them no byte of what was sent changes.
    """
    conversation = [SYSTEM, FIRST]
    before: list[Any] = []
    for step in range(25):
        sent = _sent("messages", replace(ASK, messages=tuple(conversation)))
        blocks = [*sent["system"], *(b for m in sent["messages"] for b in m["content"])]
        marked = [i for i, block in enumerate(blocks) if block.pop("cache_control", None)]
        assert len(marked) <= 4
        assert marked[0] == 0
        assert marked[-1] == len(blocks) - 1
        if before:
            assert len(before) - 1 in marked
            assert blocks[: len(before)] == before
        before = blocks
        calls = tuple(ToolCall(f"c{step}-{i}", "shell", "{}") for i in range(1 + step))
        conversation.append(Message("assistant", "", calls))
        conversation += [Message("tool", "x", tool_call_id=c.id) for c in calls]
    assert "cache_control" not in json.dumps(_sent("messages", replace(ASK, cache_key="")))


def _refused(
    api: str, status: int, message: str, request: ModelRequest = ASK, **more: Any
) -> Failure:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
    setup = _setup(api, **more)
    failure = http_failure(CallPlace(setup, ENDPOINT), status, {}, body)
    sent = exchange.fields(DIALECTS[api], setup, _target(api), request)
    return repaired(failure, DIALECTS[api], request, sent, body)


@pytest.mark.parametrize(
    ("api", "more", "message", "lesson"),
    [
        (
            "chat",
            {"extra_body": {"temperature": 0.2}},
            "Unsupported value: 'temperature' does not support 0.2 with this model.",
            "field:temperature",
        ),
        (
            "chat",
            {"output_limit_field": "max_tokens"},
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "name:max_tokens",
        ),
        (
            "chat",
            {"effort": "xhigh"},
            "Unsupported value: 'reasoning_effort' does not support 'xhigh' with this model.",
            "effort:xhigh",
        ),
        (
            "chat",
            {"effort": "low"},
            "Unrecognized request argument supplied: reasoning_effort",
            "field:reasoning_effort",
        ),
        (
            "chat",
            {},
            f"{NO_TOOLS} or set reasoning_effort to 'none'.",
            "effort with tools",
        ),
        (
            "responses",
            {"effort": "none"},
            "Unsupported value: 'reasoning.effort' does not support 'none' with this model.",
            "effort:none",
        ),
        (
            "messages",
            {"effort": "none"},
            '"thinking.type.disabled" is not supported for this model.',
            "effort:none",
        ),
        (
            "messages",
            {"effort": "max"},
            "output_config.effort: Extra inputs are not permitted",
            "field:output_config.effort",
        ),
        (
            "messages",
            {"effort": "high"},
            "This model does not support the effort parameter.",
            "field:output_config.effort",
        ),
        (
            "chat",
            {"effort": "high"},
            "Model grok-4 does not support parameter reasoningEffort.",
            "field:reasoning_effort",
        ),
        (
            "chat",
            {"effort": "high"},
            '"gemma3:4b" does not support thinking',
            "field:reasoning_effort",
        ),
        (
            "chat",
            {"extra_body": {"parallel_tool_calls": False}},
            "Unsupported parameter: 'parallel_tool_calls' is not supported with this model.",
            "field:parallel_tool_calls",
        ),
        (
            "messages",
            {"extra_body": {"top_k": 3}},
            "`top_k` is deprecated for this model.",
            "field:top_k",
        ),
    ],
)
def test_what_can_be_spared_is_left_out_of_the_next_request(
    api: str, more: dict[str, Any], message: str, lesson: str
) -> None:
    """The error names it; the same request without it is another one,
    and is refused for good if that is no help.
    """
    failure = _refused(api, 400, message, **more)
    assert (failure.kind, failure.refuses) == (FailureKind.SPARED, lesson)
    again = replace(ASK, spared=frozenset({lesson}))
    setup, target, dialect = _setup(api, **more), _target(api), DIALECTS[api]
    changed = exchange.fields(dialect, setup, target, again)
    assert changed != exchange.fields(dialect, setup, target, ASK)
    twice = _refused(api, 400, message, again, **more)
    assert twice.refuses != lesson
    assert twice.kind in {FailureKind.BAD_REQUEST, FailureKind.UNFIT, FailureKind.SPARED}


def test_only_what_is_listed_is_ever_spared() -> None:
    """Not the model, the tier, the messages, nor what was never sent."""
    for message in (
        "Unsupported parameter: 'service_tier'",
        "'messages' is not supported",
        "Unsupported value: 'temperature'",
        "Invalid value for 'stop'.",
    ):
        request = replace(ASK, service_tier="flex", stop=("x",))
        assert _refused("chat", 400, message, request).kind is FailureKind.BAD_REQUEST


def test_a_model_that_takes_no_tools_is_recognised() -> None:
    """It is the model's own: no other call to it would fare better."""
    for message in (
        f"{NO_TOOLS}.",
        "registry.ollama.ai/library/gemma does not support tools",
        "No endpoints found that support tool use.",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    ):
        failure = _refused("chat", 400, message)
        assert (failure.kind, failure.of_model) == (FailureKind.UNFIT, True)
    assert _refused("chat", 400, message, replace(ASK, tools=())).kind is FailureKind.BAD_REQUEST


@pytest.mark.parametrize(
    ("api", "message"),
    [
        ("responses", "The encrypted content gAAA could not be verified."),
        (
            "responses",
            "Item 'rs_1' of type 'reasoning' was provided without its required following item.",
        ),
        (
            "responses",
            "Item 'fc_1' of type 'function_call' was provided without its required 'reasoning' item: 'rs_1'.",
        ),
        (
            "responses",
            "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false.",
        ),
        ("messages", "messages.1.content.0: Invalid `signature` in `thinking` block"),
        (
            "messages",
            "Invalid `signature` in `thinking` block. The block is bound to a different conversation.",
        ),
    ],
)
def test_a_refused_replay_can_be_repaired_once(api: str, message: str) -> None:
    """Without the items the request is another one; a second refusal is a bad request."""
    body, items = TURNS[api]
    request = replace(ASK, messages=(SYSTEM, FIRST, _said(_answer(api, body, *items))))
    for status in (400, 404):
        assert _refused(api, status, message, request).kind is FailureKind.REPLAY
    assert _refused(api, 400, message, request.without_items()).kind is FailureKind.BAD_REQUEST


@pytest.mark.parametrize("api", TURNS)
def test_a_secret_in_an_answer_takes_its_items_with_it(api: str) -> None:
    """Also one that stands in the items alone, or is written with escapes there."""
    body, items = TURNS[api]
    answer = _answer(api, body, *items)
    assert masked(answer, Masker(["another secret"])) is answer
    hidden = masked(answer, Masker([{"responses": "gAAA==", "messages": "c2lnA=="}[api]]))
    assert isinstance(hidden, Answer)
    assert (hidden.replay, hidden.masked, hidden.content) == (None, True, "Now.")
    spoken = replace(answer, content="say it: hunter2hunter2")
    hidden = masked(spoken, Masker(["hunter2hunter2"]))
    assert isinstance(hidden, Answer)
    assert (hidden.replay, hidden.masked) == (None, True)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {"code": "credit_balance_exhausted"}, FailureKind.QUOTA),
        (429, {"code": "organization_spend_limit_exceeded"}, FailureKind.QUOTA),
        (429, {"code": "project_spend_limit_exceeded"}, FailureKind.QUOTA),
        (429, {"code": "organization_usage_limit_exceeded"}, FailureKind.QUOTA),
        (429, {"code": "slow_down"}, FailureKind.RATE_LIMITED),
        (503, {"code": "server_is_overloaded"}, FailureKind.OVERLOADED),
        (
            429,
            {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}},
            FailureKind.QUOTA,
        ),
        (
            429,
            {"type": "rate_limit_error", "details": {"error_code": "contract_spend_limit_reached"}},
            FailureKind.QUOTA,
        ),
        (
            429,
            {"type": "rate_limit_error", "details": {"error_code": "ramp_limit_exceeded"}},
            FailureKind.RATE_LIMITED,
        ),
        (
            400,
            {"message": "You have reached your specified workspace API usage limits."},
            FailureKind.QUOTA,
        ),
        (400, {"message": "Your credit balance is too low to access the API."}, FailureKind.QUOTA),
        (400, {"details": {"error_code": "organization_on_hold"}}, FailureKind.AUTH),
        (402, {"details": {"error_code": "linked_organization_unpaid"}}, FailureKind.QUOTA),
        (529, {"type": "overloaded_error"}, FailureKind.OVERLOADED),
        (409, {"type": "conflict_error"}, FailureKind.OVERLOADED),
        (504, {"type": "timeout_error"}, FailureKind.TIMEOUT),
        (413, {"type": "request_too_large"}, FailureKind.CONTEXT_OVERFLOW),
        (
            400,
            {"message": "Your input exceeds the context window of this model."},
            FailureKind.CONTEXT_OVERFLOW,
        ),
        (400, {"code": "invalid_prompt"}, FailureKind.CONTENT_FILTER),
    ],
)
def test_the_vendors_codes_are_known(status: int, error: dict[str, Any], kind: FailureKind) -> None:
    """What no wait cures is distinguished from what passes."""
    body = json.dumps({"type": "error", "error": error}).encode()
    assert http_failure(CallPlace(_setup("messages"), ENDPOINT), status, {}, body).kind is kind


def test_old_journals_fold_as_chat() -> None:
    """What was written before there were dialects names none, and has no items."""
    setup = msgspec.json.decode(b'{"name":"openai/gpt-5-mini"}', type=ModelSetup)
    assert (setup.api, setup.effort) == ("chat", "")
    answer = msgspec.json.decode(b'{"content":"x"}', type=Answer)
    assert answer.replay is None
    assert isinstance(TURNS, dict)
    assert Replay(api="chat", provider="p", model="m").items == ()
