"""A provider's rate limit: a token bucket over all requests or tokens, with the headers that tell of it."""

from __future__ import annotations

import math
from collections.abc import Mapping


class Limiter:
    """Lets ``rps`` requests a second through, up to ``burst`` at once. 0 requests a second is no limit.

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

    def headers(self) -> Mapping[str, str]:
        """Return what providers tell of the limit with every answer."""
        if not self.rps:
            return {}
        return {
            f"x-ratelimit-limit-{self.of}": f"{self.burst:g}",
            f"x-ratelimit-remaining-{self.of}": str(max(0, math.floor(self._left))),
            f"x-ratelimit-reset-{self.of}": _duration((self.burst - self._left) / self.rps),
        }


def _duration(seconds: float) -> str:
    """Return a duration as OpenAI writes it: ``20ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.3g}s"
