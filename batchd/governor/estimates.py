"""Estimates of what a call may cost at most, corrected by what the model's calls came to.

A provider's tokens need not be ours, it may put a prompt of its own before each request, and not
every model keeps to the limit on its output.
What is set aside for a call must be enough all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from batchd.governor.provider_queue import WantedCall
from batchd.records import STANDARD, Price, Usage, believable, dearest

#: In shorter requests, what a provider adds to each weighs more than how it counts.
_MIN_TOKENS_FOR_RATIO = 1000
#: What a model's calls may come to, as a multiple, while none of them has been answered. A hidden
#: prompt of 5,000 tokens before a short question is seven times what was expected of it.
_UNKNOWN = 10.0


@dataclass(frozen=True, slots=True)
class _Worst:
    """How far a model's calls went beyond our estimates."""

    #: Times the input of long requests, …
    factor: float = 1.0
    #: … tokens on top of short ones, …
    extra: int = 0
    #: … and times the limit on output.
    output_factor: float = 1.0


class Estimates:
    """The estimates for each model, corrected by its answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._worst: dict[str, _Worst] = {}
        #: By model and the tier that was asked for: the others that served its calls all the same.
        self._served: dict[tuple[str, str], set[str]] = {}
        #: Models whose provider keeps what it writes to its cache for long.
        self._kept_long: set[str] = set()

    def most(self, call: WantedCall) -> float | None:
        """Return what a call may cost at most, in dollars; None where no price is known."""
        long = call.model in self._kept_long
        cost = dearest(self._ends(call), *self.tokens(call), long=long)
        return None if cost is None else cost.total

    def _ends(self, call: WantedCall) -> list[Price | None]:
        """Return the prices at which a call may end.

        Its tier's, the standard one where it may fall back to that, and those that served such
        calls before; of one without a known price what was set aside is booked. Each at all hours
        until the call's time is over.
        """
        if call.price is None:
            return [None]
        tiers = [call.tier] if call.fallback_s is None else [call.tier, STANDARD]
        served, now = self._served.get((call.model, call.tier), ()), self._clock()
        hourly = call.price.between(now, now + call.timeout_s)
        others = [price.at(tier) for price in hourly for tier in served]
        return [*(price.at(tier) for price in hourly for tier in tiers), *filter(None, others)]

    def tokens(self, call: WantedCall) -> tuple[int, int]:
        """Return how many tokens of input and of output a call may come to."""
        worst, given, asked = (
            self._worst.get(call.model, _Worst()),
            call.input_tokens,
            call.max_output_tokens,
        )
        most = max(math.ceil(given * worst.factor), given + worst.extra)
        output = math.ceil(asked * worst.output_factor)
        # What was learnt from a short request is not stretched to a long one.
        return min(most, believable(given)), min(output, believable(asked))

    def caution(self, call: WantedCall) -> float:
        """Return how many times ``most`` must be there before another call like this goes too."""
        return 1.0 if call.model in self._worst else _UNKNOWN

    def learn(self, call: WantedCall, usage: Usage, tier: str) -> None:
        """Take what a call came to, and which tier served it."""
        if tier != call.tier:
            self._served.setdefault((call.model, call.tier), set()).add(tier)
        if usage.cache_write_long_tokens:
            self._kept_long.add(call.model)
        worst, given, used = (
            self._worst.get(call.model, _Worst()),
            call.input_tokens,
            usage.input_tokens,
        )
        said = usage.output_tokens / max(call.max_output_tokens, 1)
        self._worst[call.model] = _Worst(
            extra=worst.extra if given >= _MIN_TOKENS_FOR_RATIO else max(worst.extra, used - given),
            factor=worst.factor
            if given < _MIN_TOKENS_FOR_RATIO
            else max(worst.factor, used / given),
            output_factor=max(worst.output_factor, said),
        )
