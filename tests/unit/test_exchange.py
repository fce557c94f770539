"""What a server's headers say of the connection that they came over."""

from __future__ import annotations

import pytest

from batchd.llm import exchange


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("timeout=5, max=1000", 4.0),
        ("max=100, timeout = 65", 55.0),  # a firewall on the way may be faster
        ('Timeout="30"', 29.0),
        ("timeout=1", 0.5),
        ("timeout=0", 0.0),
        ("timeout=9999999", None),  # no number of seconds that anyone means
        ("timeout=soon", None),
        ("idle-timeout=5", None),
        ("max=7", None),
        ("", None),
    ],
)
def test_a_connection_is_closed_before_its_server_does_it(said: str, seconds: float | None) -> None:
    """By a second, or by half of the time; what is no number of seconds says nothing."""
    assert exchange.idle_s({"keep-alive": said}) == seconds
    assert exchange.idle_s({}) is None
