"""Answers with values put out of place, by a seed:
each is read, kept and sent on, or is a failure that is classified.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from batchd import events
from batchd.agent import charges, prompts, tools
from batchd.llm import exchange
from batchd.llm.dialect import ModelRequest, ModelTarget, repaired
from batchd.llm.failures import CallPlace, http_failure
from batchd.llm.model_client import DIALECTS, _read
from batchd.records import (
    APIS,
    Answer,
    Endpoint,
    Failure,
    Message,
    ModelSetup,
    Price,
    Purpose,
    Rate,
)
from batchd.taskstate import TaskState, fold

_CASES = 700
_ODD = (
    *(None, True, 0, -1, 10**18, 10**400, 1.5, "", " ", "\n", "\ud800", [], {}, [None], {"a": 1}),
    *("{}", "null", '{"command": "ls"}', "incomplete", "completed", "failed", "refusal"),
    *("tool_use", "thinking", "text", "max_tokens", "function_call", "reasoning", "message"),
)
_ARGUMENTS = '{"command": "ls"}'
_SOUND: dict[str, dict[str, Any]] = {
    "chat": {
        "choices": [
            {
                "message": {
                    "content": "hi",
                    "reasoning_content": "why",
                    "tool_calls": [
                        {"id": "a", "function": {"name": "shell", "arguments": _ARGUMENTS}}
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ],
        "model": "m",
        "service_tier": "default",
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "cost": 0.01,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
        },
    },
    "responses": {
        "status": "completed",
        "model": "m",
        "service_tier": "flex",
        "error": None,
        "incomplete_details": None,
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": [{"text": "a"}], "content": []},
            {"type": "message", "content": [{"type": "output_text", "text": "Now."}]},
            {"type": "function_call", "call_id": "a", "name": "shell", "arguments": _ARGUMENTS},
            {"type": "function_call", "call_id": "b", "name": "shell", "arguments": "{}"},
        ],
        "usage": {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 10},
            "output_tokens": 20,
        },
    },
    "messages": {
        "stop_reason": "tool_use",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "", "signature": "s"},
            {"type": "text", "text": "Now."},
            {"type": "tool_use", "id": "a", "name": "shell", "input": {"command": "ls"}},
            {"type": "tool_use", "id": "b", "name": "shell", "input": {}},
        ],
        "usage": {
            "input_tokens": 30,
            "cache_creation_input_tokens": 10,
            "cache_read_input_tokens": 60,
            "output_tokens": 20,
        },
    },
}
_PRICE = Price(
    rates=(Rate(input=1, cached_input=0.1, output=5, cache_write=1.25),),
    source="config",
    tiers={"flex": (Rate(input=0.5, cached_input=0.05, output=2.5),)},
)


def _setup(api: str) -> ModelSetup:
    return ModelSetup(name="p/m", api=api, price=_PRICE)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where values stand, whole ones before their parts."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _places(part, (*place, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _places(part, (*place, index))


def _damaged(chance: random.Random, sound: dict[str, Any]) -> bytes:
    value = copy.deepcopy(sound)
    for _ in range(chance.choice((1, 1, 2, 3))):
        *way, key = chance.choice([*_places(value)] or [("model",)])
        table: Any = value
        for step in way:
            table = table[step]
        how = chance.random()
        if how < 0.2:
            del table[key]
        elif how < 0.3 and isinstance(table, list):
            table.append(copy.deepcopy(table[key]))
        else:
            table[key] = chance.choice(_ODD)
    body = bytearray(json.dumps(value).encode())
    if chance.random() < 0.1:
        body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body)


def _after(api: str, outcome: Answer | Failure, asked: str) -> TaskState:
    """Return a task's state after a call, as its journal has it."""
    setup = _setup(api)
    call = events.CallStarted(
        at=1, purpose=Purpose.AGENT, input_tokens=50, max_output_tokens=900, reserved_usd=1.0
    )
    terms = events.Terms(model=setup, judge=setup, system_prompt="s")
    journal: list[events.Event] = [events.TaskStarted(at=0, terms=terms), call]
    if isinstance(outcome, Failure):
        journal.append(events.CallFailed(at=2, failure=outcome))
    else:
        answer, disbelieved = charges.believed(outcome, call, setup)
        booked = charges.charge(answer, call, setup, believed=disbelieved is None)
        calls, text = tools.calls(answer, "auto", native_seen=False)
        journal.append(
            events.CallAnswered(
                at=2,
                purpose=Purpose.AGENT,
                answer=answer,
                calls=calls,
                text_protocol=text,
                disbelieved=disbelieved,
                tier=booked.tier,
                cost=booked.cost,
                doubt=booked.doubt,
            )
        )
        journal += [events.ToolRan(at=3, call=c, output="ok") for c in calls]
    return fold(asked, [events.decode(events.encode(event)) for event in journal])


def _names(api: str, body: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of the calls in a request, and of their results."""
    if api == "responses":
        items = body["input"]
        kinds = ("function_call", "call_id"), ("function_call_output", "call_id")
    elif api == "messages":
        items = [block for turn in body["messages"] for block in turn["content"]]
        kinds = ("tool_use", "id"), ("tool_result", "tool_use_id")
    else:
        calls = [c["id"] for m in body["messages"] for c in m.get("tool_calls") or ()]
        return calls, [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"]
    return (
        [item[kinds[0][1]] for item in items if item.get("type") == kinds[0][0]],
        [item[kinds[1][1]] for item in items if item.get("type") == kinds[1][0]],
    )


@pytest.mark.parametrize("api", APIS)
def test_whatever_a_provider_answers_the_task_goes_on(api: str) -> None:
    """Nothing raises, money stays within what a call can cost,
    and every call that goes back has its result.
    """
    place = CallPlace(_setup(api), Endpoint(base_url="https://api.example.com/v1"))
    target = ModelTarget.of(_setup(api), "api.example.com", "")
    asked = ModelRequest(
        messages=(Message("system", "s"), Message("user", "u")),
        tools=prompts.TOOLS,
        max_output_tokens=900,
    )
    for seed in range(_CASES):
        body = _damaged(random.Random(seed), _SOUND[api])
        outcome = _read(place, partial(DIALECTS[api].decode, place, target, body, asked, 1.0))
        state = _after(api, outcome, "u")
        for spent in state.spend.values():
            assert spent.cost_usd is None or 0 <= spent.cost_usd <= 1.0, (seed, spent)
        request = ModelRequest(messages=state.messages, tools=prompts.TOOLS, max_output_tokens=900)
        for other in APIS:
            to = ModelTarget.of(_setup(other), "api.example.com", "")
            sent = exchange.encoded(
                exchange.fields(DIALECTS[other], _setup(other), to, request)
            ).decode()
            calls, results = _names(other, json.loads(sent))
            assert all(calls), (seed, sent)
            assert sorted(calls) == sorted({*results}), (seed, sent)
        failure = http_failure(place, 400, {}, body)
        repaired(failure, DIALECTS[api], asked, {"tools": [], "stop": []}, body)
