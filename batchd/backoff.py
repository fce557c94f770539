"""Pauses that double: between tries of what fails for hours, or for months."""

from __future__ import annotations

#: A power of two beyond a thousand is no float any more,
#: and no pause of ours is as long as this one.
_MOST_TIMES = 64


def doubled(first_s: float, longest_s: float, times: int) -> float:
    """Return a pause in seconds:
    ``first_s``, doubled so many ``times``, and no more than ``longest_s``.
    """
    return min(longest_s, first_s * 2.0 ** min(times, _MOST_TIMES))
