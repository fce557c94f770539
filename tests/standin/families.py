"""What real models take, refuse and cost, for names
that hold one of theirs: ``gpt-6.2-sol+steps-3``. The models stand in ``families.toml``.

A name without one has no such rules on chat completions, and has ``RESPONSES`` or ``MESSAGES`` on
the others: the strictest about what comes back, and the most lenient about everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import msgspec

from batchd.records import Usage

_ALL = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "max"})
#: What tiers cost, beside the standard one.
_TIERS: Mapping[str, Fraction] = {"flex": Fraction(1, 2), "priority": Fraction(2)}
#: The hours of the day, in UTC, that may be dearer: Monday to Friday, but not on these days.
_PEAK = frozenset({1, 2, 3, 6, 7, 8, 9})
_HOLIDAYS = frozenset({"2026-10-01"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyPrices:
    """Dollars a million tokens, as decimals in text: money is counted exactly."""

    input: str
    cached: str
    output: str
    write: str
    #: How many times as much it costs at dear hours.
    peak: int = 1

    def cost(self, usage: Usage, tier: str, at: float) -> float:
        """Return what a call costs, in dollars, that is sent at a moment."""
        when = datetime.fromtimestamp(at, UTC)
        saturday = 5
        peak = when.weekday() < saturday and when.hour in _PEAK and f"{when:%F}" not in _HOLIDAYS
        fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        paid = (
            fresh * Fraction(self.input)
            + usage.cached_input_tokens * Fraction(self.cached)
            + usage.cache_write_tokens * Fraction(self.write)
            + usage.output_tokens * Fraction(self.output)
        )
        paid *= self.peak if peak else 1
        return float(paid * _TIERS.get(tier, Fraction(1)) / 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The rules of one model."""

    vendor: str = "openai"
    prices: FamilyPrices | None = None
    #: What it lets be cached at the least, in tokens.
    cache_minimum: int = 1024
    #: The efforts that it takes.
    efforts: frozenset[str] = _ALL
    #: Whether it takes tools on chat completions.
    chat_tools: bool = True
    #: Whether it bills what is written to the cache.
    writes: bool = True
    #: Whether opaque items that no longer fit are left out, with status 200, instead of refused.
    removes: bool = False
    #: The kinds of thinking that it takes.
    thinking: frozenset[str] = frozenset({"adaptive", "enabled", "disabled", "between_tools"})


#: By their names.
FAMILIES: Mapping[str, Family] = msgspec.toml.decode(
    Path(__file__).with_suffix(".toml").read_bytes(), type=dict[str, Family]
)
#: What has no name of a real model.
RESPONSES = Family(removes=True)
MESSAGES = Family(vendor="anthropic", efforts=_ALL - {"none", "minimal"})


@functools.lru_cache(4096)
def of(model: str) -> Family | None:
    """Return the rules of the real model that a model's name holds, if it holds one."""
    return next((FAMILIES[part] for part in model.split("+") if part in FAMILIES), None)
