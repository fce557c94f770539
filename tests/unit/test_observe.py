"""Words and looks that all faces share: `status`, `top`, the web page, messages, the report."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from batchd import control, words
from batchd.cli.display import status_text
from batchd.control import requests
from batchd.log import Action
from batchd.observe import standstill
from batchd.observe.standstill import WaitReasons
from batchd.observe.status import Speed, Status
from batchd.records import Batch, Cause, Parking, Ref, Scope, Tally, TaskStatus
from batchd.store.rows import BatchRow, TaskRow
from batchd.version import __version__
from batchd.words import money

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


def said(answer: dict[str, Any]) -> control.DaemonStatus:
    """Return what a daemon has said, as it is understood here."""
    return requests.answer(control.AskStatus(), answer)


@pytest.mark.parametrize(
    ("usd", "shown"),
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
def test_money_is_shown_in_digits_that_matter(usd: float | None, shown: str) -> None:
    """As the pages show it: nothing that was spent is shown as nothing, and dollars have cents."""
    assert money(usd) == shown


def test_old_daemons_are_distinguished_from_new_ones() -> None:
    """One line says which is which and what to restart; of the same version, nothing."""
    assert standstill.differs(__version__) == ""
    old = standstill.differs("0.0.9")
    assert "restart the daemon" in old
    assert f"batchd 0.0.9, this program is {__version__}" in old
    assert "restart the daemon" in standstill.differs("")
    new = standstill.differs("99.10.0")
    assert "newer than this program" in new
    assert "restart the daemon" not in new


def test_the_time_left_is_of_what_can_run() -> None:
    """What is parked is left, and waits for something else: no pace brings it about."""
    batch = Batch(name="b", claim="", outbox="/o", request="r", received_at=1.0)
    counts = dict.fromkeys([f.name for f in fields(BatchRow)], 0)
    row = BatchRow(
        **{**counts, "batch": batch, "tasks": 40, "completed": 10, "problems": (), "tally": Tally()}
    )
    task = dict.fromkeys([f.name for f in fields(TaskRow)], 0)
    running = TaskRow(
        **{**task, "ref": Ref("b", "1"), "status": TaskStatus.RUNNING, "step": "", "tally": Tally()}
    )
    speed = Speed(over_s=60, tasks_a_minute=2, tokens_a_minute=0, usd_a_minute=0)
    now = {"batches": (row,), "speed": speed, "agents": (running,)}
    assert Status(daemon=said(OLD), **now).seconds_left == 15 * 60
    assert Status(daemon=said(OLD), held=6, **now).seconds_left == 12 * 60


def test_a_table_of_tasks_names_what_is_parked_and_leaves_its_reason_to_the_line_above() -> None:
    """The reason of a provider stands once above the table, a task's own stands at the task."""
    provider = Parking(
        scope=Scope.PROVIDER, name="p", cause=Cause.DOWN, message="p/m is out of reach", since=1.0
    )
    own = Parking(scope=Scope.TASK, name="b/1", cause=Cause.PAUSED, message="by ann", since=1.0)
    zeros = dict.fromkeys([f.name for f in fields(TaskRow)], 0)
    named = {
        "ref": Ref("b", "1"),
        "status": TaskStatus.PARKED,
        "model": "p/m",
        "message": "",
        "tally": Tally(),
    }
    task = TaskRow(**{**zeros, **named, "after": (), "needs": "", "attempts": 1})
    (above, _) = words.parked_lines((provider,))
    assert "provider_unavailable: p/m is out of reach" in above
    waiting = WaitReasons((provider,), (), (), daemon=True)
    assert waiting.why(task, brief=True) == "provider p: provider_unavailable"
    assert waiting.why(task) == "provider p: provider_unavailable: p/m is out of reach"
    assert WaitReasons((own,), (), (), daemon=True).why(task, brief=True) == "paused: by ann"
    table = " ".join(status_text.tasks([task], {}, waiting, {}))
    assert "provider p: provider_unavailable" in table
    assert "out of reach" not in table


def test_each_trouble_has_words() -> None:
    """No name of the log's reaches people."""
    for action in Action:
        if action.endswith("_trouble") and action is not Action.REPORT_TROUBLE:  # which passes
            assert "_" not in standstill.what(control.OpenTrouble(action, "", 0.0, "")), action


def test_daemons_of_other_versions_are_understood() -> None:
    """One from before an upgrade leaves out what it does not know; a newer one says more."""
    old = Status(daemon=said(OLD))
    assert old.daemon is not None
    assert (old.daemon.pid, old.daemon.slots, old.daemon.day) == (4711, 0, None)
    assert [p.status.concurrent for p in old.providers] == [8]
    more = {"limit_usd": 1.0, "spent_usd": 0.5, "reserved_usd": 0.0, "lent_usd": 9.0}
    new = Status(daemon=said(OLD | {"day": more, "providers": {"openai": {"mood": "good"}}}))
    assert new.daemon is not None
    assert new.daemon.day is not None
    assert new.daemon.day.spent_usd == 0.5
