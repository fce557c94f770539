from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchd import config, terms
from batchd.errors import ConfigError, TaskFileError
from batchd.llm import exchange
from batchd.llm.dialect import ModelRequest, ModelTarget, repaired
from batchd.llm.failures import CallPlace, http_failure
from batchd.llm.model_client import DIALECTS
from batchd.records import Endpoint, Message, ModelSetup, Task
from batchd.records.options import OPTIONS
from batchd.spool import taskfile

ASK = ModelRequest(messages=(Message("user", "x"),), tools=(), max_output_tokens=100)
ALL: dict[str, Any] = {"temperature": 0.5, "top_p": 1, "seed": 7, "verbosity": "low"}


@pytest.fixture
def spool(tmp_path: Path) -> config.Config:
    """Return a configuration with a model of each dialect, one of them with options."""
    (tmp_path / "config.toml").write_text(
        '[models."openai/x".options]\ntemperature = 1\nverbosity = "high"\n'
        '[models."local/x"]\noptions = {seed = 3}\n'
    )
    return config.load(tmp_path / "config.toml", {})


def _parsed(value: Any, spool: config.Config) -> tuple[Task, ...]:
    return taskfile.parse(json.dumps(value).encode(), "x.json", spool).tasks


def _wrong(value: Any, spool: config.Config) -> dict[str, str]:
    with pytest.raises(TaskFileError) as caught:
        _parsed(value, spool)
    return {p.place: str(p).removeprefix(f"{p.place}: ") for p in caught.value.problems}


@pytest.mark.parametrize(
    ("api", "sent"),
    [
        ("chat", ALL),
        ("responses", {"temperature": 0.5, "top_p": 1, "text": {"verbosity": "low"}}),
        ("messages", {"temperature": 0.5, "top_p": 1}),
    ],
)
def test_each_dialect_is_asked_for_what_it_has(api: Any, sent: dict[str, Any]) -> None:
    """In its own field, beside what stands there; extra_body goes before it."""

    def body(**more: Any) -> dict[str, Any]:
        setup = ModelSetup(name="a/b", api=api, **more)
        target = ModelTarget.of(setup, "h", "")
        return exchange.fields(DIALECTS[api], setup, target, ASK)

    plain = body()
    assert body(options=ALL) == plain | sent
    assert body(options=ALL, extra_body={"temperature": 2})["temperature"] == 2


def test_an_option_lies_beside_what_its_field_holds_already() -> None:
    """A schema, and how wordy the answer is."""
    setup = ModelSetup(name="a/b", api="responses", options={"verbosity": "low"})
    request = msgspec.structs.replace(ASK, schema={"type": "object"})
    body = exchange.fields(DIALECTS["responses"], setup, ModelTarget.of(setup, "h", ""), request)
    assert body["text"].keys() == {"format", "verbosity"}


def test_an_option_that_a_model_refuses_is_left_out_from_then_on() -> None:
    """As any other part of a request that it can do without."""
    setup = ModelSetup(name="a/b", options=ALL)
    sent = exchange.fields(DIALECTS["chat"], setup, ModelTarget.of(setup, "h", ""), ASK)
    place = CallPlace(setup, Endpoint(base_url="http://h/v1"))
    said = b'{"error": {"message": "Unsupported parameter: seed is not supported"}}'
    failure = repaired(http_failure(place, 400, {}, said), DIALECTS["chat"], ASK, sent, said)
    assert failure.refuses == "field:seed"


def test_the_nearest_place_counts_key_by_key(spool: config.Config) -> None:
    """A task's over its batch's over its model's table; a judge has those of the table."""
    (task,) = _parsed(
        {
            "options": {"top_p": 0.5, "temperature": 0.1},
            "tasks": [{"first_prompt": "x", "model": "openai/x", "options": {"temperature": 0}}],
        },
        spool,
    )
    assert task.options == {"top_p": 0.5, "temperature": 0}
    found = terms.terms(task, spool, capped=False)
    assert found.model.options == {"temperature": 0, "verbosity": "high", "top_p": 0.5}
    assert found.judge.options == {"temperature": 1, "verbosity": "high"}


def test_what_is_no_option_is_refused_with_those_that_there_are(spool: config.Config) -> None:
    """Names, values, and what the model's dialect does not have: all at once, with their places."""
    task: dict[str, Any] = {"first_prompt": "x"}
    wrong = [
        {**task, "options": {"temprature": 1, "top_k": 3}},
        {**task, "options": {"temperature": "hot", "top_p": 1.5, "seed": 1.5, "verbosity": True}},
        {**task, "options": {"seed": 7}},
        {**task, "model": "anthropic/x", "options": {"temperature": 0, "verbosity": "low"}},
        {**task, "model": "local/x", "options": ALL},
    ]
    none = "which has no such option (leave it out; it has"
    assert _wrong({"tasks": wrong}, spool) == {
        "tasks[0].options.temprature": "there is no such option (do you mean temperature?)",
        "tasks[0].options.top_k": "there is no such option (do you mean top_p?)",
        "tasks[1].options.temperature": 'it must be a number from 0 to 2 (it is "hot")',
        "tasks[1].options.top_p": "it must be a number from 0 to 1 (it is 1.5)",
        "tasks[1].options.seed": "it must be a whole number from -9007199254740992 to "
        "9007199254740992 (it is 1.5)",
        "tasks[1].options.verbosity": "it must be 'low', 'medium' or 'high' (it is true)",
        "tasks[2].options.seed": "it is 7, and openai/gpt-6-luna is called with "
        f'api = "responses", {none} temperature, top_p, verbosity)',
        "tasks[3].options.verbosity": 'it is "low", and anthropic/x is called with '
        f'api = "messages", {none} temperature, top_p)',
    }


def test_the_options_of_a_models_table_are_held_to_its_dialect(tmp_path: Path) -> None:
    """By the same words, under the table's name."""
    path = tmp_path / "config.toml"
    path.write_text(
        '[models."openai/x".options]\nseed = 1\n[models."local/x".options]\nheat = 1\ntop_p = 2\n'
    )
    with pytest.raises(ConfigError) as caught:
        config.load(path, {})
    found = {p.place: p.message for p in caught.value.problems}
    assert found == {
        '[models."local/x".options] heat': "there is no such option",
        '[models."local/x".options] top_p': "it must be a number from 0 to 1",
        '[models."openai/x".options] seed': 'it is 1, and openai/x is called with api = "responses", '
        "which has no such option",
    }


def test_what_was_stored_without_options_has_none() -> None:
    """Tasks and terms of earlier versions."""
    old = b'{"id": "001", "first_prompt": "x", "model": "a/b", "effort": "low"}'
    assert msgspec.json.decode(old, type=Task).options == {}
    assert msgspec.json.decode(b'{"name": "a/b"}', type=ModelSetup).options == {}


def test_the_guides_name_each_option() -> None:
    """In docs/tasks.md and docs/configuration.md."""
    for name in ("tasks", "configuration"):
        text = (Path(__file__).parents[2] / "docs" / f"{name}.md").read_text("utf-8")
        assert all(f"`{option}`" in text for option in OPTIONS)
