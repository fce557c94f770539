"""Tokens and money."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from math import inf

#: More than so many times what was sent or asked for, and so many tokens, no call comes to.
_BELIEVED, _BELIEVED_EXTRA = 10, 10_000


def dollars(usd: float) -> str:
    """Return money in the digits that matter, as pages tell it too: ``$0``, ``$0.00004``, ``$0.0815``, ``$1.23``."""
    if usd == 0:
        return "$0"
    if usd >= 1:
        return f"${usd:,.2f}"
    if usd >= 0.0001:  # noqa: PLR2004 (of less, two digits)
        return f"${usd:.4f}"
    return "$" + f"{usd:.{1 - math.floor(math.log10(abs(usd)))}f}".rstrip("0")


def believable(tokens: int) -> int:
    """Return how many tokens a provider may at most count, or write, where by our count it is ``tokens``."""
    return _BELIEVED * tokens + _BELIEVED_EXTRA


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call or of many, as the provider counts them."""

    calls: int = 0
    #: All input, the cached part included.
    input_tokens: int = 0
    #: The part of the input that was read from the provider's prompt cache.
    cached_input_tokens: int = 0
    #: The part that was written to it, where the provider says so: some bill that apart.
    cache_write_tokens: int = 0
    #: Of that, what the cache keeps long: an hour, twelve.
    cache_write_long_tokens: int = 0
    #: All output, the reasoning included.
    output_tokens: int = 0
    reasoning_tokens: int = 0
    #: Whether any of it was counted here because the provider sent no usage.
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def beyond(self, sent: int, asked: int, window: int) -> bool:
        """Whether no call comes to this that sent and asked for so many tokens, of a model with this window (0: unknown).

        The window may be set lower than it is, and a provider counts otherwise than we do: what was sent counts twice.
        """
        used = ((self.input_tokens, sent), (self.output_tokens, asked))
        longest = max(window, 2 * sent) if window else inf
        return any(count > min(believable(given), longest) for count, given in used)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            cached_input_tokens=self.cached_input_tokens + other.cached_input_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cache_write_long_tokens=self.cache_write_long_tokens + other.cache_write_long_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            estimated=self.estimated or other.estimated,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """Money, in US dollars."""

    input: float = 0.0
    output: float = 0.0

    @property
    def total(self) -> float:
        """Input and output together."""
        return self.input + self.output

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.input + other.input, self.output + other.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a million tokens cost in calls whose input is longer than ``above`` tokens."""

    input: float
    #: Input read from the provider's prompt cache.
    cached_input: float
    output: float
    above: int = 0
    #: Input written to that cache; None: like any input.
    cache_write: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs: one rate, or several where long inputs cost more."""

    #: By ascending ``above``; the first is 0.
    rates: tuple[Rate, ...]
    #: Where the numbers come from: ``genai-prices`` or ``config``.
    source: str

    def most_expensive(self, input_tokens: int, output_tokens: int) -> Usage:
        """Return the usage of so many tokens that costs most: some bill what they write to their cache above what they read."""
        fresh = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        written = replace(fresh, cache_write_tokens=input_tokens)
        return max(fresh, written, key=lambda usage: self.cost(usage).total)

    def cost(self, usage: Usage) -> Cost:
        """Return the price of one call (of many only where there is one rate)."""
        rate = [r for r in self.rates if r.above < max(usage.input_tokens, 1)][-1]
        fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        write = rate.input if rate.cache_write is None else rate.cache_write
        spent = (
            fresh * rate.input
            + usage.cached_input_tokens * rate.cached_input
            + usage.cache_write_tokens * write
        )
        return Cost(spent / 1e6, usage.output_tokens * rate.output / 1e6)

    def cost_of_many(self, usage: Usage) -> Cost:
        """Return the price of several calls of which only the sums are known.

        Where long inputs cost more, each is taken to have been as long as their average.
        """
        if len(self.rates) == 1 or usage.calls <= 1:
            return self.cost(usage)
        average = usage.input_tokens / usage.calls
        rate = [r for r in self.rates if r.above < max(average, 1)][-1]
        return replace(self, rates=(replace(rate, above=0),)).cost(usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Tokens used, and what they cost."""

    usage: Usage = field(default_factory=Usage)
    #: None: no price is known.
    cost: Cost | None = None
