"""Rate limits, as providers report them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

#: What a rate limit counts.
Metered: TypeAlias = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """One limit, as the headers of an answer give it. Never stored."""

    of: Metered
    limit: float
    #: What may still go at once.
    remaining: float
    #: Seconds until all of it is there again.
    reset_s: float
    #: Whether it is there again all at once, not bit by bit.
    window: bool = False
    #: Whether what is read from the provider's cache uses none of it up.
    spares_cache: bool = False
