"""What providers answer that is in no manual:
read as far as it goes, and never sent back as they would refuse it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from replacing import replace
from vendors import check_request

from batchd import events
from batchd.agent import prompts
from batchd.agent.answers import masked
from batchd.llm import exchange
from batchd.llm.dialect import ModelRequest, ModelTarget
from batchd.llm.failures import CallPlace
from batchd.llm.model_client import DIALECTS
from batchd.masking import Masker
from batchd.records import APIS, Answer, Endpoint, Failure, Message, ModelSetup
from batchd.taskstate import fold

ASK = ModelRequest(
    messages=(Message("system", "You work."), Message("user", "Count to three.")),
    tools=prompts.TOOLS,
    max_output_tokens=900,
)
ENDPOINT = Endpoint(base_url="https://api.example.com/v1")
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
SIGNED = {"type": "thinking", "thinking": "", "signature": "c2ln"}


def _call(arguments: Any, name: str = "call_1", **more: Any) -> dict[str, Any]:
    own = {"type": "function_call", "call_id": name, "name": "shell", "arguments": arguments}
    return {**own, **more}


def _use(given: Any, name: str = "toolu_1") -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "shell", "input": given}


def _read(api: str, body: bytes) -> Answer | Failure:
    setup = ModelSetup(name="p/m", api=api)
    target = ModelTarget.of(setup, "api.example.com", "")
    return DIALECTS[api].decode(CallPlace(setup, ENDPOINT), target, body, ASK, 1.0)


def _answer(api: str, items: list[Any], **more: Any) -> Answer:
    """Return an answer, as it is after it has been in a journal."""
    ended: dict[str, Any] = {"responses": {"status": "completed"}, "messages": {}}[api]
    key = {"responses": "output", "messages": "content"}[api]
    found = _read(api, json.dumps({**ended, key: items, **more}, ensure_ascii=False).encode())
    assert isinstance(found, Answer), found
    event = events.CallAnswered(at=1.0, purpose=events.Purpose.AGENT, answer=found)
    again = events.decode(events.encode(event))
    assert isinstance(again, events.CallAnswered)
    return again.answer


def _again(api: str, answer: Answer) -> list[Any]:
    """Return the conversation as it is sent behind an answer, held to the vendor's own types."""
    said = Message("assistant", answer.content, answer.tool_calls, replay=answer.replay)
    replies = [Message("tool", "ok", tool_call_id=call.id) for call in answer.tool_calls]
    messages = (*ASK.messages, said, *replies, Message("user", "Go on."))
    setup = ModelSetup(name="p/m", api=api)
    target = ModelTarget.of(setup, "api.example.com", "")
    request = replace(ASK, messages=messages)
    sent = exchange.encoded(exchange.fields(DIALECTS[api], setup, target, request))
    check_request(api, sent)
    key = {"responses": "input", "messages": "messages"}[api]
    conversation: list[Any] = json.loads(sent)[key]
    return conversation


TEXTS = {
    "chat": b'{"choices": [{"message": {"content": "%b"}}]}',
    "responses": b'{"status": "completed", "output": [{"type": "message", "content": [{"text": "%b"}]}]}',
    "messages": b'{"content": [{"type": "text", "text": "%b"}]}',
}


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("untidy", [b"a\xffb", b"a\xed\xa0\x80b", b"a\\ud800b"])
def test_bytes_that_are_no_text_are_replaced(api: str, untidy: bytes) -> None:
    """In the items too, which stand in the journal and go back as they are."""
    answer = _read(api, TEXTS[api] % untidy)
    assert isinstance(answer, Answer)
    assert answer.content.strip("ab").strip("�") == ""
    for item in answer.replay.items if answer.replay else ():
        json.loads(bytes(item).decode())


