"""What people are told by orders and by `status`: what waits and why, what goes on, and how; with real daemons."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.test_control import HANGS, Control


@pytest.fixture
def at(spool: Any) -> Control:
    """A spool to give orders to."""
    return Control(spool)


def test_a_broken_configuration_stops_nobody_who_only_looks_for_the_daemon(at: Control) -> None:
    """`status`, `logs` and orders reach the daemon by `[paths]` alone, and warn; without a daemon they say what is wrong."""
    path = at.folder / "config.toml"
    text = path.read_text()
    at.drop("games", [HANGS, HANGS])
    with at.spool.serving():
        at.until_running("games", 2)
        path.write_text(f"{text}[limits]\ntimeout_s = -1\n")
        done = at.spool.batchd("status")
        assert (done.returncode, "2 tasks at work" in done.stdout) == (0, True), done.stderr
        assert "timeout_s" in done.stderr
        assert "only its [paths]" in done.stderr
        assert "task_started" in at.order("logs", "games")
        for order in (
            ["pause", "games"],
            ["resume", "games"],
            ["priority", "games", "3"],
            ["cancel", "games/001"],
            ["retry", "games/001"],
            ["prune"],
            ["tune"],
        ):
            at.order(*order)
        # Where not even the paths can be told, nothing is guessed.
        for broken in (f"{text}[limits\n", f'{text}[paths]\nstat = "x"\n'):
            path.write_text(broken)
            assert "config.toml" in at.order("status", code=2)
            at.order("cancel", "games", code=2)
    path.write_text(f"{text}[limits]\ntimeout_s = -1\n")
    complaint = at.order("cancel", "games", code=3)
    assert "timeout_s" in complaint
    assert "no daemon runs" in complaint
