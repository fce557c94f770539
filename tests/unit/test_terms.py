from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from replacing import replace

from batchd.config import Config
from batchd.config.providers import ModelSection, ProviderSection
from batchd.config.sections import AgentSection, EvaluationSection
from batchd.errors import ConfigError, InputError
from batchd.records import Task, TaskLimits
from batchd.terms import setup, terms

PROVIDERS: Mapping[str, ProviderSection] = {
    "openai": ProviderSection(
        base_url="https://api.openai.com/v1", output_limit_field="max_completion_tokens"
    ),
    "local": ProviderSection(
        base_url="http://127.0.0.1:8080/v1",
        tools="text",
        json_mode="json_object",
        extra_body={"seed": 1},
    ),
}


def _task(model: str, *, evaluator: str = "judge", max_cost_usd: float = 0.0) -> Task:
    limits = TaskLimits(max_cost_usd=max_cost_usd)
    return Task(id="001", first_prompt="x", model=model, evaluator=evaluator, limits=limits)


def test_terms_hold_what_the_configuration_says() -> None:
    """Model and judge carry the settings of their own provider, price and window included."""
    config = Config(
        providers=PROVIDERS, evaluation=EvaluationSection(judge_model="openai/gpt-5-mini")
    )
    found = terms(_task("local/qwen"), config, capped=False)
    assert (found.model.name, found.model.tools, found.model.json_mode) == (
        "local/qwen",
        "text",
        "json_object",
    )
    assert (found.model.price, found.model.extra_body) == (None, {"seed": 1})
    assert found.judge.name == "openai/gpt-5-mini"
    assert found.judge.output_limit_field == "max_completion_tokens"
    assert found.judge.price is not None
    assert found.judge.context_window > 0
    assert [c.name for c in found.compare] == list(config.cost.compare)
    assert all(c.price for c in found.compare)
    assert not found.capped


@pytest.mark.parametrize("wanted", [True, False])
def test_whether_agents_md_is_quoted_is_the_configurations(wanted: bool) -> None:
    """``[agent] agents_md`` is frozen with the rest when a task starts."""
    config = Config(providers=PROVIDERS, agent=AgentSection(agents_md=wanted))
    assert terms(_task("local/qwen"), config, capped=False).agents_md is wanted


def test_the_judge_is_the_tasks_own_model_by_default() -> None:
    """Without a judge_model, and where nothing is judged,
    the task's own model stands for the judge.
    """
    found = terms(_task("local/qwen"), Config(providers=PROVIDERS), capped=False)
    assert found.judge == found.model
    config = Config(providers=PROVIDERS, evaluation=EvaluationSection(judge_model="missing/x"))
    unjudged = terms(_task("local/qwen", evaluator="none"), config, capped=False)
    assert unjudged.judge == unjudged.model
    with pytest.raises(ConfigError, match=r"\[providers.missing\]"):
        terms(_task("local/qwen"), config, capped=False)


@pytest.mark.parametrize(
    ("model", "words"), [("missing/x", "missing/x"), ("gpt-5", "provider/model")]
)
def test_a_model_needs_a_provider(model: str, words: str) -> None:
    """A model of a provider that is not configured is refused, and what is configured is said."""
    with pytest.raises(ConfigError, match=words) as caught:
        terms(_task(model), Config(providers=PROVIDERS), capped=False)
    assert "openai, local" in str(caught.value)


def test_what_has_no_price_cannot_be_capped() -> None:
    """Under any limit on money a model without a price is refused with the fix,
    and the fix helps.
    """
    config = Config(providers=PROVIDERS)
    for task, capped in ((_task("local/qwen"), True), (_task("local/qwen", max_cost_usd=1), False)):
        with pytest.raises(InputError, match=r'\[models\."local/qwen"\]') as caught:
            terms(task, config, capped=capped)
        assert len(caught.value.problems) == 1
    free = ModelSection(input_usd_per_mtok=0.0, output_usd_per_mtok=0.0)
    fixed = replace(config, models={"local/qwen": free})
    assert terms(_task("local/qwen"), fixed, capped=True).capped


def test_a_tier_without_a_price_cannot_be_capped() -> None:
    """Where a limit is active,
    a tier whose price is not known is refused with those that there are.
    """
    config = Config(
        models={"openai/gpt-6.2-sol": ModelSection(input_usd_per_mtok=2, output_usd_per_mtok=10)}
    )
    task = Task(id="1", first_prompt="x", model="openai/gpt-6.2-sol", service_tier="flex")
    assert terms(task, config, capped=False).model.tier_price is None
    with pytest.raises(InputError) as refused:
        terms(task, config, capped=True)
    (problem,) = refused.value.problems
    assert "no price is known for its service tier flex" in problem.message
    assert "use one of standard;" in problem.hint
    luna = replace(task, model="openai/gpt-6-luna", tier_fallback_s=60.0)
    found = terms(luna, Config(), capped=True)
    assert (found.model.service_tier, found.model.tier_fallback_s) == ("flex", 60.0)
    assert found.judge == found.model


def test_a_judge_of_its_own_has_the_tier_of_its_own_table() -> None:
    """What a task or [agent] says of tiers is of the model that does the work."""
    models = {"openai/gpt-6.1-terra": ModelSection(service_tier="priority", tier_fallback=5.0)}
    config = Config(evaluation=EvaluationSection(judge_model="openai/gpt-6.1-terra"), models=models)
    task = Task(id="1", first_prompt="x", model="openai/gpt-6-luna", service_tier="flex")
    judge = terms(task, config, capped=False).judge
    assert (judge.service_tier, judge.tier_fallback_s) == ("priority", 5.0)
    plain = replace(config, models={})
    assert terms(task, plain, capped=False).judge.service_tier == "standard"


@pytest.mark.parametrize(
    ("changed", "api"),
    [
        ({}, "responses"),
        ({"base_url": "https://api.openai.com/v1/"}, "responses"),
        ({"base_url": "https://proxy.example/v1"}, "chat"),
        ({"extra_body": {"seed": 1}}, "chat"),
        ({"extra_body": {"seed": 1}, "api": "responses"}, "responses"),
        ({"base_url": "https://proxy.example/v1", "api": "messages"}, "messages"),
        ({"api": "chat"}, "chat"),
    ],
)
def test_a_presets_dialect_holds_at_its_own_address(changed: dict[str, Any], api: str) -> None:
    """What was set up for chat completions stays with them;
    a word of the user's counts everywhere.
    """
    provider = replace(PROVIDERS["openai"], **changed)
    config = Config(providers={"openai": provider})
    assert setup("openai/x", config).api == api
    own = Config(providers={"openai": provider}, models={"openai/x": ModelSection(api="messages")})
    assert setup("openai/x", own).api == "messages"
    assert setup("openai/y", own).api == api


def test_a_task_says_how_much_its_model_thinks_before_its_table_and_the_agent() -> None:
    """The judge's own word comes first; else it thinks as much as the task's model."""
    config = Config(providers=PROVIDERS, agent=AgentSection(effort="low"))
    task = _task("local/qwen")
    assert terms(task, config, capped=False).judge.effort == "low"
    config = replace(config, models={"local/qwen": ModelSection(effort="high")})
    assert terms(task, config, capped=False).model.effort == "high"
    task = replace(task, effort="max")
    config = replace(config, evaluation=EvaluationSection(judge_effort="none"))
    found = terms(task, config, capped=False)
    assert (found.model.effort, found.judge.effort) == ("max", "none")
