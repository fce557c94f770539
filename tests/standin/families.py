"""What real models take, refuse and cost, for names
that hold one of theirs: ``gpt-6.2-sol+steps-3``.

A name without one has no such rules on chat completions, and has ``RESPONSES`` or ``MESSAGES`` on
the others: the strictest about what comes back, and the most lenient about everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction

from batchd.records import Usage

#: From the least to the most.
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_ALL = frozenset(EFFORTS)
#: What tiers cost, beside the standard one.
_TIERS: Mapping[str, Fraction] = {
    "flex": Fraction(1, 2),
    "batch": Fraction(1, 2),
    "priority": Fraction(2),
}
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
    long_write: str
    #: Beyond so many tokens of input the whole request costs so much more; 0: never.
    cliff: int = 0
    cliff_input: str = "1"
    cliff_output: str = "1"
    #: How many times as much it costs at dear hours.
    peak: int = 1

    def cost(self, usage: Usage, long_writes: int, tier: str, at: float = 0.0) -> float:
        """Return what a call costs, in dollars, that is sent at a moment."""
        when = datetime.fromtimestamp(at, UTC)
        peak = (
            when.weekday() < 5 and when.hour in _PEAK and f"{when:%F}" not in _HOLIDAYS
        )  # Saturday
        dear = bool(self.cliff) and usage.input_tokens > self.cliff
        short = usage.cache_write_tokens - long_writes
        fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        paid = (
            fresh * Fraction(self.input)
            + usage.cached_input_tokens * Fraction(self.cached)
            + short * Fraction(self.write)
            + long_writes * Fraction(self.long_write)
        ) * Fraction(self.cliff_input if dear else 1)
        paid += (
            usage.output_tokens * Fraction(self.output) * Fraction(self.cliff_output if dear else 1)
        )
        paid *= self.peak if peak else 1
        return float(paid * _TIERS.get(tier, Fraction(1)) / 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The rules of one model."""

    name: str = ""
    vendor: str = "openai"
    prices: FamilyPrices | None = None
    #: What it lets be cached at the least, in tokens.
    cache_minimum: int = 1024
    #: The efforts that it takes, and the one it has where none is named.
    efforts: frozenset[str] = _ALL
    effort: str = "medium"
    #: When it takes a temperature other than 1: ``ever``,
    #: ``unthinking`` (at effort none alone), ``never``.
    temperature: str = "ever"
    #: When it takes tools on chat completions: the same words.
    chat_tools: str = "ever"
    flex: bool = True
    #: Whether it bills what is written to the cache.
    writes: bool = True
    #: Whether opaque items that no longer fit are left out, with status 200, instead of refused.
    removes: bool = False
    #: Whether a thinking block holds for its conversation alone, and for its account.
    bound: bool = False
    of_account: bool = False
    #: Whether a conversation may end with the beginning of the answer.
    prefill: bool = True
    #: The kinds of thinking that it takes, and up to which effort it may be disabled.
    thinking: frozenset[str] = frozenset({"adaptive", "enabled", "disabled", "between_tools"})
    disabled_to: str = "max"
    #: Whether it thinks where a request says nothing of that.
    thinks: bool = True
    #: Whether a tool may be forced on it.
    forced: bool = True
    #: The day it is gone, as the vendor's list of models says.
    ends: str = ""


def _gpt(new: str, cached: str, write: str, long_write: str, output: str) -> FamilyPrices:
    return FamilyPrices(
        input=new,
        cached=cached,
        write=write,
        long_write=long_write,
        output=output,
        cliff=272_000,
        cliff_input="2",
        cliff_output="1.5",
    )


def _claude(new: str, cached: str, write: str, long_write: str, output: str) -> FamilyPrices:
    return FamilyPrices(input=new, cached=cached, write=write, long_write=long_write, output=output)


_ADAPTIVE = frozenset({"adaptive", "disabled", "between_tools"})
_CLAUDES = _ALL - {"none", "minimal"}

