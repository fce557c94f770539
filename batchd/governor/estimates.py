"""What a call may cost at most: our estimate, corrected by what the model's calls came to.

A provider's tokens need not be ours, it may put a prompt of its own before each request, and not every
model keeps to the limit on its output. What is set aside for a call must be enough all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from batchd.governor.provider import Call
from batchd.records import Usage, believable

#: In shorter requests, what a provider adds to each weighs more than how it counts.
_LONG = 1000
#: What a model's calls may come to, as a multiple, while none of them has been answered. A hidden prompt of
#: 5,000 tokens before a short question is seven times what was expected of it.
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
    """Knows each model by its answers."""

    def __init__(self) -> None:
        self._worst: dict[str, _Worst] = {}

    def most(self, call: Call) -> float | None:
        """Return what a call may cost at most, in dollars; None where no price is known."""
        if call.price is None:
            return None
        return call.price.cost(call.price.most_expensive(*self.tokens(call))).total

    def tokens(self, call: Call) -> tuple[int, int]:
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

    def caution(self, call: Call) -> float:
        """Return how many times ``most`` must be there before another call like this goes too."""
        return 1.0 if call.model in self._worst else _UNKNOWN

    def learn(self, call: Call, usage: Usage) -> None:
        """Take what a call came to."""
        worst, given, used = (
            self._worst.get(call.model, _Worst()),
            call.input_tokens,
            usage.input_tokens,
        )
        if given < _LONG:
            worst = replace(worst, extra=max(worst.extra, used - given))
        else:
            worst = replace(worst, factor=max(worst.factor, used / given))
        said = usage.output_tokens / max(call.max_output_tokens, 1)
        self._worst[call.model] = replace(worst, output_factor=max(worst.output_factor, said))
