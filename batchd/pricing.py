"""What models cost and how much fits into them: genai-prices, overridden by ``[models."x"]``.

No price known is None, never 0. The data is loaded (0.15 s, 30 MB) when the first price is
asked for, and every answer is kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from batchd.records import Price, Rate

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice


class Override(Protocol):
    """What a table ``[models."provider/model"]`` says; None: nothing."""

    @property
    def input_usd_per_mtok(self) -> float | None:
        """A million input tokens."""

    @property
    def cached_input_usd_per_mtok(self) -> float | None:
        """A million input tokens from the prompt cache; None: like any input where that is given."""

    @property
    def output_usd_per_mtok(self) -> float | None:
        """A million output tokens."""

    @property
    def context_window(self) -> int | None:
        """Tokens that fit."""


class Prices:
    """The prices of models, named ``provider/model``."""

    def __init__(self, overrides: Mapping[str, Override]) -> None:
        self._overrides = overrides

    def price(self, model: str, base_url: str = "") -> Price | None:
        """Return what a model costs today, or None where nobody knows.

        ``base_url`` is where the provider is reached: it tells better than the name whose
        prices hold, and a server on the own network has none but the configured ones.
        """
        given = self._overrides.get(model)
        whole = given and _whole(given)
        if whole:
            return Price(rates=(whole,), source="config")
        rates, _ = _listed(model, base_url, _today())
        if not rates:
            return None
        if given is None or not _names_a_price(given):
            return Price(rates=rates, source="genai-prices")
        return Price(rates=tuple(_overridden(given, r) for r in rates), source="config")

    def context_window(self, model: str, base_url: str = "") -> int:
        """Return how many tokens fit into a model's window; 0 where nobody knows."""
        given = self._overrides.get(model)
        if given is not None and given.context_window is not None:
            return given.context_window
        return _listed(model, base_url, _today())[1]


def _names_a_price(given: Override) -> bool:
    prices = (
        given.input_usd_per_mtok,
        given.cached_input_usd_per_mtok,
        given.output_usd_per_mtok,
    )
    return any(p is not None for p in prices)


def _whole(given: Override) -> Rate | None:
    """Return the rate of an override that needs no price data beside it."""
    new, cached, output = (
        given.input_usd_per_mtok,
        given.cached_input_usd_per_mtok,
        given.output_usd_per_mtok,
    )
    if new is None or output is None:
        return None
    return Rate(input=new, cached_input=new if cached is None else cached, output=output)


def _overridden(given: Override, rate: Rate) -> Rate:
    """Return a listed rate with what an override says of it."""
    if given.input_usd_per_mtok is not None:
        new = given.input_usd_per_mtok
        rate = replace(rate, input=new, cached_input=new, cache_write=None)
    if given.cached_input_usd_per_mtok is not None:
        rate = replace(rate, cached_input=given.cached_input_usd_per_mtok)
    if given.output_usd_per_mtok is not None:
        rate = replace(rate, output=given.output_usd_per_mtok)
    return rate


def _today() -> date:
    return datetime.now(UTC).date()


@lru_cache(maxsize=4096)
def _listed(model: str, base_url: str, day: date) -> tuple[tuple[Rate, ...], int]:
    """Return the rates (none: unknown) and the window that the price data gives on a day."""
    provider, _, name = model.partition("/")
    if not name or (base_url and _is_local(base_url)):
        return (), 0
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 (see the module's docstring)

    snapshot = get_snapshot()
    try:
        # Whoever has a known address is known by it; a gateway of one's own by the name it was given.
        house = base_url and snapshot.find_provider(None, None, base_url)
    except LookupError:
        house = ""
    try:
        house = house or snapshot.find_provider(None, provider, None)
        _, info = snapshot.find_provider_model(name, house, None, None)
    except LookupError:
        return (), 0
    return _rates(info, day, free=name.endswith(":free")), info.context_window or 0


def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan", ".localhost"))


def _rates(info: ModelInfo, day: date, *, free: bool) -> tuple[Rate, ...]:
    prices = _dearest(info, day)
    new, output = prices.input_mtok, prices.output_mtok
    if new is None or output is None:
        # The data says "nothing" for free models, and for those that are not priced by the token.
        return (Rate(input=0.0, cached_input=0.0, output=0.0),) if free else ()
    cached = prices.cache_read_mtok if prices.cache_read_mtok is not None else new
    write = prices.cache_write_mtok
    tiers = (t.start for p in (new, cached, output) for t in getattr(p, "tiers", ()))
    return tuple(
        Rate(
            above=start,
            input=_at(new, start),
            cached_input=_at(cached, start),
            output=_at(output, start),
            cache_write=None if write is None else _at(write, start),
        )
        for start in sorted({0, *tiers})
    )


def _dearest(info: ModelInfo, day: date) -> ModelPrice:
    """Return the highest prices of a day: some are lower at night, and a task's are frozen at its start."""
    midnight = datetime.combine(day, time(), UTC)
    steps = range(1 if hasattr(info.prices, "input_mtok") else 48)
    times = [info.get_prices(midnight + timedelta(minutes=30 * i)) for i in steps]
    return max(times, key=lambda p: _at(p.input_mtok or 0, 0) + _at(p.output_mtok or 0, 0))


def _at(price: Any, start: int) -> float:
    """Return a price, in tiers or not, of calls whose input is longer than ``start`` tokens."""
    reached = [t.price for t in getattr(price, "tiers", ()) if t.start <= start]
    return float(reached[-1] if reached else getattr(price, "base", price))
