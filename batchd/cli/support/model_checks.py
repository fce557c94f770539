"""The part of ``batchd check`` that looks at models:
whether their providers have them, for how long, at what price.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

from batchd import catalog, config
from batchd.catalog import ModelListing
from batchd.catalog.query import NoListing, ask, keeps_from_strangers
from batchd.config import providers
from batchd.config.constraints import model_problem
from batchd.config.providers import APIS
from batchd.control import CheckLine, LineVerdict
from batchd.errors import BatchdError
from batchd.pricing import Prices
from batchd.records import PATHS, STANDARD, Endpoint
from batchd.words import listed

_REFUSES = frozenset({401, 403})
#: Where each role of a model is configured.
_KEYS = {"agent": "[agent] model", "judge": "[evaluation] judge_model"}


def in_use(settings: config.Config, tasks: Iterable[str] = ()) -> dict[str, str]:
    """Return the models in use, by their roles; ``tasks``: those of tasks that have not ended."""
    named = {"agent": settings.agent.model, "judge": settings.evaluation.judge_model}
    roles = {role: model for role, model in named.items() if model}
    more = [model for model in dict.fromkeys(tasks) if model not in roles.values()]
    return {**roles, **{f"task {model}": model for model in more if "/" in model}}


def lines(
    settings: config.Config, *, offline: bool, tasks: Iterable[str] = ()
) -> Iterator[CheckLine]:
    """Yield what there is to say of providers and models;
    ``offline``: without a request to any provider.
    """
    roles = in_use(settings, tasks)
    lists: dict[str, ModelListing | None] = {}
    first = {model.partition("/")[0]: model for model in reversed(roles.values())}
    for provider in dict.fromkeys(model.partition("/")[0] for model in roles.values()):
        line, lists[provider] = _provider(settings, provider, first[provider], offline=offline)
        yield line
        agents = settings.pool.processes * settings.pool.agents_per_process
        if (known := settings.providers.get(provider)) and known.max_concurrent < agents:
            said = f"{agents:,} at a time, and max_concurrent has {provider} called by {known.max_concurrent:,} of them: the others wait"
            fix = f"set max_concurrent = {agents} in [providers.{provider}], if it takes as many"
            yield CheckLine("note", "agents", said, fix)
    for name, why in providers.notes(settings, roles).items():
        fix = f'set api = "{APIS[name]}" in [providers.{name}] if it speaks that, or "chat"'
        said = f"it is spoken to in chat completions, as {why}"
        yield CheckLine("note", f"provider {name}", said, fix)
    for role, model in roles.items():
        yield from _model(settings, role, model, lists)
    yield from _priced(settings, roles)
    yield from _elsewhere(settings, {*roles.values()})


def _trial(model: str) -> str:
    """Return how a key and a model are tried where nothing that is free does it."""
    return (
        f"`batchd run --prompt ok --model {model} --budget 0.01` tries it, for the price of a call"
    )


def _provider(
    settings: config.Config, name: str, model: str, *, offline: bool
) -> tuple[CheckLine, ModelListing | None]:
    """Say whether a provider answers, and takes its key; ``model``: one of its models."""
    try:
        endpoint = settings.endpoint(name)
    except BatchdError as error:
        return CheckLine("failed", f"provider {name}", str(error)), None
    key = "its key is there" if endpoint.api_key else "it needs no key"
    if offline:
        return CheckLine("ok", f"provider {name}", f"{endpoint.base_url}, {key}; not asked"), None
    found = ask(endpoint)
    if isinstance(found, NoListing):
        return _unlisted(name, model, endpoint, found), None
    count = len(found.models)
    has = f"it lists {count:,} model{'s' * (count != 1)}"
    if not endpoint.api_key:
        said = f"{endpoint.base_url} answers, {key}; {has}"
    elif keeps_from_strangers(endpoint):
        said = f"{endpoint.base_url} answers, and takes the key; {has}"
    else:
        said = f"{endpoint.base_url} answers; {has}; the key was not tried, for the list needs none"
        return CheckLine("note", f"provider {name}", said, _trial(model)), found
    return CheckLine("ok", f"provider {name}", said), found


def _unlisted(name: str, model: str, endpoint: Endpoint, found: NoListing) -> CheckLine:
    """Return what it means that a provider has no list:
    not every server has one, and that it answers is enough.
    """
    what = f"provider {name}"
    if found.status in _REFUSES and endpoint.api_key:
        fix = f"put a valid key where [providers.{name}] says"
        return CheckLine("failed", what, f"it refuses the key (HTTP {found.status})", fix)
    if found.status in _REFUSES:
        fix = f"set api_key_env or api_key_file in [providers.{name}]"
        return CheckLine("failed", what, f"it wants a key (HTTP {found.status})", fix)
    if found.moved_to:
        fix = f"set base_url in [providers.{name}] to where it is: no call follows a redirect"
        said = f"{endpoint.base_url} redirects to {found.moved_to} ({found.why})"
        return CheckLine("failed", what, said, fix)
    if found.status == 404 and (path := _one_too_many(endpoint.base_url)):  # not found
        right = endpoint.base_url.rstrip("/").removesuffix(path)
        said = f"{endpoint.base_url} ends with {path}, which each call adds"
        return CheckLine("failed", what, said, f'set base_url = "{right}" in [providers.{name}]')
    if found.status:
        how = f"with {found.why}" if found.why else "without a list of models"
        untried = "neither the key nor a model" if endpoint.api_key else "no model"
        said = f"{endpoint.base_url} answers {how}: {untried} was tried"
        return CheckLine("note", what, said, _trial(model))
    fix = f"check the network and the base_url in [providers.{name}]"
    return CheckLine("failed", what, f"{endpoint.base_url} cannot be reached: {found.why}", fix)


def _one_too_many(base_url: str) -> str:
    """Return the path of a dialect that an address already ends with; empty: it ends with none."""
    paths = (f"/{path}" for path in PATHS.values())
    return next((path for path in paths if base_url.rstrip("/").endswith(path)), "")


def _model(
    settings: config.Config, role: str, model: str, lists: Mapping[str, ModelListing | None]
) -> Iterator[CheckLine]:
    """Say whether a model is there, and for how long."""
    name, _, own = model.partition("/")
    provider = settings.providers.get(name)
    if provider is None:
        return  # said above
    key = _KEYS.get(role, "another model in the task files, or `batchd retry --model`")
    what, listing = f"{role} model" if role in _KEYS else "task model", lists.get(name)
    today = catalog.today()
    end = catalog.end(model, provider.base_url, listing)
    if listing is not None and not listing.has(own):
        near = [f"{name}/{each}" for each in listing.nearest(own)]
        fixes = [f"do you mean {listed(near)}?"] if near else []
        fixes += [end.fix] if end and end.successor else []
        said = f"provider {name} has no model {own}"
        said += f": {end.words(today)}" if end else ""
        yield CheckLine(
            "failed", what, said, f"set {key}: {' '.join(fixes) or 'take one that it lists'}"
        )
    elif end is not None and end.due(today):
        verdict: LineVerdict = "failed" if end.gone(today) else "note"
        yield CheckLine(verdict, what, end.words(today), f"set {key}: {end.fix}")
    elif listing is not None and listing.find(own) is not None:
        yield CheckLine("ok", what, f"{model} is there")
    else:
        yield CheckLine("note", what, _untried(model, listing), _trial(model))


def _untried(model: str, listing: ModelListing | None) -> str:
    """Return why nothing shows that a model is there."""
    name, _, own = model.partition("/")
    if listing is None:
        return f"batchd did not try whether {model} is there: no list of its provider's models was read"
    if listing.any_name:
        return f"provider {name} serves one model under any name, {own} too"
    count = f"{len(listing.models):,}"
    return f"batchd read the first {count} models of provider {name}: {own} is not among them"


def _priced(settings: config.Config, roles: Mapping[str, str]) -> Iterator[CheckLine]:
    prices = Prices(settings.models)
    for role, model in ((r.partition(" ")[0], model) for r, model in roles.items()):
        provider = settings.providers.get(model.partition("/")[0])
        if provider is None:
            continue  # said above
        price = prices.price(model, provider.base_url)
        window = prices.context_window(model, provider.base_url)
        if price is None:
            keys = "input_usd_per_mtok and output_usd_per_mtok"
            fails = settings.budget.per_day_usd or settings.limits.max_cost_usd
            fix = f'set {keys} in [models."{model}"]'
            fix += "" if fails else "; until then no task with a limit in dollars can work"
            why = ", so none of its tasks can work: a limit in dollars is set" if fails else ""
            verdict: LineVerdict = "failed" if fails else "note"
            yield CheckLine(verdict, f"{role} price", f"no price is known for {model}{why}", fix)
        else:
            rate = price.rates[0]
            said = f"{model}: ${rate.input:g} in, ${rate.output:g} out a million tokens ({price.source})"
            if price.hours:
                rate = price.now(time.time()).rates[0]
                said += f", at its dearest; ${rate.input:g} and ${rate.output:g} at this hour"
            yield CheckLine("ok", f"{role} price", said)
            tier = _tier(settings, role, model)
            if price.at(tier) is None:
                fix = f'set its prices in [models."{model}".tiers.{tier}]; until then no task with a limit in dollars can work'
                why = f"no price is known for {model} in its service tier {tier}"
                yield CheckLine("note", f"{role} price", why, fix)
        if not window:
            fix = f'set context_window in [models."{model}"]'
            yield CheckLine("note", f"{role} window", f"the window of {model} is not known", fix)


def _tier(settings: config.Config, role: str, model: str) -> str:
    """Return what a model's calls are sold at: what [agent] says is of the tasks' own model."""
    if role == "agent" or model == settings.agent.model:
        return settings.tier(model)[0]
    known = settings.models.get(model)
    return (known and known.service_tier) or STANDARD


def _misnamed(settings: config.Config) -> Iterator[CheckLine]:
    """Say which tables are of no model that a call can name: what they set holds for none."""
    for name in settings.models:
        wrong = model_problem(name, settings)
        if wrong is not None and name not in settings.cost.compare:
            yield CheckLine("note", f'[models."{name}"]', wrong.message, wrong.hint)


def _elsewhere(settings: config.Config, said: set[str]) -> Iterator[CheckLine]:
    """Say which names of models in the rest of the configuration are of models that are gone,
    or will be soon.
    """
    yield from _misnamed(settings)
    today = catalog.today()
    places = {"[cost] compare": settings.cost.compare, "[models]": tuple(settings.models)}
    for place, models in places.items():
        for model in dict.fromkeys(models):
            provider = settings.providers.get(model.partition("/")[0])
            # What is only compared with is known by its name alone.
            called = provider is not None and place == "[models]"
            end = catalog.end(model, provider.base_url if called and provider else "")
            if model not in said and end is not None and end.due(today):
                yield CheckLine("note", place, end.words(today), f"{end.fix} there, or leave it")
