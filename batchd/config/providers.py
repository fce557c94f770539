"""``[providers.NAME]`` and ``[models."provider/model"]``: where models are, what is to be known of
them, and which dialect they speak: a model's table's word, its provider's, or a preset's own at the
preset's own address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from annotated_types import Ge, Le, MinLen

from batchd.config.reading import Holds, KeyFile, Name, Place, Reads, Section, Variable
from batchd.errors import Problem, near
from batchd.records import (
    STANDARD,
    Api,
    AskedEffort,
    Hours,
    JsonMode,
    Rate,
    Tier,
    ToolProtocol,
    options,
)
from batchd.records.tasks import Amount, Count

if TYPE_CHECKING:
    from batchd.config.sections import ConfigSections

#: The dialects; empty: as the preset has it, or chat.
AskedApi = Literal["", Api]
_NEVER: Final = "never"
_MAX_FALLBACK_S = 10**9
#: No provider has a longer one; it stands in every line about a call, and in the ledger.
_MAX_MODEL_CHARS = 512
_WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: The dialects that presets speak at their own addresses; the others speak chat completions.
APIS: Mapping[str, Api] = {"openai": "responses", "anthropic": "messages"}
#: A ``[providers.NAME]`` table overrides it key by key.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "openai": {
        "base_url": "https://api.openai.com/v1",
        "api_key_env": "OPENAI_API_KEY",
        "output_limit_field": "max_completion_tokens",
    },
    "deepseek": {
        "base_url": "https://api.deepseek.com/v1",
        "api_key_env": "DEEPSEEK_API_KEY",
        "json_mode": "json_object",
    },
    "openrouter": {"base_url": "https://openrouter.ai/api/v1", "api_key_env": "OPENROUTER_API_KEY"},
    "anthropic": {"base_url": "https://api.anthropic.com/v1", "api_key_env": "ANTHROPIC_API_KEY"},
    "ollama": {"base_url": "http://127.0.0.1:11434/v1", "max_concurrent": 4},
    # llama.cpp's server, vLLM and the like.
    "local": {"base_url": "http://127.0.0.1:8080/v1", "max_concurrent": 4},
}
_CHAT: Final = "chat"
#: The dialects whose requests cannot name a service tier.
_TIERLESS: frozenset[Api] = frozenset({"messages"})


def fallback(value: Any) -> float | Literal["never"]:
    """Return when a call goes on at the standard price. Raises ``ValueError``."""
    if value == _NEVER:
        return _NEVER
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Neither NaN nor infinity lies between.
    if number and 0 <= value <= _MAX_FALLBACK_S:
        return float(value)
    raise ValueError(
        "it must be 'never', or the seconds after which it goes on at the standard price"
    )


#: When a call whose tier has no room goes on in the standard one:
#: ``never``, or after so many seconds.
Fallback: TypeAlias = Annotated[float | Literal["never"], Reads(fallback, words=True)]


def seconds(fallback: float | Literal["never"]) -> float | None:
    """Return after how many seconds a call goes on at the standard price; None: never."""
    return None if isinstance(fallback, str) else fallback


def reachable(url: str) -> bool:
    """Whether a provider can be reached by an address.

    A user and password in it would end up in logs; keys have their own fields.
    """
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, a port
        return False
    return named and bool(re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSection(Section):
    """``[providers.NAME]``: an endpoint, and the dialect that it speaks."""

    base_url: Annotated[
        Name,
        Holds(reachable, "it must be http(s)://HOST[:PORT]/PATH, as in http://10.0.0.7:8000/v1"),
    ]
    api: AskedApi = ""
    api_key_env: Variable = ""
    api_key_file: KeyFile = ""
    max_concurrent: Annotated[int, Ge(1), Le(100_000)] = 32
    rpm: Count = 0
    tpm: Count = 0
    tools: ToolProtocol = "auto"
    output_limit_field: Name = "max_tokens"
    json_mode: JsonMode = "json_schema"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict, repr=False)


def presets() -> dict[str, ProviderSection]:
    """Return the usual providers, as they are known without any configuration."""
    return {name: ProviderSection(**preset) for name, preset in PRESETS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesSection(Section):
    """Prices of a model's tokens, where the price data has it wrong, or not at all."""

    input_usd_per_mtok: Amount | None = None
    cached_input_usd_per_mtok: Amount | None = None
    cache_write_usd_per_mtok: Amount | None = None
    cache_write_long_usd_per_mtok: Amount | None = None
    output_usd_per_mtok: Amount | None = None


