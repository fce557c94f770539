"""The terms that a task starts under: its models, how they are called, what they cost."""

from __future__ import annotations

from msgspec.structs import replace

from batchd import masking, pricing
from batchd.config import Config, providers
from batchd.errors import ConfigError, InputError, Problem
from batchd.events import Terms
from batchd.records import STANDARD, TIERS, ModelSetup, Task


def terms(task: Task, config: Config, *, capped: bool) -> Terms:
    """Return today's terms for ``task``, without a prompt yet.

    ``capped``: a money limit of its batch or of the day is active; the task's own counts by itself.
    Raises ``ConfigError`` for a model whose provider is not configured, and ``InputError`` for one
    without a known price where a limit is active: what cannot be counted cannot be capped.
    """
    capped = capped or task.limits.max_cost_usd > 0
    judged = task.evaluator == "judge"
    judge_model = (judged and config.evaluation.judge_model) or task.model
    own = setup(task.model, config)
    model = replace(
        own,
        options={**own.options, **task.options},
        effort=providers.efforts(task.model, config, task.effort),
        service_tier=task.service_tier,
        tier_fallback_s=task.tier_fallback_s,
    )
    effort = providers.efforts(judge_model, config, config.evaluation.judge_effort, task.effort)
    # The task's own options are for its work, and none of who judges it.
    judge = replace(model, options=own.options)
    if judge_model != task.model:
        judge = setup(judge_model, config)
        table = config.models.get(judge_model)
        # What [agent] says of tiers holds for the tasks' models.
        if table is not None and table.service_tier is not None:
            fallback_s = config.tier(judge_model)[1]
            judge = replace(judge, service_tier=table.service_tier, tier_fallback_s=fallback_s)
    judge = replace(judge, effort=effort)
    if capped:
        unknown = {s.name: s for s in (model, judge) if s.tier_price is None}
        if unknown:
            raise InputError(tuple(map(_unpriced, unknown.values())))
    compare = tuple(_compared(name, config) for name in config.cost.compare)
    return Terms(
        model=model,
        judge=judge,
        agents_md=config.agent.agents_md,
        compare=compare,
        capped=capped,
        limits=task.limits,
    )


def setup(name: str, config: Config) -> ModelSetup:
    """Return how the model ``name`` is called. Raises ``ConfigError`` where it cannot be."""
    provider, _, model = name.partition("/")
    known = config.providers.get(provider)
    if known is None or not model:
        names = ", ".join(config.providers)
        raise ConfigError(
            (
                Problem(
                    f"[providers.{provider}]" if model else "model",
                    f"the model {name!r} needs a provider that is not configured"
                    if model
                    else f"{name!r} is not a model: write provider/model",
                    f"configured are {names}",
                ),
            ),
            source=config.file,
        )
    table = config.models.get(name)
    return ModelSetup(
        name=name,
        price=pricing.price(name, config),
        options=table.options if table else {},
        context_window=pricing.context_window(name, config),
        tools=known.tools,
        output_limit_field=known.output_limit_field,
        json_mode=known.json_mode,
        # The terms are stored: what holds a secret goes with the endpoint.
        api=providers.api(name, config),
        extra_body={k: v for k, v in known.extra_body.items() if not any(masking.named({k: v}))},
    )


def _compared(name: str, config: Config) -> ModelSetup:
    """Return a model to compare the cost with, which is not called: its provider may be unknown."""
    price = pricing.price(name, config)
    # The terms are stored with each task: of models that are not called, tiers are not needed.
    hours = tuple(replace(each, tiers={}) for each in price.hours) if price else ()
    return ModelSetup(name=name, price=price and replace(price, tiers={}, hours=hours))


def _unpriced(setup: ModelSetup) -> Problem:
    name, tier = setup.name, setup.service_tier
    if setup.price is not None:
        known = ", ".join((STANDARD, *sorted(set(setup.price.tiers) & set(TIERS))))
        return Problem(
            name,
            f"no price is known for its service tier {tier}, and a limit on money is active",
            f'use one of {known}; or add [models."{name}".tiers.{tier}] with input_usd_per_mtok and '
            "output_usd_per_mtok to the configuration",
        )
    return Problem(
        name,
        "no price is known, and a limit on money is active",
        f'add [models."{name}"] with input_usd_per_mtok and output_usd_per_mtok to the configuration',
    )
