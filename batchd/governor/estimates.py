"""What a call may cost at most: our estimate, corrected by what the model's calls came to.

A provider's tokens need not be ours, it may put a prompt of its own before each request, and not every
model keeps to the limit on its output. What is set aside for a call must be enough all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from batchd.governor.provider import Call
from batchd.records import Usage

#: In shorter requests, what a provider adds to each weighs more than how it counts.
_LONG = 1000
#: What a model's calls may come to, as a multiple, while none of them has been answered. A hidden prompt of
#: 5,000 tokens before a short question is seven times what was expected of it.
_UNKNOWN = 10.0
#: More than so many times what was sent, and so many tokens, no request becomes.
_BELIEVED, _BELIEVED_EXTRA = 10, 10_000


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

    def most(self, call: Call, *, believable: bool = False) -> float | None:
        """Return what a call may cost at most, in dollars; None where no price is known.

        ``believable``: no usage counts for that which is far beyond what was sent, as a gateway's mistake may be.
        """
        if call.price is None:
            return None
        worst = self._worst.get(call.model, _Worst())
        given = call.input_tokens
        tokens = max(math.ceil(given * worst.factor), given + worst.extra)
        output = math.ceil(call.max_output_tokens * worst.output_factor)
        if believable:
            tokens = min(tokens, _BELIEVED * given + _BELIEVED_EXTRA)
            output = min(output, _BELIEVED * call.max_output_tokens)
        fresh = Usage(input_tokens=tokens, output_tokens=output)
        # Some bill what they write to their cache above what they read.
        cached = replace(fresh, cache_write_tokens=tokens)
        return max(call.price.cost(usage).total for usage in (fresh, cached))

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
