"""``[providers.NAME]`` and ``[models."provider/model"]``: where models are,
and what is to be known of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from batchd.config.presets import PRESETS
from batchd.config.tiers import Fallback
from batchd.config.values import AskedApi, Name, Section
from batchd.records import AskedEffort, JsonMode, Tier, ToolProtocol
from batchd.records.numbers import Amount, Count


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSection(Section):
    """``[providers.NAME]``: an endpoint, and the dialect that it speaks."""

    base_url: Name
    """The address up to and without ``/chat/completions``, ``/responses`` or ``/messages``."""
    api: AskedApi = ""
    """The dialect. Empty: a preset's own at the preset's own address,
    if there is no ``extra_body``; else chat.
    """
    api_key_env: str = ""
    """The environment variable that holds the key.

    Neither this nor a file: a server without keys.
    """
    api_key_file: str = ""
    """A file that holds the key; a relative one is looked for among systemd's credentials first."""
    max_concurrent: Annotated[int, Ge(1), Le(100_000)] = 32
    """Calls at a time, at most; fewer while it is overloaded."""
    rpm: Count = 0
    """Requests a minute; 0 learns them from its limit headers and 429s."""
    tpm: Count = 0
    """Tokens a minute, input and output together; 0 learns them likewise."""
    tools: ToolProtocol = "auto"
    """How its models call tools."""
    output_limit_field: Name = "max_tokens"
    """The request field that limits output tokens."""
    json_mode: JsonMode = "json_schema"
    """How a judge is bound to its JSON."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent along with every request."""
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Sent along in every request body, over our own fields."""


def presets() -> dict[str, ProviderSection]:
    """Return the usual providers, as they are known without any configuration."""
    return {name: ProviderSection(**preset) for name, preset in PRESETS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesSection(Section):
    """Prices of a model's tokens, where the price data has it wrong, or not at all."""

    input_usd_per_mtok: Amount | None = None
    """A million input tokens."""
    cached_input_usd_per_mtok: Amount | None = None
    """A million input tokens read from the provider's prompt cache."""
    cache_write_usd_per_mtok: Amount | None = None
    """A million input tokens written to that cache."""
    cache_write_long_usd_per_mtok: Amount | None = None
    """A million input tokens written to be kept there for an hour or more."""
    output_usd_per_mtok: Amount | None = None
    """A million output tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection(PricesSection):
    """``[models."provider/model"]``: how it is called,
    and what the price data has wrong, or not at all.
    """

    tiers: Mapping[Literal["flex", "priority"], PricesSection] = field(default_factory=dict)
    """``[models."provider/model".tiers.flex]``: the prices of a service tier."""
    context_window: Count | None = None
    """Tokens that fit into its window."""
    api: AskedApi = ""
    """The dialect that it is spoken to in; empty: its provider's."""
    effort: AskedEffort = ""
    """How much it is to think; empty: as ``[agent]`` says."""
    service_tier: Tier | None = None
    """``standard``, ``flex`` or ``priority``; a task may name its own.

    Not given: [agent] service_tier.
    """
    tier_fallback: Fallback | None = None
    """When its calls go on at the standard price; not given: [agent] tier_fallback."""
