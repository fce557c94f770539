"""Batches that say how many of their tasks work at a time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dropping import batch_done, submit

from batchd import config
from batchd.daemon import Daemon, Listener
from batchd.errors import TaskFileError
from batchd.events import Terms
from batchd.records import Batch, Ref
from batchd.spool import taskfile

_CONFIG = """\
[agent]
model = "standin/steps-2"
[providers.standin]
base_url = "{base_url}"
[pool]
processes = 2
agents_per_process = 4
[evaluation]
by = "none"
"""


class AtWork(Listener):
    """Counts the tasks at work, by batch."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[str] = []

    def task_dispatched(self, ref: Ref, batch: Batch, terms: Terms) -> None:
        """A task has begun, or goes on."""
        self.now[ref.batch] += 1
        self.most[ref.batch] = max(self.most[ref.batch], self.now[ref.batch])
        self.order.append(str(ref))

    def task_left(self, ref: Ref) -> None:
        """It has ended, or gave its slot back."""
        if self.now[ref.batch]:
            self.now[ref.batch] -= 1


def _file(count: int, **more: Any) -> bytes:
    tasks = [{"first_prompt": f"task {i}", "priority": int(i == 3)} for i in range(count)]
    return json.dumps({"tasks": tasks, **more}).encode()


def test_a_batch_is_held_to_how_many_of_its_tasks_may_work(
    tmp_path: Path, slow_server: str
) -> None:
    """One at a time by priority, then order, while another batch fills the other slots;
    also after a restart.
    """
    (tmp_path / "config.toml").write_text(_CONFIG.format(base_url=slow_server))
    settings = config.load(tmp_path / "config.toml", {})
    seen = AtWork()

    async def begin() -> None:
        async with Daemon(settings, watch=False, listeners=[seen]) as daemon:
            await submit(daemon, "serial.json", _file(5, parallel=1))
            await submit(daemon, "wide.json", _file(6))
            await batch_done(daemon, "wide")

    async def go_on() -> None:
        async with Daemon(settings, watch=False, listeners=[seen]) as daemon:
            await batch_done(daemon, "serial")

    asyncio.run(begin())
    asyncio.run(go_on())
    assert seen.most["serial"] == 1
    assert seen.most["wide"] > 2
    begun = dict.fromkeys(name for name in seen.order if name.startswith("serial/"))
    assert list(begun)[:2] == ["serial/004", "serial/001"]
    assert len(begun) == 5
    summary = json.loads((tmp_path / "outbox/serial/summary.json").read_text())
    assert summary["counts"]["completed"] == 5


def test_nonsense_is_refused_with_its_place() -> None:
    """A batch that no task of could work is an error, and so is a task that says it of itself."""
    with pytest.raises(TaskFileError, match="parallel"):
        taskfile.parse(_file(1, parallel=0), "b.json", config.Config())
    nested = {"tasks": [{"first_prompt": "x", "parallel": 2}]}
    with pytest.raises(TaskFileError, match=r"tasks\[0\].parallel"):
        taskfile.parse(json.dumps(nested).encode(), "b.json", config.Config())


def test_a_task_that_waits_for_something_else_takes_no_turn(spool: Any) -> None:
    """One that is paused, or cancelled before it began, keeps none of its batch from going on."""
    tasks = [{"first_prompt": "x", "model": "standin/hang"}, *[{"first_prompt": "x"}] * 3]
    folder = spool.folder / "outbox/row"
    with spool.serving():
        spool.batchd("submit", spool.write("row.json", tasks, parallel=1))
        spool.eventually(lambda: "model asked" in spool.batchd("status", "row/001").stdout)
        assert spool.batchd("pause", "row/002").returncode == 0
        assert spool.batchd("cancel", "row/003").returncode == 0
        assert spool.batchd("cancel", "row/001").returncode == 0
        spool.eventually((folder / "004.json").exists)
        assert not (folder / "002.json").exists()
        assert spool.batchd("resume", "row/002").returncode == 0
        spool.eventually((folder / "summary.json").exists)
    ended = [spool.result("row", name)["status"] for name in ("001", "002", "003", "004")]
    assert ended == ["cancelled", "completed", "cancelled", "completed"]
