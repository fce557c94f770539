"""Pauses that double."""

from __future__ import annotations

import pytest

from batchd.pauses import doubled


@pytest.mark.parametrize(
    ("times", "pause_s"), [(0, 0.2), (1, 0.4), (7, 25.6), (8, 30.0), (1024, 30.0), (10**9, 30.0)]
)
def test_a_pause_doubles_up_to_its_longest(times: int, pause_s: float) -> None:
    """Also after months of tries."""
    assert doubled(0.2, 30.0, times) == pytest.approx(pause_s)
