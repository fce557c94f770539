"""Estimates: what a call may cost at most, by what the model's last calls came to.

A provider's tokens need not be ours, it may put a prompt of its own before each request, and not
every model keeps to the limit on its output.
What is set aside for a call must be enough all the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from batchd.errors import NotPossibleError
from batchd.governor.provider_queue import WantedCall
from batchd.records import STANDARD, Price, Usage, believable, highest_cost

#: In shorter requests and answers, what a provider adds to each weighs more than how it counts.
_MIN_TOKENS_FOR_RATIO = 1000
#: What a model's calls may come to, as a multiple, while none of them has been answered. A hidden
#: prompt of 5,000 tokens before a short question is seven times what was expected of it.
_UNKNOWN = 10.0
#: So many of a model's last answers say what its next calls may come to.
_LAST = 20
#: So many of them must have come to as much before a task ends for it: a single one may be wrong.
PROOF = 2
#: Output beyond so many times its limit is no matter of how tokens are counted.
_OVERLONG = 1.5


def _lately() -> deque[float]:
    return deque(maxlen=_LAST)


@dataclass(frozen=True, slots=True)
class _Beyond:
    """How far a model's last answers went beyond our estimates."""

    #: Times the input of long requests, …
    factors: deque[float] = field(default_factory=_lately)
    #: … tokens on top of short ones, …
    extras: deque[float] = field(default_factory=_lately)
    #: … and times the limit on output.
    outputs: deque[float] = field(default_factory=_lately)


def _reached(seen: deque[float], answers: int, least: float) -> float:
    """Return what ``answers`` of those that were seen came to, or exceeded; at least ``least``."""
    return max(least, sorted(seen)[-answers]) if len(seen) >= answers else least


class Estimates:
    """The estimates for each model, corrected by its answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._beyond: dict[str, _Beyond] = {}
        #: Models one of whose last answers was longer than its request allowed: since when.
        self._overlong: dict[str, float] = {}
        #: By model and the tier that was asked for: the others that served its calls all the same.
        self._served: dict[tuple[str, str], set[str]] = {}
        #: Models whose provider keeps what it writes to its cache for long.
        self._kept_long: set[str] = set()

    def most(self, call: WantedCall, answers: int = 1) -> float | None:
        """Return what a call may cost at most, in dollars; None where no price is known.

        ``answers``: so many of the model's last answers came to as much; one is the safest guess.
        """
        long = call.model in self._kept_long
        cost = highest_cost(self._ends(call), *self.tokens(call, answers), long=long)
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

    def tokens(self, call: WantedCall, answers: int = 1) -> tuple[int, int]:
        """Return how many tokens of input and of output a call may come to,
        by the model's last answers, of which ``answers`` came to as much.
        """
        beyond = self._beyond.get(call.model, _Beyond())
        given, asked = call.input_tokens, call.max_output_tokens
        factor, extra = _reached(beyond.factors, answers, 1), _reached(beyond.extras, answers, 0)
        most = max(math.ceil(given * factor), given + int(extra))
        output = math.ceil(asked * _reached(beyond.outputs, answers, 1))
        # What was learnt from a short request is not stretched to a long one.
        return min(most, believable(given)), min(output, believable(asked))

    def caution(self, call: WantedCall) -> float:
        """Return how many times ``most`` must be there before another call like this goes too."""
        return 1.0 if call.model in self._beyond else _UNKNOWN

    def learn(self, call: WantedCall, usage: Usage, tier: str) -> str:
        """Take what a call came to, and which tier served it.

        Return what is news to people of a model that writes more than it is asked for.
        """
        if tier != call.tier:
            self._served.setdefault((call.model, call.tier), set()).add(tier)
        if usage.cache_write_long_tokens:
            self._kept_long.add(call.model)
        beyond, given = self._beyond.setdefault(call.model, _Beyond()), call.input_tokens
        if given < _MIN_TOKENS_FOR_RATIO:
            beyond.extras.append(usage.input_tokens - given)
        else:
            beyond.factors.append(usage.input_tokens / given)
        times = usage.output_tokens / max(call.max_output_tokens, 1)
        beyond.outputs.append(times)
        if max(beyond.outputs) <= _OVERLONG:
            self._overlong.pop(call.model, None)
        elif times <= _OVERLONG or usage.output_tokens < _MIN_TOKENS_FOR_RATIO:
            return ""
        elif call.model not in self._overlong:
            self._overlong[call.model] = self._clock()
            return self._words(call.model)
        return ""

    def forgive(self) -> None:
        """Forget which models write too much, until an answer shows it again: the configuration
        has changed. What is set aside for their calls stays by their last answers.
        """
        self._overlong.clear()

    def overlong(self) -> tuple[NotPossibleError, float] | None:
        """Return what is wrong where a model writes more than it is asked for, and since when."""
        found = ((NotPossibleError(self._words(m)), at) for m, at in self._overlong.items())
        return next(found, None)

    def _words(self, model: str) -> str:
        """Return what a model does that writes more than it is asked for, and the fix."""
        times = max(self._beyond[model].outputs)
        return (
            f"an answer of {model} has {times:.1f} times the tokens that its request allows, and is booked so: "
            f"set output_limit_field in [providers.{model.partition('/')[0]}] to the field that limits them, "
            "or raise max_output_tokens"
        )
