"""The rate limits in the headers of an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from batchd.llm import waits
from batchd.records import Metered, RateLimit

#: By what a limit is of, where its three headers are: OpenAI's names, which most have taken over,
#: and anthropic's. Of these, what went comes back bit by bit.
_GRADUAL: tuple[tuple[Metered, str], ...] = (
    ("requests", "x-ratelimit-{}-requests"),
    ("tokens", "x-ratelimit-{}-tokens"),
    ("requests", "anthropic-ratelimit-requests-{}"),
    ("tokens", "anthropic-ratelimit-tokens-{}"),
)
#: Of whose tokens what is read from the cache uses none up.
_SPARES_CACHE = "anthropic-"
#: Of these, all of it is back at once, when a window ends.
_WINDOWS = ("ratelimit-{}", "x-ratelimit-{}")
_FIELDS = ("limit", "remaining", "reset")
#: Their names written out, as this is read with every answer.
_NAMES: tuple[tuple[Metered, bool, tuple[str, ...]], ...] = (
    *((of, False, tuple(map(name.format, _FIELDS))) for of, name in _GRADUAL),
    *(("requests", True, tuple(map(name.format, _FIELDS))) for name in _WINDOWS),
)
#: ``100, 100;w=60`` is a limit of 100.
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)")


def read(headers: Mapping[str, str]) -> tuple[RateLimit, ...]:
    """Return the limits that an answer's headers give in full; most give none."""
    if not any("ratelimit" in name for name in headers):
        return ()
    return tuple(_read(headers))


def _read(headers: Mapping[str, str]) -> Iterator[RateLimit]:
    for of, window, (limit, remaining, reset) in _NAMES:
        most, left = _number(headers.get(limit)), _number(headers.get(remaining))
        wait = waits.seconds(headers.get(reset))
        if most and left is not None and wait is not None:
            yield RateLimit(
                of=of,
                limit=most,
                remaining=left,
                reset_s=wait,
                window=window,
                spares_cache=of == "tokens" and limit.startswith(_SPARES_CACHE),
            )


def _number(value: str | None) -> float | None:
    found = _NUMBER.match(value or "")
    number = float(found[1]) if found else math.inf
    return number if math.isfinite(number) else None
