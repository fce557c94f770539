"""`batchd logs` of one task: a conversation, in a pipe and on a terminal, whole and live."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loglines import logged
from teletype import Teletype

from batchd.cli import logs
from batchd.events import Event, TaskFinished
from batchd.records import Batch, Reason, Ref, Task, TaskStatus
from batchd.store import operations
from batchd.store.queries import StoreReader
from batchd.store.rows import TaskRow
from batchd.store.store import Store
from batchd.store.task_transaction import TaskTransaction
from tests.integration.test_control import Control

pytestmark = pytest.mark.in_turns

#: Renames a terminal's window, wipes it, and shows progress.
EVIL = r"printf '\033]0;owned\007\033[2J'; printf '10 %%\r100 %%\r\n\033[32mgreen\033[0m\n'; exit 1"


@pytest.fixture
def at(spool: Any) -> Control:
    """A spool to work on."""
    return Control(spool)


def test_one_task_reads_as_a_conversation(at: Control) -> None:
    """Prompt, answers with tokens, folded outputs, verdicts,
    the end with its cost; no byte that steers a terminal.
    """
    with at.spool.serving():
        # Its outputs have 2,500 lines; the last is longer than a line.
        at.drop(
            "docs", [{"model": "standin/flood-1", "check": EVIL, "limits": {"max_iterations": 1}}]
        )
        at.until_finished("docs")
    text = at.order("logs", "docs/001")
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]
    assert lines[:2] == ["· model standin/flood-1", "▸ prompt"]
    assert re.fullmatch(r"▸ agent  [\d,]+ in, [\d,]+ out( · \d\.\d s)?", lines[3])
    assert lines[4].startswith("$ shell seq 00001 02500")
    assert lines[5:9] == ["  │ 1", "  │ 2", "  │ 3", "  │ 4"]
    assert re.fullmatch(r"  │ … [\d,]+ lines folded …", lines[9])
    assert lines[10:14] == [f"  │ {n}" for n in range(2497, 2501)]
    assert "✗ check: not done" in text
    assert r"\x1b]0;owned\x07\x1b[2J100 %" in text or "  100 %" in text
    assert "  green" in lines
    assert re.search(
        r"✗ not accepted after 1 round  2 calls · [\d,]+ in, .* · \$\d|cost unknown", text
    )
    assert text.isprintable() or not set(text) & {
        chr(n) for n in (*range(9), 11, *range(13, 32), 127)
    }
    assert "folded" not in at.order("logs", "--full", "docs/001")
    assert "You work" in at.order("logs", "--full", "docs/001") or "· model" in text
    assert "task_started" in at.order("logs", "--lines", "docs/001")
    assert "task_started" in at.order("logs", "docs")
    assert at.spool.batchd("logs", "--lines", "--json", "docs/001").returncode == 2


@pytest.mark.parametrize("command", ["serve", "run"])
def test_the_log_has_each_step_where_details_are_wanted(spool: Any, command: str) -> None:
    """What the agent does next, each permit with its wait,
    what things took; nothing of a prompt.
    """
    task = {"first_prompt": "Whisper it.", "check": "true", "limits": {"max_iterations": 1}}
    path = spool.write("t.json", [task])
    text = (spool.folder / "config.toml").read_text()
    (spool.folder / "config.toml").write_text(f'{text}[log]\nlevel = "debug"\n')
    if command == "run":
        done = spool.batchd("run", path)
        assert done.returncode == 0
        (spool.folder / "daemon.log").write_text(done.stderr)
    else:
        with spool.serving():
            assert spool.batchd("submit", "--wait", path).returncode == 0
    lines = logged(spool.folder / "daemon.log")
    steps = [(x["step"], x["detail"]) for x in lines if x["event"] == "step_started"]
    assert steps == [
        *(("waiting", "standin/steps-2"), ("model", "standin/steps-2")),
        *(("tool", "echo step 1"), ("waiting", "standin/steps-2"), ("model", "standin/steps-2")),
        ("evaluating", "check"),
    ]
    events = [x["event"] for x in lines if x["event"].startswith(("permit_", "model_", "tool_"))]
    call = ["permit_asked", "permit_granted", "model_called"]
    assert sorted(events) == sorted([*call, "tool_ran", *call])
    granted = [x for x in lines if x["event"] == "permit_granted"]
    assert all(x["waited_s"] >= 0 and x["reserved_usd"] > 0 and x["worker"] for x in granted)
    timed = {"model_called", "tool_ran", "round_evaluated"}
    assert all("seconds" in x for x in lines if x["event"] in timed)
    assert any(x["event"] == "question_answered" for x in lines)
    assert "Whisper" not in str(lines)


def test_it_is_shown_live(at: Control) -> None:
    """On a terminal in its width and in colours, with what is done right now on the last line;
    that is gone at the end.
    """
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


class _Looks(logs.Printer):
    """Stores something before the third look, and ends the sixth."""

    def __init__(self, statements: list[str], store: Callable[[], None]) -> None:
        self._statements = statements
        self._store = store
        self.took: list[int] = []
        self.heard: list[str] = []

    def show(self, ref: Ref, event: Event) -> None:
        """Keep whose it is."""
        self.heard.append(f"{ref} {type(event).__name__}")

    def wait(self, row: TaskRow | None) -> None:
        """Count what the look asked the store for."""
        self.took.append(len(self._statements))
        self._statements.clear()
        if len(self.took) == 2:
            self._store()
        if len(self.took) == 6:
            raise KeyboardInterrupt


def test_following_many_tasks_asks_for_what_is_new_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at tasks that wait asks for none of them one by one,
    and where nothing was stored, for nothing at all.
    """
    monkeypatch.setattr(logs, "_POLL_S", 0.0)
    batch = Batch(
        name="b", claim="c", outbox=str(tmp_path), request="request.json", received_at=1.0
    )
    tasks = [Task(id=f"{i:03d}", first_prompt="x", model="a/b") for i in range(200)]
    end = TaskFinished(at=2.0, status=TaskStatus.CANCELLED, reason=Reason.USER, result="{}")
    store = Store(tmp_path / "batchd.db")

    def ends() -> None:
        async def finish() -> None:
            await store.write(TaskTransaction.finish, Ref("b", "007"), end, attempt=None)

        asyncio.run(finish())

    async def add() -> None:
        await store.write(operations.add_batch, batch, tasks)

    asyncio.run(add())
    statements: list[str] = []
    with StoreReader(tmp_path / "batchd.db") as reader:
        reader._db.set_trace_callback(statements.append)
        looks = _Looks(statements, ends)
        with pytest.raises(KeyboardInterrupt):
            logs._follow(reader, "b", "", looks, on=True)
    store.close()
    assert looks.heard == ["b/007 TaskFinished"]
    assert max(looks.took) < 12
    assert looks.took[1] == looks.took[-1] == 1
