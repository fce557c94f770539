"""Nodes in need: no disk, no memory, drained before a preemption.

Tasks wait or move; none is lost.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_spools import on_cluster
from loglines import logged
from pools import answering_after, drop, running, summary
from ray_nodes import Nodes

from batchd import control
from tests.conftest import Spool

_TASKS = 48
#: What an answer takes where the tasks are to last, in seconds.
_SLOW_S = 2.0


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
    """Its /tmp is full, where Ray keeps its logs and sockets:
    what cannot run there runs elsewhere.
    """
    full = 'mount -t tmpfs -o size=24m none /tmp/ray && head -c 20m /dev/zero > /tmp/ray/full; exec "$@"'
    Path("/tmp/ray").mkdir(exist_ok=True)
    spool = on_cluster(short, slow_server, nodes.address)
    nodes.add("unshare", "--mount", "sh", "-c", full, "sh")
    with spool.serving():
        drop(spool, _TASKS)
        assert summary(spool)["counts"]["completed"] == _TASKS
    print("\na node without disk:", dict(at(spool)))
    assert not logged(spool.folder / "daemon.log", "worker_died")


def test_a_node_that_ray_drains_gives_its_tasks_to_others(
    tmp_path: Path, slow_server: str, nodes: Nodes
) -> None:
    """As before a preemption: its workers give their tasks back,
    end, and none is placed there again; nothing is lost.
    """
    spool = on_cluster(tmp_path, slow_server, nodes.address)
    name = nodes.add()
    with spool.serving():
        drop(spool, _TASKS)
        spool.eventually(lambda: len(set(running(spool).values())) == 2)
        # However long Ray takes, most of them are yet to begin then.
        answering_after(slow_server, _SLOW_S)
        begun = time.monotonic()
        assert nodes.drain(name).startswith("0:")
        spool.eventually(lambda: len(set(running(spool).values())) == 1)
        took_s = time.monotonic() - begun
        # Others wait for a slot, and there would be some.
        assert control.request(spool.folder / ".batchd", "status")["tasks"]["queued"]
        answering_after(slow_server, 0.0)
        assert summary(spool)["counts"]["completed"] == _TASKS
    print(
        f"\na node was drained: its tasks were given back within {took_s:.1f} s; {dict(at(spool))}"
    )
    assert not logged(spool.folder / "daemon.log", "worker_died")
    results = [spool.result("b", f"{n:03}") for n in range(1, _TASKS + 1)]
    assert not sum(each["usage"]["unsettled_calls"] for each in results)