def _days(text: str) -> tuple[int, ...]:
    spans = [part.strip().partition("-") for part in text.lower().split(",")]
    ends = [(_WEEK.index(first), _WEEK.index(last or first)) for first, _, last in spans]
    return tuple(sorted({(a + more) % 7 for a, b in ends for more in range((b - a) % 7 + 1)}))


def _span(text: str) -> tuple[int, int]:
    (hour, minute), (until, past) = (map(int, clock.split(":")) for clock in text.split("-"))
    begin, end = 60 * hour + minute, 60 * until + past
    if max(minute, past) > 59 or begin >= 1440 or end > 1440 or begin == end:  # minutes
        raise ValueError
    return begin, end if begin < end else end + 1440


def _day(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def _holds(read: Callable[[str], object], what: str) -> Holds:
    """Return that a text must be such that a function reads it."""

    def readable(text: str) -> bool:
        try:
            read(text)
        except ValueError:
            return False
        return True

    return Holds(readable, f"{{!r}} must be {what}")


_Days: TypeAlias = Annotated[Name, _holds(_days, 'days, as in "mon-fri" or "sat,sun"')]
_Hours: TypeAlias = Annotated[
    Name, _holds(_span, 'hours in UTC, as in "06:00-10:00" or "22:00-02:00"')
]
_Date: TypeAlias = Annotated[Name, _holds(_day, 'a date, as in "2026-10-01"')]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoursSection(Section):
    """``[models."provider/model".hours]``: when it costs something else, and what."""

    days: _Days = "mon-sun"
    """The days of the week, in UTC, on which these hours begin: ``mon-fri``, ``sat,sun``."""
    utc: Annotated[tuple[_Hours, ...], MinLen(1)]
    """From and until, on such a day: ``06:00-10:00``; ``22:00-02:00`` ends on the next day."""
    peak: PricesSection
    """The prices at these hours; what is not given is as in the model's own table."""
    except_: tuple[_Date, ...] = ()
    """Dates, in UTC, on which they do not begin: ``2026-10-01``."""

    def at(self, rates: tuple[Rate, ...]) -> Hours:
        """Return them with these rates."""
        utc, excepted = tuple(map(_span, self.utc)), tuple(map(_day, self.except_))
        return Hours(rates=rates, days=_days(self.days), utc=utc, excepted=excepted)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSection(PricesSection):
    """``[models."provider/model"]``: how it is called,
    and what the price data has wrong, or not at all.
    """

    tiers: Mapping[Literal["flex", "priority"], PricesSection] = field(default_factory=dict)
    hours: HoursSection | None = None
    context_window: Count | None = None
    api: AskedApi = ""
    effort: AskedEffort = ""
    service_tier: Tier | None = None
    tier_fallback: Fallback | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def contradictions(self) -> Iterator[tuple[Place, Problem]]:
        """Yield what is wrong with its options, whatever its dialect."""
        for name, why in options.problems(self.options):
            yield ("options", name), why


def model_problem(model: str, config: ConfigSections) -> Problem | None:
    """Return what is wrong with a ``provider/model``, if anything; the place is the caller's."""
    provider, _, name = model.partition("/")
    if not (provider and name and model.isprintable()):
        fix = f"as in {provider if provider in config.providers else 'openai'}/MODEL"
        return Problem("", f"{model!r} is not provider/model", fix)
    if len(model) > _MAX_MODEL_CHARS:
        return Problem("", f"a model's name has at most {_MAX_MODEL_CHARS} characters")
    if provider in config.providers:
        return None
    known = f"the known ones are {', '.join(sorted(config.providers))}"
    fix = near(provider, config.providers, known)
    return Problem("", f"no provider {provider!r} is configured", fix)


def api(model: str, config: ConfigSections) -> Api:
    """Return the dialect of a model whose provider is configured."""
    name = model.partition("/")[0]
    provider = config.providers[name]
    table = config.models.get(model)
    preset = PRESETS.get(name, {}).get("base_url")
    # What an extra_body adds was written for chat completions.
    untouched = provider.base_url.rstrip("/") == preset and not provider.extra_body
    own = APIS.get(name, _CHAT) if untouched else _CHAT
    return (table.api if table else "") or provider.api or own


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