@pytest.mark.parametrize("api", ["responses", "messages"])
@pytest.mark.parametrize("odd", [b"1" * 5000, b"1e999", b"[" * 600 + b"]" * 600])
def test_items_that_cannot_be_looked_through_for_secrets_are_not_kept(api: str, odd: bytes) -> None:
    """The answer is, in neutral text: a number beyond all bounds ends no task."""
    body = (TEXTS[api] % b"a\\n").replace(b'{"type"', b'{"x": %b, "type"' % odd)
    answer = _read(api, body)
    hidden = masked(answer, Masker(["some other secret"]))
    assert isinstance(hidden, Answer)
    assert (hidden.content, hidden.replay) == ("a\n", None)


@pytest.mark.parametrize(("size", "goes_back"), [(1_000_000, True), (1_100_000, False)])
def test_of_items_without_bounds_only_the_texts_go_back(size: int, *, goes_back: bool) -> None:
    """They are kept, journaled and sent again with every call that follows."""
    thought = {**THOUGHT, "encrypted_content": "g" * size}
    answer = _answer("responses", [thought, _call("{}")])
    assert (answer.replay is not None) is goes_back
    assert [item.get("type") for item in _again("responses", answer)[2:4]] == (
        ["reasoning", "function_call"] if goes_back else ["function_call", "function_call_output"]
    )


def test_thinking_that_nothing_came_of_does_not_end_a_message() -> None:
    """It was cut off in the middle of it:
    "The final block in an assistant message cannot be `thinking`.", says the API.
    """
    answer = _answer("messages", [SIGNED], stop_reason="max_tokens")
    turn = _again("messages", answer)[1]
    assert [block["type"] for block in turn["content"]] == ["thinking", "text"]
    assert turn["content"][0] == SIGNED


def test_empty_texts_of_a_message_do_not_go_back() -> None:
    """The API writes them, and refuses them: "text content blocks must be non-empty"."""
    blank = {"type": "text", "text": "\n"}
    answer = _answer("messages", [SIGNED, blank, _use({})], stop_reason="tool_use")
    assert _again("messages", answer)[1]["content"] == [SIGNED, _use({})]
    nothing = _answer("messages", [blank], stop_reason="end_turn")
    assert _again("messages", nothing)[1]["content"] == [{"type": "text", "text": "(empty)"}]


