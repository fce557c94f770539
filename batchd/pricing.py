"""Prices and windows of models: genai-prices, overridden by ``[models."x"]``.

No price known is None, never 0. The data is loaded (0.15 s, 30 MB) when the first price is
asked for, and every answer is kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from msgspec.structs import replace

from batchd.records import Price, Rate

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice


#: The contexts of genai-prices that are a service tier, or what a provider reports as one.
_CONTEXTS = ("service_tier", "processing", "speed")
#: The context that the prices are listed for.
_DEFAULT = "default"


class ConfiguredPrices(Protocol):
    """The prices that a table of the configuration gives; None: nothing."""

    @property
    def input_usd_per_mtok(self) -> float | None:
        """A million input tokens."""

    @property
    def cached_input_usd_per_mtok(self) -> float | None:
        """A million input tokens from the prompt cache;
        None: like any input where that is given.
        """

    @property
    def cache_write_usd_per_mtok(self) -> float | None:
        """A million input tokens written to the prompt cache."""

    @property
    def cache_write_long_usd_per_mtok(self) -> float | None:
        """A million input tokens written to be kept there for long."""

    @property
    def output_usd_per_mtok(self) -> float | None:
        """A million output tokens."""


class ModelOverride(ConfiguredPrices, Protocol):
    """The overrides in a table ``[models."provider/model"]``; None: nothing."""

    @property
    def tiers(self) -> Mapping[Any, ConfiguredPrices]:
        """The prices of its service tiers."""

    @property
    def context_window(self) -> int | None:
        """Tokens that fit."""


class Prices:
    """The prices of models, named ``provider/model``."""

    def __init__(self, overrides: Mapping[str, ModelOverride]) -> None:
        self._overrides = overrides

    def price(self, model: str, base_url: str = "") -> Price | None:
        """Return what a model costs today, or None where that is unknown.

        ``base_url`` is where the provider is reached: it shows better than the name whose
        prices hold, and a server on the own network has none but the configured ones.
        """
        given = self._overrides.get(model)
        if given is not None and (whole := _whole(given)):
            # What the data lists is another price:
            # of a tier only what is given beside this one is known.
            return Price(rates=(whole,), source="config", tiers=_tiers(given.tiers, {}))
        listed = _listed(model, base_url, _today())
        if not listed.rates:
            return None
        price = Price(rates=listed.rates, source="genai-prices", tiers=listed.tiers)
        if given is None or not (_names_a_price(given) or given.tiers):
            return price
        rates = tuple(_overridden(given, r) for r in listed.rates)
        return Price(rates=rates, source="config", tiers=_tiers(given.tiers, listed.tiers))

    def context_window(self, model: str, base_url: str = "") -> int:
        """Return how many tokens fit into a model's window; 0 where that is unknown."""
        given = self._overrides.get(model)
        if given is not None and given.context_window is not None:
            return given.context_window
        return _listed(model, base_url, _today()).window


def _names_a_price(given: ConfiguredPrices) -> bool:
    prices = (
        given.input_usd_per_mtok,
        given.cached_input_usd_per_mtok,
        given.cache_write_usd_per_mtok,
        given.cache_write_long_usd_per_mtok,
        given.output_usd_per_mtok,
    )
    return any(p is not None for p in prices)


def _whole(given: ConfiguredPrices) -> Rate | None:
    """Return the rate of an override that needs no price data beside it."""
    new, cached, output = (
        given.input_usd_per_mtok,
        given.cached_input_usd_per_mtok,
        given.output_usd_per_mtok,
    )
    if new is None or output is None:
        return None
    return Rate(
        input=new,
        cached_input=new if cached is None else cached,
        output=output,
        cache_write=given.cache_write_usd_per_mtok,
        cache_write_long=given.cache_write_long_usd_per_mtok,
    )


def _tiers(
    given: Mapping[Any, ConfiguredPrices], listed: Mapping[str, tuple[Rate, ...]]
) -> Mapping[str, tuple[Rate, ...]]:
    """Return the rates of tiers: those listed, and over them those given,
    which are whole where none is listed.
    """
    rates = dict(listed)
    for tier, table in given.items():
        if whole := _whole(table):
            rates[tier] = (whole,)
        elif tier in listed:
            rates[tier] = tuple(_overridden(table, r) for r in listed[tier])
    return rates


