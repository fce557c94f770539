"""Tokens and money."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from math import inf
from typing import Final, Literal, TypeAlias, get_args

from msgspec import Struct, field
from msgspec.structs import asdict, replace

#: The service tiers that a call may ask for.
#: What serves it may be another one, by the provider's own name.
Tier: TypeAlias = Literal["standard", "flex", "priority"]
STANDARD: Final = "standard"
TIERS: tuple[Tier, ...] = get_args(Tier)


def sold_as(model: str, tier: Tier) -> str:
    """Return how a model is called at a service tier, which has outages of its own:
    ``PROVIDER/MODEL@TIER``, or as ever at the standard one.
    """
    return model if tier == STANDARD else f"{model}@{tier}"


def untiered(name: str) -> str:
    """Return the model of such a name; names of models may have an @ of their own."""
    model, _, tier = name.rpartition("@")
    return model if model and tier in TIERS else name


#: What writing to a cache that keeps it long costs at most, times other input, where no price is
#: listed: OpenAI's twelve hours cost as much, Anthropic's hour costs twice.
_LONG_WRITE = 2.5
#: Less than this, in dollars, is what is left of a sum of fractions, and no money.
_ROUNDING_ERROR = 1e-12
#: A provider's count of a request may be so many times ours.
_MISCOUNT = 1.1
#: Where a price changes with the hour: within so many seconds of that moment, by our clock, a
#: provider may bill either.
_EDGE_S = 120.0
_DAY_S, _WEEK = 86400.0, 7
#: More than so many times what was sent or asked for, and so many tokens, no call comes to.
_BELIEVED, _BELIEVED_EXTRA = 10, 10_000


def dollars(usd: float) -> str:
    """Return money in the digits that matter, as pages show it too:
    ``$0``, ``$0.00004``, ``$0.0815``, ``$1.23``.
    """
    if abs(usd) < _ROUNDING_ERROR:
        return "$0"
    if usd >= 1:
        return f"${usd:,.2f}"
    if usd >= 0.0001:  # of less, two digits
        return f"${usd:.4f}"
    return "$" + f"{usd:.{1 - math.floor(math.log10(abs(usd)))}f}".rstrip("0")


def believable(tokens: int) -> int:
    """Return how many tokens a provider may at most count,
    or write, where by our count it is ``tokens``.
    """
    return _BELIEVED * tokens + _BELIEVED_EXTRA


class Tokens(Struct, frozen=True, kw_only=True):
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
    #: All input of the calls whose provider says how much of it came from its cache.
    cache_reported_tokens: int = 0
    #: All output, the reasoning included.
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    @property
    def reported_tokens(self) -> int:
        """All input of which a provider says how much came from its cache;
        older journals show it by the cached part alone.
        """
        return self.cache_reported_tokens or (self.input_tokens if self.cached_input_tokens else 0)

    @property
    def cache_share(self) -> float | None:
        """The part of the input that came from the cache, 0 to 1,
        by the provider's figures; None where it has none.
        """
        reported = self.reported_tokens
        return min(self.cached_input_tokens, reported) / reported if reported else None


class Usage(Tokens, frozen=True, kw_only=True):
    """The tokens of a call."""

    #: Whether any of it was counted here because the provider sent no usage.
    estimated: bool = False

    def beyond(self, sent: int, asked: int, window: int) -> bool:
        """Whether no call comes to this that sent and asked for so many tokens,
        of a model with this window (0: unknown).

        The window may be set lower than it is, and a provider counts otherwise than we do:
        what was sent counts twice.
        """
        used = ((self.input_tokens, sent), (self.output_tokens, asked))
        longest = max(window, 2 * sent) if window else inf
        return any(count > min(believable(given), longest) for count, given in used)


class Cost(Struct, frozen=True):
    """Money, in US dollars."""

    input: float = 0.0
    output: float = 0.0

    @property
    def total(self) -> float:
        """Input and output together."""
        return self.input + self.output

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.input + other.input, self.output + other.output)

    def scaled(self, total: float) -> Cost:
        """Return a cost of ``total``, shared out between input and output as this one is."""
        if not self.total:
            return Cost(total)
        return Cost(self.input * total / self.total, self.output * total / self.total)


class Tally(Tokens, frozen=True, kw_only=True):
    """Calls, tokens and money of anything: a task, a batch, a day, a part of the ledger."""

    #: What the provider's cache saved on them.
    cache_saved_usd: float = 0.0
    #: Calls whose tokens were counted here.
    estimated_calls: int = 0
    #: Calls without a known price, which the money does not include.
    unpriced_calls: int = 0
    input_usd: float = 0.0
    output_usd: float = 0.0
    #: Calls that may have been paid without an answer, and what they may have cost.
    unsettled_calls: int = 0
    unsettled_usd: float = 0.0

    @classmethod
    def of_call(cls, usage: Usage, cost: Cost | None, saved: float | None = None) -> Tally:
        """Return the tally of an answered call; ``cost`` None: no price is known."""
        tokens = {**asdict(usage), "cache_reported_tokens": usage.reported_tokens}
        estimated = tokens.pop("estimated")
        return cls(
            **tokens,
            cache_saved_usd=saved or 0.0,
            estimated_calls=usage.calls if estimated else 0,
            unpriced_calls=usage.calls if cost is None else 0,
            input_usd=cost.input if cost else 0.0,
            output_usd=cost.output if cost else 0.0,
        )

    @property
    def known_usd(self) -> float:
        """What the calls came to whose price is known."""
        return self.input_usd + self.output_usd

    @property
    def estimated(self) -> bool:
        """Whether any of it was counted here."""
        return self.estimated_calls > 0

    @property
    def cost_usd(self) -> float | None:
        """What all calls came to; None: a price is missing."""
        return None if self.unpriced_calls else self.known_usd

    @property
    def cache_saved(self) -> float | None:
        """What the cache saved, in dollars; None: that is not known, as of what older versions
        booked.
        """
        unknown = self.cached_input_tokens and not self.cache_saved_usd
        return None if unknown or not self.cache_reported_tokens else self.cache_saved_usd

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in TALLIED})


#: The names of what is summed up; the ledger's columns, too.
TALLIED = Tally.__struct_fields__


class Rate(Struct, frozen=True, kw_only=True):
    """The price of a million tokens in calls whose input is longer than ``above`` tokens."""

    input: float
    #: Input read from the provider's prompt cache.
    cached_input: float
    output: float
    above: int = 0
    #: Input written to that cache; None: like any input.
    cache_write: float | None = None
    #: Input written to be kept there for long; None:
    #: no price is listed, so that the highest there is counts.
    cache_write_long: float | None = None

    def cost(self, usage: Tokens) -> Cost:
        """Return what a usage costs at this rate."""
        kept_long = min(usage.cache_write_long_tokens, usage.cache_write_tokens)
        kept = usage.cache_write_tokens - kept_long
        fresh = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        write = self.input if self.cache_write is None else self.cache_write
        spent = fresh * self.input + usage.cached_input_tokens * self.cached_input + kept * write
        if kept_long:
            spent += kept_long * self._long_write(write)
        return Cost(spent / 1e6, usage.output_tokens * self.output / 1e6)

    def _long_write(self, write: float) -> float:
        if self.cache_write_long is not None:
            return self.cache_write_long
        return max(write, _LONG_WRITE * self.input)


class Hours(Struct, frozen=True, kw_only=True):
    """The hours at which a model has a price of its own, in UTC; days are since 1970-01-01."""

    rates: tuple[Rate, ...]
    tiers: Mapping[str, tuple[Rate, ...]] = field(default_factory=dict)
    #: From this day on.
    since: int = 0
    #: Days of the week, Monday is 0, on which they begin; not on those that are excepted.
    days: tuple[int, ...] = tuple(range(_WEEK))
    excepted: tuple[int, ...] = ()
    #: Minutes of such a day, from … to; beyond 1440: of the day after.
    utc: tuple[tuple[int, int], ...] = ((0, 1440),)

    def hold(self, at: float) -> bool:
        """Whether they hold at a moment."""
        today, second = divmod(at, _DAY_S)
        if today < self.since:
            return False
        for back in (0, 1):
            day, minute = int(today) - back, second / 60 + 1440 * back
            # The first of all days was a Thursday.
            begun = (day + 3) % _WEEK in self.days and day not in self.excepted
            if begun and any(begin <= minute < end for begin, end in self.utc):
                return True
        return False


class Price(Struct, frozen=True, kw_only=True):
    """The price of a model: one rate, or several where long inputs cost more;
    its service tiers at rates of their own.
    """

    #: By ascending ``above``; the first is 0. With ``hours``, those of the most expensive hour.
    rates: tuple[Rate, ...]
    #: Where the numbers come from: ``genai-prices`` or ``config``.
    source: str
    #: The rates of tiers beside the standard one. What a tier costs that is not here, no one knows.
    tiers: Mapping[str, tuple[Rate, ...]] = field(default_factory=dict)
    #: At which hours it is which: of those that hold, the last.
    hours: tuple[Hours, ...] = ()

    def at(self, tier: str) -> Price | None:
        """Return the price under a service tier; None where none is known:
        it is never the standard one in silence.
        """
        if tier == STANDARD:
            return self
        rates = self.tiers.get(tier)
        if not rates:
            return None
        hours = tuple(replace(h, rates=h.tiers.get(tier, rates), tiers={}) for h in self.hours)
        return replace(self, rates=rates, tiers={}, hours=hours)

    def between(self, start: float, end: float) -> tuple[Price, ...]:
        """Return the prices, whatever the hour, at which a call may be billed
        that is sent between two moments; close to a change both hold.
        """
        if not self.hours:
            return (self,)
        start, end = start - _EDGE_S, end + _EDGE_S
        first, last = int(start // _DAY_S) - 1, int(end // _DAY_S)
        # After a week all has been, but for what begins on a later day.
        days = {*range(first, min(last, first + _WEEK + 1) + 1), *(h.since for h in self.hours)}
        minutes = {minute for hours in self.hours for span in hours.utc for minute in span}
        edges = (day * _DAY_S + 60 * minute for day in days for minute in minutes)
        return tuple(map(self.now, (start, *(edge for edge in edges if start < edge <= end))))

    def now(self, at: float) -> Price:
        """Return the price at a moment, whatever the hour."""
        for each in reversed(self.hours):
            if each.hold(at):
                tiers = {**self.tiers, **each.tiers}
                return replace(self, rates=each.rates, tiers=tiers, hours=())
        return replace(self, hours=())

    def sent(self, at: float, usage: Usage) -> Price:
        """Return the price, whatever the hour, of a call that was sent at a moment;
        0: at an unknown one, so that the highest counts.
        """
        if not at or not self.hours:
            return self
        return max(self.between(at, at), key=lambda price: price.cost(usage).total)

    def most(self, input_tokens: int, output_tokens: int, *, long: bool = False) -> Cost:
        """Return the most that a call of so many tokens may cost,
        all of its input written to the cache.

        ``long``: it may be kept there for long, which some bill at twice the price and more.
        """
        fresh = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        usages = [fresh, replace(fresh, cache_write_tokens=input_tokens)]
        if long:
            usages.append(replace(usages[1], cache_write_long_tokens=input_tokens))
        # A little below a mark, the provider's count may well lie behind it.
        rates = {self._rate(input_tokens), self._rate(input_tokens * _MISCOUNT)}
        costs = (rate.cost(usage) for rate in rates for usage in usages)
        return max(costs, key=lambda cost: cost.total)

    def most_expensive(self, input_tokens: int, output_tokens: int) -> Usage:
        """Return the usage of so many tokens that costs most:
        some bill what they write to their cache above what they read.
        """
        fresh = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        written = replace(fresh, cache_write_tokens=input_tokens)
        return max(fresh, written, key=lambda usage: self.cost(usage).total)

    def cost(self, usage: Tokens) -> Cost:
        """Return the price of one call (of many only where there is one rate)."""
        return self._rate(usage.input_tokens).cost(usage)

    def saved(self, usage: Usage) -> float:
        """Return what the cache saved on one call, in dollars:
        less than nothing where it was only written to.
        """
        rate = self._rate(usage.input_tokens)
        plain = replace(
            usage, cached_input_tokens=0, cache_write_tokens=0, cache_write_long_tokens=0
        )
        return rate.cost(plain).input - rate.cost(usage).input

    def cost_of_many(self, usage: Tokens) -> Cost:
        """Return the price of several calls, from their sums alone.

        Where long inputs cost more, each is taken to have been as long as their average.
        """
        if len(self.rates) == 1 or usage.calls <= 1:
            return self.cost(usage)
        return self._rate(usage.input_tokens / usage.calls).cost(usage)

    def _rate(self, input_tokens: float) -> Rate:
        """Return the rate of a call by all of its input:
        behind a mark it counts for every token.
        """
        return [r for r in self.rates if r.above < max(input_tokens, 1)][-1]


def highest_cost(
    prices: Iterable[Price | None], input_tokens: int, output_tokens: int, *, long: bool = False
) -> Cost | None:
    """Return the most that a call may cost which ends at one of these prices;
    None where one of them is not known.
    """
    costs: list[Cost] = []
    for price in prices:
        if price is None:
            return None
        costs.append(price.most(input_tokens, output_tokens, long=long))
    return max(costs, key=lambda cost: cost.total, default=None)
