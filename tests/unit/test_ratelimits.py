"""Rate limits in the headers of answers, in the dialects of the providers."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from batchd.governor.pacing import Pace
from batchd.llm import exchange, failures
from batchd.records import RateLimit


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        (
            {  # OpenAI
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-remaining-requests": "499",
                "x-ratelimit-reset-requests": "120ms",
                "x-ratelimit-limit-tokens": "30000",
                "x-ratelimit-remaining-tokens": "24000",
                "x-ratelimit-reset-tokens": "1m12s",
            },
            (("requests", 500, 499, 0.12, False), ("tokens", 30000, 24000, 72.0, False)),
        ),
        (
            {  # a gateway after the IETF's draft
                "ratelimit-limit": "100, 100;w=60",
                "ratelimit-remaining": "7",
                "ratelimit-reset": "42",
            },
            (("requests", 100, 7, 42.0, True),),
        ),
        # Half of it says nothing.
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-limit-requests": "5"}, ()),
        ({"x-ratelimit-limit": "many", "x-ratelimit-remaining": "", "x-ratelimit-reset": "1"}, ()),
        ({"content-type": "application/json", "retry-after": "1"}, ()),
    ],
)
def test_limits_as_headers_give_them(
    headers: dict[str, str], limits: tuple[tuple[str, float, float, float, bool], ...]
) -> None:
    """What is of requests and what of tokens, what is left, and when it is whole again."""
    found = [
        (x.of, x.limit, x.remaining, x.reset_s, x.window) for x in exchange.rate_limits(headers)
    ]
    assert found == list(limits)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("anthropic-ratelimit-{}-{}", "requests"),
        ("anthropic-ratelimit-{}-{}", "tokens"),
    ],
)
def test_moments_become_seconds(name: str, limit: str) -> None:
    """Anthropic names the moment, not the wait."""
    at = datetime.now(UTC) + timedelta(seconds=30)
    values = {"limit": "50", "remaining": "1", "reset": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    (found,) = exchange.rate_limits(
        {name.format(limit, key): value for key, value in values.items()}
    )
    assert found.reset_s == pytest.approx(30, abs=2)
    assert (found.of, found.limit, found.remaining, found.window) == (limit, 50, 1, False)
    assert found.spares_cache == (limit == "tokens"), "cache reads use up no tokens there"


def test_milliseconds_since_the_epoch_are_a_window_of_requests() -> None:
    """OpenRouter's way."""
    at = (datetime.now(UTC) + timedelta(seconds=30)).timestamp() * 1000
    headers = {
        "x-ratelimit-limit": "20",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(int(at)),
    }
    (found,) = exchange.rate_limits(headers)
    assert isinstance(found, RateLimit)
    assert found.reset_s == pytest.approx(30, abs=2)
    assert found.window


@pytest.mark.parametrize("name", ["limit", "remaining", "reset"])
def test_numbers_beyond_all_bounds_are_none(name: str) -> None:
    """What a header says of infinity has no place in JSON:
    a message that held it would cost the worker its life.
    """
    headers = {"limit": "20", "remaining": "0", "reset": "1s", name: f"{'9' * 400}s"}
    assert exchange.rate_limits({f"x-ratelimit-{key}": text for key, text in headers.items()}) == ()
    assert failures.retry_after({"retry-after": f"{'9' * 400}s"}) is None


@pytest.mark.parametrize("zone", ["America/New_York", "Pacific/Kiritimati"])
def test_no_header_raises_whatever_it_says(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paid answer comes with it. What it comes to is finite; a date without a zone is UTC."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        chance = random.Random(1)  # the same odd values each time
        for _ in range(500):
            headers = {name: _odd(chance) for name in _HEADERS}
            assert (failures.retry_after(headers) or 0) < inf
            assert (failures.until_reset(headers, f"try again in {_odd(chance)}") or 0) < inf
            assert (exchange.idle_s(headers) or 0) < inf
            pace = Pace()
            pace.heard(exchange.rate_limits(headers), 1.0)
            assert pace.ready_at(1.0, 100.0) < inf
        at = datetime.now(UTC) + timedelta(seconds=30)
        for form in ("%Y-%m-%d %H:%M:%S", "%a, %d %b %Y %H:%M:%S"):
            assert failures.seconds(at.strftime(form)) == pytest.approx(30, abs=2)
    finally:
        monkeypatch.undo()
        time.tzset()


_HEADERS = (
    *("retry-after", "retry-after-ms", "keep-alive"),
    *(f"x-ratelimit-{field}-tokens" for field in ("limit", "remaining", "reset")),
    *(f"ratelimit-{field}" for field in ("limit", "remaining", "reset")),
)
_ODD = (
    *("0001-01-01T00:00:00", "9999-12-31T23:59:59", "2026-11-30T13:00:00+23:59:59", "20261130"),
    *("Mon, 01 Jan 0001 00:00:00 GMT", "Wed, 21 Oct 2026 07:28:00 -9999", "1h2m3s", "100;w=60"),
    *("1e400", "5e-324", "nan", "-inf", "", " ", "0x10", "\u0663", "1_000", "9" * 400),
    *("timeout=5, max=100", "timeout=99999999"),
)


def _odd(chance: random.Random) -> str:
    """Return an odd value of a header, perhaps with a character changed."""
    value = chance.choice(_ODD)
    at = chance.randrange(len(value) + 1)
    return value[:at] + chance.choice(["", "", *"09-+:,;e \0\xe9"]) + value[at + 1 :]
