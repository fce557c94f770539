"""`batchd logs` of one task: a conversation, in a pipe and on a terminal, whole and live."""

from __future__ import annotations

import re
import signal
import subprocess
from typing import Any

import pytest
from teletype import Teletype

from tests.integration.test_control import Control

#: Renames a terminal's window, wipes it, and shows progress.
EVIL = r"printf '\033]0;owned\007\033[2J'; printf '10 %%\r100 %%\r\n\033[32mgreen\033[0m\n'; exit 1"


@pytest.fixture
def at(spool: Any) -> Control:
    """A spool to work on."""
    return Control(spool)


def test_one_task_reads_as_a_conversation(at: Control) -> None:
    """Prompt, answers with tokens, folded outputs, verdicts, the end with its cost; no byte that steers a terminal."""
    with at.spool.serving():
        # Its outputs have 2,500 lines; the last is longer than a line.
        at.drop(
            "docs", [{"model": "standin/flood-1", "check": EVIL, "limits": {"max_iterations": 1}}]
        )
        at.until_finished("docs")
    told = at.order("logs", "docs/001")
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in told.splitlines()]
    assert lines[:2] == ["· model standin/flood-1", "▸ prompt"]
    assert re.fullmatch(r"▸ agent  [\d,]+ in, [\d,]+ out( · \d\.\d s)?", lines[3])
    assert lines[4].startswith("$ shell seq 00001 02500")
    assert lines[5:9] == ["  │ 1", "  │ 2", "  │ 3", "  │ 4"]
    assert re.fullmatch(r"  │ … [\d,]+ lines folded …", lines[9])
    assert lines[10:14] == [f"  │ {n}" for n in range(2497, 2501)]
    assert "✗ check: not done" in told
    assert r"\x1b]0;owned\x07\x1b[2J100 %" in told or "  100 %" in told
    assert "  green" in lines
    assert re.search(
        r"✗ timeout, max_iterations  2 calls · [\d,]+ in, .* · \$\d|cost unknown", told
    )
    assert told.isprintable() or not set(told) & {
        chr(n) for n in (*range(9), 11, *range(13, 32), 127)
    }
    assert "folded" not in at.order("logs", "--full", "docs/001")
    assert "You work" in at.order("logs", "--full", "docs/001") or "· model" in told
    assert "task_started" in at.order("logs", "--lines", "docs/001")
    assert "task_started" in at.order("logs", "docs")
    assert at.spool.batchd("logs", "--lines", "--json", "docs/001").returncode == 2


def test_it_is_told_live(at: Control) -> None:
    """On a terminal in its width and in colours, with what is done right now on the last line; that is gone at the end."""
    task = {"model": "standin/latency-0.6+steps-4", "first_prompt": f"{at.folder} " + "word " * 40}
    with at.spool.serving():
        at.drop("live", [task, {"model": "standin/hang"}])
        at.until((at.folder / "outbox/live").exists)
        env = at.spool.environment
        command = at.spool.command("logs", "-f", "live/001")
        with Teletype(command, columns=50, lines=60, env=env) as terminal:
            terminal.until(lambda s: re.search(r"▸ model: standin/latency-0.6\+steps-4, for", s))
            terminal.shows("$ shell echo step 1")
            assert terminal.ends(20) == 0
            screen = terminal.text
            assert "✓ completed\n" in screen
            assert " 4 calls · 4,000 in" in screen
            assert "cost unknown" in screen
            assert "▸ model:" not in screen
            assert screen.count("$ shell") == 3
            assert b"\x1b[32m" in terminal.sent
            wrapped = [line for line in screen.splitlines() if "word word" in line]
            assert len(wrapped) > 3
            assert all(line.startswith("  ") for line in wrapped), screen
        command = at.spool.command("logs", "-f", "live/002")
        with Teletype(command, env={**env, "NO_COLOR": "1"}) as terminal:
            terminal.shows("▸ model: standin/hang, for")
            terminal.type("\x03")
            assert terminal.ends() == 130
            assert "▸ model:" not in terminal.text
            assert b"\x1b[32m" not in terminal.sent
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as follower:
            assert follower.stdout is not None
            assert b"model standin/hang" in follower.stdout.readline()
            follower.send_signal(signal.SIGINT)
            rest = follower.stdout.read()
            assert b"\x1b" not in rest
            assert b"\r" not in rest
