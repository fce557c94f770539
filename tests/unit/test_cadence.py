"""The cadence of looks that recur."""

from __future__ import annotations

import itertools

import pytest

from batchd import pauses

_PERIODS_S = (1.0, 2.0, 5.0, 10.0)


def _looks(every_s: float, begun: float, until: float) -> list[float]:
    """Return when looks fall that recur from ``begun`` on, each made in no time."""
    now = begun
    found = []
    while (now := now + pauses.until_next(every_s, now)) <= until:
        found.append(round(now, 6))
    return found


def test_looks_fall_together_whenever_they_began() -> None:
    """Four that began at four moments wake their process no more often than the most frequent."""
    begun = (1000.1, 1000.7, 1001.3, 1003.9)
    looks = [_looks(every_s, at, 1100.0) for every_s, at in zip(_PERIODS_S, begun, strict=True)]
    assert set(itertools.chain(*looks)) == set(looks[0])
    assert [len(each) for each in looks] == [100, 50, 20, 10]


@pytest.mark.parametrize("every_s", [*_PERIODS_S, 0.275, 1 / 3])
def test_a_pause_is_never_none_and_no_longer_than_its_period(every_s: float) -> None:
    """Also where a look is made at the very instant at which it is due, or just before."""
    for number in range(1000):
        due = number * every_s
        for now in (due, due + every_s / 7, due + every_s - 1e-9):
            assert 0 < pauses.until_next(every_s, now) <= every_s
