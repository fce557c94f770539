"""The dialect of a model: its table's word, its provider's,
or a preset's own at the preset's own address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from batchd.config.presets import APIS, PRESETS
from batchd.config.providers import ProviderSection
from batchd.config.sections import ConfigSections
from batchd.errors import Problem
from batchd.records import STANDARD, Api, AskedEffort, Tier

_CHAT: Final = "chat"
#: The dialects whose requests cannot name a service tier.
_TIERLESS: frozenset[Api] = frozenset({"messages"})


def api(model: str, config: ConfigSections) -> Api:
    """Return the dialect of a model whose provider is configured."""
    name = model.partition("/")[0]
    provider = config.providers[name]
    table = config.models.get(model)
    own = "" if stays_chat(name, provider) else APIS.get(name, _CHAT)
    return (table.api if table else "") or provider.api or own or _CHAT


def stays_chat(name: str, provider: ProviderSection) -> str:
    """Return why a preset's own dialect is not spoken,
    although nothing else is asked for; empty: it is.
    """
    if provider.api or name not in APIS:
        return ""
    if provider.base_url.rstrip("/") != PRESETS[name]["base_url"]:
        return "its base_url is not the preset's"
    # What it adds was written for chat completions.
    return "it has an extra_body" if provider.extra_body else ""


def takes_tiers(model: str, config: ConfigSections) -> bool:
    """Whether calls to a model whose provider is configured can ask for a service tier."""
    return api(model, config) not in _TIERLESS


def tier_problem(model: str, tier: Tier, config: ConfigSections) -> Problem | None:
    """Return why a model's calls cannot ask for a service tier; the place is the caller's."""
    known = model.partition("/")[0] in config.providers
    if tier == STANDARD or not known or takes_tiers(model, config):
        return None
    fix = f'set service_tier = "{STANDARD}" in [models."{model}"]'
    why = f'it is {tier!r}, and {model} is called with api = "{api(model, config)}", which has no tiers'
    return Problem("", why, fix)


def efforts(model: str, config: ConfigSections, *asked: AskedEffort) -> AskedEffort:
    """Return how much a model is to think:
    the first that is said of what is ``asked``, its table's word, the agent's.
    """
    table = config.models.get(model)
    said = (*asked, table.effort if table else "", config.agent.effort)
    return next(filter(None, said), "")


def notes(config: ConfigSections, models: Mapping[str, str]) -> Mapping[str, str]:
    """Return why the providers of these models, by name,
    are spoken to in chat completions and not in their own dialect.
    """
    names = {model.partition("/")[0] for model in models.values() if model}
    found = {name: stays_chat(name, config.providers[name]) for name in names & {*config.providers}}
    return {name: why for name, why in sorted(found.items()) if why}
