"""A provider's rate limit: a token bucket over all requests or tokens,
and what it reports of itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """What answers report of a limit."""

    #: ``requests`` or ``tokens``.
    of: str
    most: float
    left: int
    #: Seconds until all is there again.
    whole_s: float


class Limiter:
    """Lets ``rps`` requests a second through, up to ``burst`` at once.
    0 requests a second is no limit.

    Or tokens: then a request costs nothing by itself, and ``spend`` says what it came to.
    """

    def __init__(self, rps: float, burst: float, now: float, of: str = "requests") -> None:
        self.of = of
        self.rps = rps
        self.burst = max(1.0, burst)
        self._left = self.burst
        self._at = now

    def admit(self, now: float) -> bool:
        """Return whether a request may pass; one that may not costs nothing."""
        if not self.rps:
            return True
        self._left = min(self.burst, self._left + (now - self._at) * self.rps)
        self._at = now
        if self._left < 1:
            return False
        if self.of == "requests":
            self._left -= 1
        return True

    def spend(self, tokens: int) -> None:
        """Count the tokens of a request that passed; they may be more than are left."""
        self._left -= tokens

    def limits(self) -> tuple[Limit, ...]:
        """Return what there is to report of it: nothing where it is no limit."""
        if not self.rps:
            return ()
        whole_s = (self.burst - self._left) / self.rps
        return (Limit(self.of, self.burst, max(0, math.floor(self._left)), whole_s),)
