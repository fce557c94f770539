"""Prices and windows of models: genai-prices, overridden by ``[models."x"]``.

No price known is None, never 0. The data is loaded (0.15 s, 30 MB) when the first price is
asked for, and every answer is kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from msgspec.structs import replace

from batchd.config import Config
from batchd.config.providers import HoursSection, ModelSection, PricesSection
from batchd.records import Cost, Hours, Price, Rate, Tokens

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice


_EPOCH = date(1970, 1, 1)
_Rated = TypeVar("_Rated", Price, Hours)
#: Houses whose dear hours, in minutes of the day, are of Monday to Friday alone; the data has them
#: for every day (genai-prices#582).
_WEEKDAYS = {"deepseek": ((60, 240), (360, 600))}
#: The contexts of genai-prices that are a service tier, or what a provider reports as one.
_CONTEXTS = ("service_tier", "processing", "speed")
#: The context that the prices are listed for.
_DEFAULT = "default"


def price(model: str, config: Config) -> Price | None:
    """Return what a model, named ``provider/model``, costs from today on; None: that is unknown."""
    given = config.models.get(model)
    if given is not None and (whole := _whole(given)):
        # What the data lists is another price:
        # of a tier only what is given beside this one is known.
        own = Price(rates=(whole,), source="config", tiers=_tiers(given.tiers, {}))
        return _hourly(own, given.hours)
    listed = _data(model, config).price
    if listed is None or given is None:
        return listed
    hours = tuple(_under(given, each) for each in listed.hours)
    own = _hourly(replace(_under(given, listed), hours=hours), given.hours)
    return listed if own == listed else replace(own, source="config")


def context_window(model: str, config: Config) -> int:
    """Return how many tokens fit into a model's window; 0 where that is unknown."""
    given = config.models.get(model)
    if given is not None and given.context_window is not None:
        return given.context_window
    return _data(model, config).window


#: Models to compare a cost with, and what they cost.
Compared: TypeAlias = tuple[tuple[str, Price | None], ...]


def compared(config: Config, models: Iterable[str] = ()) -> Compared:
    """Return models to compare a cost with: these, or else those of the configuration."""
    names = dict.fromkeys(models or config.cost.compare)
    return tuple((name, price(name, config)) for name in names)


class Elsewhere(NamedTuple):
    """A model, its price, and what some tokens cost with it; None: that is not known."""

    model: str
    price: Price | None
    total: float | None

    @property
    def averaged(self) -> bool:
        """Whether calls count as long as their average: long inputs cost more there."""
        return self.price is not None and len(self.price.rates) > 1

    @property
    def at_highest(self) -> bool:
        """Whether the price of the most expensive hour counts."""
        return self.price is not None and bool(self.price.hours)

    def ratio(self, spent: float | None) -> float | None:
        """Return how many times as much it is as was spent."""
        return self.total / spent if spent and self.total is not None else None


def elsewhere(models: Compared, used: Sequence[Tokens]) -> list[Elsewhere]:
    """Return what the same tokens cost with other models, cheapest first, unknown prices last."""
    found = []
    for model, known in models:
        total = sum((known.cost_of_many(u) for u in used), Cost()).total if known else None
        found.append(Elsewhere(model, known, total))
    return sorted(found, key=lambda each: (each.total is None, each.total or 0.0))


def _data(model: str, config: Config) -> _Listed:
    """Return what the price data says of a model today.

    Where its provider is reached shows better than the name whose prices hold, and a server on the
    own network has none but the configured ones.
    """
    provider = config.providers.get(model.partition("/")[0])
    return _listed(model, provider.base_url if provider else "", datetime.now(UTC).date())


def _whole(given: PricesSection) -> Rate | None:
    """Return the rate of an override that needs no price data beside it."""
    if given.input_usd_per_mtok is None or given.output_usd_per_mtok is None:
        return None
    return _overridden(given, Rate(input=0.0, cached_input=0.0, output=0.0))