def _overridden(given: ConfiguredPrices, rate: Rate) -> Rate:
    """Return a listed rate with what an override says of it."""
    if given.input_usd_per_mtok is not None:
        new = given.input_usd_per_mtok
        rate = replace(rate, input=new, cached_input=new, cache_write=None, cache_write_long=None)
    if given.cached_input_usd_per_mtok is not None:
        rate = replace(rate, cached_input=given.cached_input_usd_per_mtok)
    if given.cache_write_usd_per_mtok is not None:
        rate = replace(rate, cache_write=given.cache_write_usd_per_mtok)
    if given.cache_write_long_usd_per_mtok is not None:
        rate = replace(rate, cache_write_long=given.cache_write_long_usd_per_mtok)
    if given.output_usd_per_mtok is not None:
        rate = replace(rate, output=given.output_usd_per_mtok)
    return rate


def _today() -> date:
    return datetime.now(UTC).date()


class _Listed(NamedTuple):
    """What the price data has of a model."""

    #: None: it has no price.
    rates: tuple[Rate, ...] = ()
    tiers: Mapping[str, tuple[Rate, ...]] = {}
    #: 0: unknown.
    window: int = 0


@lru_cache(maxsize=4096)
def _listed(model: str, base_url: str, day: date) -> _Listed:
    """Return what the price data says of a model on a day."""
    provider, _, name = model.partition("/")
    if not name or (base_url and _is_local(base_url)):
        return _Listed()
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 (see the module's docstring)

    snapshot = get_snapshot()
    try:
        # A provider with a known address is known by it;
        # a gateway of one's own by the name it was given.
        house = base_url and snapshot.find_provider(None, None, base_url)
    except LookupError:
        house = ""
    try:
        house = house or snapshot.find_provider(None, provider, None)
        _, info = snapshot.find_provider_model(name, house, None, None)
    except LookupError:
        return _Listed()
    rates = _rates(_dearest(info, day), free=name.endswith(":free"))
    return _Listed(rates, _listed_tiers(info, day) if rates else {}, info.context_window or 0)


def names(provider: str, base_url: str = "") -> tuple[str, ...]:
    """Return the models whose prices are known of a provider,
    as it calls them; none of a server on the own network.
    """
    if base_url and _is_local(base_url):
        return ()
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 (as above)

    try:
        house = get_snapshot().find_provider(None, provider, base_url or None)
    except LookupError:
        return ()
    return tuple(model.id for model in house.models)


def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan", ".localhost"))


def _listed_tiers(info: ModelInfo, day: date) -> Mapping[str, tuple[Rate, ...]]:
    """Return the rates of each context that has any that day.

    Asked for one that it does not know, the data answers with the standard price:
    only those that it names are asked for.
    """
    noon = datetime.combine(day, time(12), UTC)
    found: dict[str, tuple[Rate, ...]] = {}
    for variant in info.price_variants or ():
        ((key, tier), *more) = variant.when.items()
        active = variant.constraint is None or variant.constraint.active(noon)
        if more or key not in _CONTEXTS or tier == _DEFAULT or tier in found or not active:
            continue
        if rates := _rates(_dearest(info, day, {key: tier}), free=False):
            found[tier] = rates
    return found


def _rates(prices: ModelPrice, *, free: bool) -> tuple[Rate, ...]:
    new, output = prices.input_mtok, prices.output_mtok
    if new is None or output is None:
        # The data says "nothing" for free models, and for those that are not priced by the token.
        return (Rate(input=0.0, cached_input=0.0, output=0.0),) if free else ()
    cached = prices.cache_read_mtok if prices.cache_read_mtok is not None else new
    write, kept_long = prices.cache_write_mtok, prices.cache_write_1h_mtok
    marks = {
        t.start for p in (new, cached, output, write, kept_long) for t in getattr(p, "tiers", ())
    }
    return tuple(
        Rate(
            above=start,
            input=_at(new, start),
            cached_input=_at(cached, start),
            output=_at(output, start),
            cache_write=None if write is None else _at(write, start),
            cache_write_long=None if kept_long is None else _at(kept_long, start),
        )
        for start in sorted({0, *marks})
    )


def _dearest(info: ModelInfo, day: date, context: Mapping[str, str] | None = None) -> ModelPrice:
    """Return the highest prices of a day:
    some are lower at night, and a task's are frozen at its start.
    """
    midnight = datetime.combine(day, time(), UTC)
    steps = range(1 if hasattr(info.prices, "input_mtok") else 48)
    times = [
        info.get_prices(midnight + timedelta(minutes=30 * i), dict(context) if context else None)
        for i in steps
    ]
    return max(times, key=lambda p: _at(p.input_mtok or 0, 0) + _at(p.output_mtok or 0, 0))


def _at(price: Any, start: int) -> float:
    """Return a price, in tiers or not, of calls whose input is longer than ``start`` tokens."""
    reached = [t.price for t in getattr(price, "tiers", ()) if t.start <= start]
    return float(reached[-1] if reached else getattr(price, "base", price))