def test_reasoning_that_nothing_came_of_does_not_go_back() -> None:
    """It is refused "without its required following item",
    and all other reasoning would be stripped with it.
    """
    why = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert _answer("responses", [THOUGHT], **why).replay is None
    text = {"type": "output_text", "text": "So.", "annotations": []}
    said = {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1"}
    said = {**said, "content": [text]}
    answer = _answer("responses", [THOUGHT, said, THOUGHT], **why)
    kinds = [item.get("type") for item in _again("responses", answer)]
    assert kinds == [None, None, "reasoning", "message", None]


@pytest.mark.parametrize(
    ("api", "items"),
    [
        ("responses", [_call("{}"), _call("{}")]),
        ("responses", [_call("{}", "")]),
        ("responses", [{**_call("{}"), "call_id": 7}]),
        ("messages", [_use({}), _use({})]),
        ("messages", [_use({}, "")]),
    ],
)
def test_calls_without_a_name_of_their_own_get_one(api: str, items: list[Any]) -> None:
    """Else no reply could name them, and the conversation would be refused for ever."""
    answer = _answer(api, items)
    names = [call.id for call in answer.tool_calls]
    assert all(names)
    assert len({*names}) == len(items)
    assert answer.replay is None
    key = {"responses": "call_id", "messages": "tool_use_id"}[api]
    assert all(json.dumps(_again(api, answer)).count(f'"{key}": "{name}"') for name in names)


def test_what_is_no_item_does_not_go_back() -> None:
    """Nor what stands beside it: items go back all, or none."""
    for api, item in (("responses", _call("{}")), ("messages", _use({}))):
        answer = _answer(api, [item, None, 1, "x", []])
        assert [call.name for call in answer.tool_calls] == ["shell"]
        assert answer.replay is None


def test_arguments_of_a_call_may_be_an_object() -> None:
    """As with chat completions: some servers send them so."""
    (call,) = _answer("responses", [_call({"command": "ls"})]).tool_calls
    assert call.given() == {"command": "ls"}


def test_a_call_at_the_end_of_what_was_cut_off_does_not_run() -> None:
    """By a full window too, and where the item itself does not say that it is incomplete."""
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    whole = _call('{"command": "ls"}', "call_0", status="completed")
    for answer in (
        _answer("messages", [_use({"command": "ls"})], stop_reason="model_context_window_exceeded"),
        _answer("responses", [whole, _call('{"command": "rm -r a"}')], **cut),
    ):
        assert answer.replay is None
        with pytest.raises(ValueError, match="line 1"):
            answer.tool_calls[-1].given()
    assert _answer("responses", [whole], **cut).tool_calls[0].given() == {"command": "ls"}


@pytest.mark.parametrize("odd", [5, {}, ["x"], True, None])
def test_what_is_not_needed_costs_no_answer(odd: Any) -> None:
    """An answer is paid: its model's name, its end and its tier may be anything."""
    message = {"content": "hi", "refusal": odd}
    choice = {"message": message, "finish_reason": odd}
    for api, body in (
        ("chat", {"choices": [choice], "model": odd, "service_tier": odd, "usage": odd}),
        ("responses", {"status": "completed", "output": [], "model": odd, "usage": odd}),
        ("messages", {"content": [{"type": odd}], "stop_reason": odd, "model": odd, "usage": odd}),
        ("responses", {"status": "completed", "output": [{"type": odd, "status": odd}]}),
    ):
        answer = _read(api, json.dumps(body).encode())
        assert isinstance(answer, Answer), (api, answer)
        assert (answer.model, answer.service_tier) == ("", "")


def test_words_of_a_provider_are_bounded() -> None:
    """They stand in the journal, the result and the log."""
    refused = [{"type": "message", "content": [{"type": "refusal", "refusal": "no " * 2_000_000}]}]
    removed = [{"reason": "x" * 1000}] * 3
    answer = _answer("responses", refused, model="m" * 9999, input_transformations=removed)
    assert len(answer.refusal) <= 1 << 20
    assert len(answer.model) <= 512
    assert [len(reason) for reason in answer.removed] == [64] * 3


def test_a_long_refusal_is_one_line_of_the_tasks_error() -> None:
    """In full it stands in the journal alone."""
    words = "I will not.\n" * 1000
    answer = Answer(content="", finish_reason="content_filter", refusal=words)
    event = events.CallAnswered(at=1.0, purpose=events.Purpose.AGENT, answer=answer)
    setup = ModelSetup(name="p/m")
    started = events.TaskStarted(at=0.0, terms=events.Terms(model=setup, judge=setup))
    verdict = fold("x", [started, event]).verdict
    assert verdict is not None
    assert verdict.error is not None
    assert verdict.error.message.isprintable()
    assert len(verdict.error.message) < 600


def test_the_fast_mode_of_messages_is_a_tier_of_its_own() -> None:
    """It is priced apart, and said in a field of its own: never the standard price in silence."""
    usage = {"input_tokens": 9, "output_tokens": 1, "service_tier": "standard"}
    assert _answer("messages", [_use({})], usage=usage).service_tier == "standard"
    assert _answer("messages", [_use({})], usage={**usage, "speed": "fast"}).service_tier == "fast"
    assert (
        _answer("messages", [_use({})], usage={**usage, "speed": "standard"}).service_tier
        == "standard"
    )


def test_a_cache_that_is_not_counted_is_not_known() -> None:
    """Null is no figure: 0 % from the cache would be a claim."""
    for cached, known in ((None, False), (0, True)):
        usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": cached}}
        answer = _answer("responses", [_call("{}")], usage=usage)
        assert (answer.usage.cache_share is not None) == known