def _tiers(
    given: Mapping[Any, PricesSection], listed: Mapping[str, tuple[Rate, ...]]
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


def _under(given: ModelSection, listed: _Rated) -> _Rated:
    """Return what is listed with what an override says of it."""
    rates = tuple(_overridden(given, r) for r in listed.rates)
    return replace(listed, rates=rates, tiers=_tiers(given.tiers, listed.tiers))


def _hourly(price: Price, given: HoursSection | None) -> Price:
    """Return a price with the hours that an override names, in place of those that are listed."""
    if given is None:
        return price
    # What is listed first is the cheapest, and of all hours.
    usual = replace(price.hours[0] if price.hours else Hours(rates=price.rates), since=0)
    peak = tuple(_overridden(given.peak, r) for r in usual.rates)
    highest = max(usual.rates, peak, key=_sum)
    return replace(price, rates=highest, hours=(usual, given.at(peak)))


def _overridden(given: PricesSection, rate: Rate) -> Rate:
    """Return a listed rate with what an override says of it."""
    if (new := given.input_usd_per_mtok) is not None:
        rate = replace(rate, input=new, cached_input=new, cache_write=None, cache_write_long=None)
    others = {
        "cached_input": given.cached_input_usd_per_mtok,
        "cache_write": given.cache_write_usd_per_mtok,
        "cache_write_long": given.cache_write_long_usd_per_mtok,
        "output": given.output_usd_per_mtok,
    }
    return replace(rate, **{name: usd for name, usd in others.items() if usd is not None})


class _Listed(NamedTuple):
    """What the price data has of a model."""

    #: None: it has none.
    price: Price | None = None
    #: 0: unknown.
    window: int = 0


@lru_cache(maxsize=4096)
def _listed(model: str, base_url: str, day: date) -> _Listed:
    """Return what the price data says of a model on a day."""
    provider, _, name = model.partition("/")
    if not name or (base_url and _is_local(base_url)):
        return _Listed()
    from genai_prices.data_snapshot import get_snapshot

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
    hours = _hours(info, day, _WEEKDAYS.get(house.id, ()), free=name.endswith(":free"))
    price = None
    for each in hours:
        if not each.since:  # of today, with the highest as the last
            price = Price(rates=each.rates, tiers=each.tiers, source="genai-prices")
    if price and len(hours) > 1:
        price = replace(price, hours=hours)
    return _Listed(price, info.context_window or 0)


def names(provider: str, base_url: str = "") -> tuple[str, ...]:
    """Return the models whose prices are known of a provider,
    as it calls them; none of a server on the own network.
    """
    if base_url and _is_local(base_url):
        return ()
    from genai_prices.data_snapshot import get_snapshot

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


def _hours(
    info: ModelInfo, today: date, weekdays: tuple[tuple[int, int], ...], *, free: bool
) -> tuple[Hours, ...]:
    """Return what is listed for each time of the day, from today on and from each later day on
    which that changes: first the cheapest, as of all hours.

    ``weekdays``: the hours that are of Monday to Friday alone.
    """
    listed = () if hasattr(info.prices, "input_mtok") else info.prices
    conditions = [c.constraint for c in (*listed, *(info.price_variants or ()))]
    later = {day for c in conditions if (day := getattr(c, "start_date", today)) > today}
    clocks = [c for c in conditions if hasattr(c, "start_time")]
    edges = sorted({0, *(_minute(t) for c in clocks for t in (c.start_time, c.end_time))})
    found: list[Hours] = []
    before: object = None
    for day in (today, *sorted(later)):
        spans: dict[Any, list[tuple[int, int]]] = {}
        for span in zip(edges, (*edges[1:], 1440), strict=True):
            when = datetime.combine(day, time(), UTC) + timedelta(minutes=span[0])
            if rates := _rates(info.get_prices(when), free=free):
                tiers = tuple(_listed_tiers(info, when).items())
                spans.setdefault((rates, tiers), []).append(span)
        if spans == before:
            continue
        before, since = spans, (day - _EPOCH).days if day > today else 0
        for rates, tiers in sorted(spans, key=lambda each: _sum(each[0])):
            hours = Hours(rates=rates, tiers=dict(tiers), since=since)
            if found and found[-1].since == since:
                utc = tuple(spans[rates, tiers])
                days = tuple(range(5 if utc == weekdays else 7))
                hours = replace(hours, utc=utc, days=days)
            found.append(hours)
    return tuple(found)


def _listed_tiers(info: ModelInfo, when: datetime) -> Mapping[str, tuple[Rate, ...]]:
    """Return the rates of each context that has any at that moment.

    Asked for one that it does not know, the data answers with the standard price:
    only those that it names are asked for.
    """
    found: dict[str, tuple[Rate, ...]] = {}
    for variant in info.price_variants or ():
        ((key, tier), *more) = variant.when.items()
        active = variant.constraint is None or variant.constraint.active(when)
        if more or key not in _CONTEXTS or tier == _DEFAULT or tier in found or not active:
            continue
        if rates := _rates(info.get_prices(when, {key: tier}), free=False):
            found[tier] = rates
    return found


def _minute(clock: time) -> int:
    """Return the minute of the day in UTC that a time of the data means."""
    there = datetime.combine(_EPOCH, clock, clock.tzinfo or UTC).astimezone(UTC)
    return there.hour * 60 + there.minute


def _sum(rates: tuple[Rate, ...]) -> float:
    return rates[0].input + rates[0].output


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


def _at(price: Any, start: int) -> float:
    """Return a price, in tiers or not, of calls whose input is longer than ``start`` tokens."""
    reached = [t.price for t in getattr(price, "tiers", ()) if t.start <= start]
    return float(reached[-1] if reached else getattr(price, "base", price))
