"""The stand-in's rate limit, which the 429 storm is measured against."""

from __future__ import annotations

from standin.dialects import openai
from standin.limiter import Limiter


def _headers(limiter: Limiter) -> dict[str, str]:
    return openai.limit_headers(limiter.limits())


def test_a_burst_passes_then_the_rate_holds() -> None:
    """At most the burst at once, and over time never more
    than rate times time beyond it, however one asks.
    """
    limiter = Limiter(rps=20, burst=20, now=0)
    assert [limiter.admit(0) for _ in range(25)] == [True] * 20 + [False] * 5
    admitted = sum(limiter.admit(step / 1000) for step in range(1, 4001))
    assert 78 <= admitted <= 80


def test_rest_fills_the_bucket_and_no_further() -> None:
    """After a long rest the burst is free again, but no more than that."""
    limiter = Limiter(rps=5, burst=3, now=0)
    assert sum(limiter.admit(0) for _ in range(9)) == 3
    assert sum(limiter.admit(1000) for _ in range(9)) == 3


def test_refused_requests_cost_nothing() -> None:
    """Asking in vain does not put off the next free place."""
    limiter = Limiter(rps=1, burst=1, now=0)
    assert limiter.admit(0)
    assert not any(limiter.admit(n / 100) for n in range(1, 100))
    assert limiter.admit(1.001)


def test_the_headers_are_a_providers() -> None:
    """Limit, what is left, and the time until it is whole again, in OpenAI's own notation."""
    limiter = Limiter(rps=0.5, burst=100, now=0)
    for _ in range(60):
        limiter.admit(0)
    assert _headers(limiter) == {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-reset-requests": "2m0s",
    }
    limiter.admit(119)
    assert _headers(limiter)["x-ratelimit-reset-requests"] == "3s"
    assert _headers(Limiter(rps=0, burst=1, now=0)) == {}
    assert all(Limiter(rps=0, burst=1, now=0).admit(0) for _ in range(9))


def test_a_fraction_of_a_second_is_shown_in_milliseconds() -> None:
    """One request behind at twenty a second is whole again in 50 ms."""
    limiter = Limiter(rps=20, burst=20, now=0)
    limiter.admit(0)
    assert _headers(limiter)["x-ratelimit-reset-requests"] == "50ms"


def test_tokens_are_spent_afterwards_and_may_go_below_nothing() -> None:
    """As providers do that know the output only then:
    the debt is waited for, and the headers say 0.
    """
    limiter = Limiter(rps=100, burst=1000, now=0, of="tokens")
    assert all(limiter.admit(0) for _ in range(9))
    limiter.spend(1500)
    assert not limiter.admit(4.9)
    assert _headers(limiter)["x-ratelimit-remaining-tokens"] == "0"
    assert limiter.admit(5.1)
