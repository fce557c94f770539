"""Rate limits in the headers of answers, in the dialects of the providers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from batchd.llm import rate_limit_headers, waits
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
        (x.of, x.limit, x.remaining, x.reset_s, x.window) for x in rate_limit_headers.read(headers)
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
    (found,) = rate_limit_headers.read(
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
    (found,) = rate_limit_headers.read(headers)
    assert isinstance(found, RateLimit)
    assert found.reset_s == pytest.approx(30, abs=2)
    assert found.window


@pytest.mark.parametrize("name", ["limit", "remaining", "reset"])
def test_numbers_beyond_all_bounds_are_none(name: str) -> None:
    """What a header says of infinity has no place in JSON:
    a message that held it would cost the worker its life.
    """
    headers = {"limit": "20", "remaining": "0", "reset": "1s", name: f"{'9' * 400}s"}
    assert (
        rate_limit_headers.read({f"x-ratelimit-{key}": text for key, text in headers.items()}) == ()
    )
    assert waits.retry_after({"retry-after": f"{'9' * 400}s"}) is None