#: By their names.
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="gpt-5-mini",
            prices=replace(_gpt("0.25", "0.025", "0.25", "0.25", "2"), cliff=0),
            efforts=_ALL - {"none", "xhigh", "max"},
            temperature="never",
            writes=False,
            ends="2026-12-11",
        ),
        Family(
            name="gpt-5.6-sol",
            prices=_gpt("4", "0.40", "5", "10", "20"),
            efforts=_ALL - {"minimal"},
            temperature="unthinking",
            chat_tools="unthinking",
        ),
        Family(
            name="gpt-6-luna",
            prices=_gpt("0.10", "0.01", "0.125", "0.25", "0.50"),
            temperature="unthinking",
            chat_tools="unthinking",
        ),
        Family(
            name="gpt-6-sol",
            prices=_gpt("2", "0.20", "2.50", "5", "10"),
            temperature="unthinking",
            chat_tools="unthinking",
        ),
        Family(
            name="gpt-6-astra",
            prices=_gpt("10", "1", "12.50", "25", "50"),
            efforts=_ALL - {"none"},
            temperature="never",
            chat_tools="never",
        ),
        Family(
            name="gpt-6.1-terra",
            prices=_gpt("1", "0.05", "1.25", "2.50", "5"),
            temperature="unthinking",
            chat_tools="unthinking",
        ),
        Family(
            name="gpt-6.1-sol",
            prices=_gpt("2", "0.10", "2.50", "5", "10"),
            efforts=_ALL - {"none", "minimal"},
            temperature="never",
            chat_tools="never",
        ),
        Family(
            name="gpt-6.2-sol",
            prices=_gpt("2", "0.10", "2.50", "5", "10"),
            efforts=_ALL - {"none"},
            temperature="never",
            chat_tools="never",
            flex=False,
            removes=True,
        ),
        Family(
            name="deepseek-flash",
            prices=FamilyPrices(
                input="0.15", cached="0.003", output="0.60", write="0.15", long_write="0.15", peak=2
            ),
            flex=False,
            writes=False,
        ),
        Family(
            name="claude-sonnet-4-5",
            vendor="anthropic",
            prices=replace(
                _claude("3", "0.30", "3.75", "6", "15"),
                cliff=200_000,
                cliff_input="2",
                cliff_output="1.5",
            ),
            efforts=_CLAUDES,
            effort="high",
            thinking=frozenset({"enabled", "disabled"}),
            thinks=False,
            ends="2026-11-30",
        ),
        Family(
            name="claude-haiku-4-5",
            vendor="anthropic",
            prices=_claude("1", "0.10", "1.25", "2", "5"),
            efforts=_CLAUDES,
            effort="high",
            thinking=frozenset({"enabled", "disabled"}),
            thinks=False,
            cache_minimum=4096,
        ),
        Family(
            name="claude-opus-5",
            vendor="anthropic",
            prices=_claude("5", "0.50", "6.25", "10", "25"),
            efforts=_CLAUDES,
            effort="high",
            prefill=False,
            thinking=_ADAPTIVE,
            disabled_to="high",
            cache_minimum=512,
        ),
        Family(
            name="claude-haiku-5-5",
            vendor="anthropic",
            prices=replace(
                _claude("0.10", "0.01", "0.125", "0.20", "0.50"),
                cliff=100_000,
                cliff_input="5",
                cliff_output="5",
            ),
            efforts=_CLAUDES,
            prefill=False,
            thinking=_ADAPTIVE,
            disabled_to="high",
            cache_minimum=512,
            bound=True,
            of_account=True,
        ),
        Family(
            name="claude-sonnet-5-5",
            vendor="anthropic",
            prices=_claude("2", "0.10", "2.50", "4", "10"),
            efforts=_CLAUDES,
            effort="high",
            prefill=False,
            thinking=_ADAPTIVE - {"disabled"},
            bound=True,
            of_account=True,
        ),
        Family(
            name="claude-opus-5-5",
            vendor="anthropic",
            prices=_claude("4", "0.20", "5", "8", "20"),
            efforts=_CLAUDES,
            prefill=False,
            thinking=_ADAPTIVE - {"disabled"},
            forced=False,
            bound=True,
        ),
    )
}
#: What has no name of a real model.
RESPONSES = Family(removes=True)
MESSAGES = Family(
    vendor="anthropic",
    efforts=_CLAUDES,
    bound=True,
    of_account=True,
    prefill=False,
)


@functools.lru_cache(4096)
def of(model: str) -> Family | None:
    """Return the rules of the real model that a model's name holds, if it holds one."""
    return next((FAMILIES[part] for part in model.split("+") if part in FAMILIES), None)
