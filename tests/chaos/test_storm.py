"""The storm in its short form:
a few seconds of all that `make chaos-hour` does for long, under the same judge.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from storm import rage

_SEED = (
    os.environ.get("BATCHD_CHAOS_SEED")
    or os.environ.get("BATCHD_SAMPLE_SEED")
    or str(time.time_ns() % 1_000_000)
)
_SECONDS = float(os.environ.get("BATCHD_CHAOS_STORM_S", "5"))


@pytest.mark.timeout(900 + 2 * _SECONDS)
def test_a_storm_leaves_nothing_undone_lost_or_paid_twice(tmp_path: Path) -> None:
    """Weather, kills, clocks, orders, files and disks at random:
    each file is taken, each task ends once, each call is accounted for.

    Whatever could move does so within a minute, and nothing that was published ever changes.
    """
    figures = rage(tmp_path, _SEED, _SECONDS, min(_SECONDS, 60.0))
    print(f"\nseed {_SEED}: {figures}")
    assert not figures.faults, f"seed {_SEED}:\n" + "\n".join(figures.faults)
    assert figures.files
