"""Nodes in need: no disk, no memory, drained before a preemption. Tasks wait or move; none is lost."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_spools import on_cluster
from loglines import logged
from pools import drop, running, summary
from ray_nodes import Nodes

from tests.conftest import Spool

_TASKS = 48


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head alone, with room for two workers; others are the test's."""
    made = Nodes("hardship")
    try:
        made.start(others=0)
        yield made
    finally:
        made.kill_all()


def at(spool: Spool) -> Counter[str]:
    """Return how many tasks ended on each node."""
    return Counter(line["node"] for line in logged(spool.folder / "daemon.log", "task_finished"))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_node_without_disk_keeps_nobody_waiting(
    short: Path, slow_server: str, nodes: Nodes
) -> None:
    """Its /tmp is full, where Ray keeps its logs and sockets: what cannot run there runs elsewhere."""
    full = 'mount -t tmpfs -o size=24m none /tmp/ray && head -c 20m /dev/zero > /tmp/ray/full; exec "$@"'
    Path("/tmp/ray").mkdir(exist_ok=True)
    spool = on_cluster(short, slow_server, nodes.address)
    nodes.add("unshare", "--mount", "sh", "-c", full, "sh")
    with spool.serving():
        drop(spool, _TASKS)
        assert summary(spool)["counts"]["completed"] == _TASKS
    print("\na node without disk:", dict(at(spool)), troubles(spool))


def test_a_node_that_ray_drains_gives_its_tasks_to_others(
    tmp_path: Path, slow_server: str, nodes: Nodes
) -> None:
    """As before a preemption: its workers go on until the deadline, or until the node is gone."""
    spool = on_cluster(tmp_path, slow_server, nodes.address)
    name = nodes.add()
    with spool.serving():
        drop(spool, _TASKS)
        spool.eventually(lambda: len(set(running(spool).values())) == 2)
        begun = time.monotonic()
        said = nodes.drain(name)
        ended: list[float] = []

        def over() -> bool:
            if not ended and nodes.others[name].poll() is not None:
                ended.append(time.monotonic() - begun)
            return (spool.folder / "outbox/b/summary.json").exists()

        spool.eventually(over)
        assert summary(spool)["counts"]["completed"] == _TASKS
    print("\na drained node:", said.strip()[-200:], ended, dict(at(spool)), troubles(spool))


def troubles(spool: Spool) -> list[str]:
    """Return what the log says that is no step of a task."""
    lines = logged(spool.folder / "daemon.log")
    return [json.dumps(line)[:300] for line in lines if line["level"] != "info"]
