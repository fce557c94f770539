"""Words and looks that all faces share: `status`, `top`, the web page, messages, the report."""

from __future__ import annotations

from typing import Any

import pytest

from batchd.log import Action
from batchd.observe import troubles
from batchd.observe.snapshot import snapshot
from batchd.observe.words import money

#: What a daemon said of itself before there was `top`.
OLD: dict[str, Any] = {
    "pid": 4711,
    "version": "0.0.9",
    "started_at": 1.0,
    "draining": False,
    "batches": {"open": 1},
    "tasks": {"queued": 1, "running": 0, "waiting": 0},
    "providers": {"openai": {"under_way": 1, "waiting": 0, "concurrent": 8}},
    "workers": [],
    "running": [],
}


@pytest.mark.parametrize(
    ("usd", "told"),
    [
        (None, "unknown"),
        (0.0, "$0"),
        (0.00003987, "$0.00004"),
        (0.0000001234, "$0.00000012"),
        (0.0815, "$0.0815"),
        (1.2345, "$1.23"),
        (1234.5, "$1,234.50"),
    ],
)
def test_money_is_told_in_digits_that_matter(usd: float | None, told: str) -> None:
    """As the pages tell it: nothing that was spent is told as nothing, and dollars have cents."""
    assert money(usd) == told


def test_each_trouble_has_words() -> None:
    """No name of the log's reaches people."""
    for action in Action:
        if action.endswith("_trouble") and action is not Action.REPORT_TROUBLE:  # which passes
            assert "_" not in troubles.what({"what": action.value}), action


def test_daemons_of_other_versions_are_understood() -> None:
    """One from before an upgrade leaves out what it does not know; a newer one says more."""
    old = snapshot(OLD)
    assert old.daemon is not None
    assert (old.daemon.pid, old.daemon.slots, old.daemon.day) == (4711, 0, None)
    assert [p.concurrent for p in old.providers] == [8]
    more = {"limit_usd": 1.0, "spent_usd": 0.5, "reserved_usd": 0.0, "lent_usd": 9.0}
    new = snapshot(OLD | {"day": more, "providers": {"openai": {"mood": "good"}}})
    assert new.daemon is not None
    assert new.daemon.day is not None
    assert new.daemon.day.spent_usd == 0.5
