"""The waits that providers ask of their clients, in the many ways of saying so."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_UNITS: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_STEP = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
#: OpenAI: "Please try again in 6m0s.", Gemini: "Please retry in 34.07s.", "retryDelay": "34s".
_IN_TEXT = re.compile(
    r'(?:try again in|retry in|"retryDelay":\s*")\s*((?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d)[a-z]*\s*)+)'
)
#: A number above this is a moment since the epoch, not a duration.
_EPOCH_S = 1e9
_EPOCH_MS = 1e12
#: A provider that asks for more, as by mistake, is asked again after a year (seconds).
_MAX_WAIT_S = 365 * 86400.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``retry-after-ms`` or ``retry-after`` ask for; None: they do not."""
    milliseconds = _float(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    return seconds(headers.get("retry-after"))


def until_reset(headers: Mapping[str, str], body: str) -> float | None:
    """Return the seconds until what ran out is there again, after a 429 without Retry-After.

    Only limits whose remaining count is 0, or not given, matter: the others' reset says when they
    will be full, not when there is something left.
    """
    waits = [
        seconds(value)
        for name, value in headers.items()
        if "ratelimit" in name and "reset" in name and _ran_out(headers, name)
    ]
    if known := [w for w in waits if w is not None]:
        return max(known)
    found = _IN_TEXT.search(body)
    return _duration(found.group(1)) if found else None


def _bounded(wait_s: float) -> float:
    return min(max(0.0, wait_s), _MAX_WAIT_S)


def _ran_out(headers: Mapping[str, str], name: str) -> bool:
    remaining = _float(headers.get(name.replace("reset", "remaining")))
    return remaining is None or remaining <= 0


def seconds(value: str | None) -> float | None:
    """Return the seconds that a number, a duration, a moment or a date stand for."""
    if value is None:
        return None
    number = _float(value)
    if number is not None:
        if number >= _EPOCH_MS:
            number = number / 1000 - time.time()
        elif number >= _EPOCH_S:
            number -= time.time()
        return _bounded(number)
    duration = _duration(value)
    return _date(value) if duration is None else duration


def _float(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _duration(value: str) -> float | None:
    """Return the seconds of ``1h2m3s``, ``250ms`` and the like."""
    value = value.strip().lower()
    steps = _STEP.findall(value)
    if not steps or not _STEP.match(value):
        return None
    total = sum(float(number) * _UNITS[unit] for number, unit in steps)
    return _bounded(total) if math.isfinite(total) else None


def _date(value: str) -> float | None:
    """Return the seconds until an HTTP date, or an ISO one (anthropic); UTC if it has no zone."""
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
    # In this machine's zone the first and the last days of the calendar would be none.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _bounded(moment.timestamp() - time.time())
