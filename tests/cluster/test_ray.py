"""A batch on a Ray cluster of three nodes:
the same results as on one machine, whatever is killed or frozen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster_spools import LEASE_S, tree
from loglines import logged
from pools import asked, drop, processes, running, summary, workers
from ray.cluster_utils import Cluster

from tests.conftest import Spool

#: Tasks of a batch, and calls of each.
_TASKS, _CALLS = 30, 3


def raylet(node: Any) -> int:
    """Return the process that is a node's own."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def bridge(spool: Spool) -> int:
    """Return the process that speaks with Ray."""
    *_, found = (  # the box that it runs in is above it
        pid
        for pid in of_daemon(spool)
        if b"batchd.pool.bridge" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    return found


def of_daemon(spool: Spool) -> list[int]:
    """Return the daemon and all below it."""
    return tree(logged(spool.folder / "daemon.log", "daemon_started")[-1]["pid"])


def at_work(spool: Spool) -> Callable[[], bool]:
    """Return whether all three nodes have tasks."""
    return lambda: len(set(running(spool).values())) == 3


def right(spool: Spool, base_url: str, *, lost: int) -> None:
    """Hold a batch to what it must be: each task done once,
    and at most the calls in flight of ``lost`` tasks paid again.
    """
    assert summary(spool)["counts"]["completed"] == _TASKS
    results = [spool.result("b", f"{n:03}") for n in range(1, _TASKS + 1)]
    assert {r["usage"]["calls"] for r in results} == {_CALLS}
    again = sum(asked(base_url).values()) - _TASKS * _CALLS
    # The server notes those alone that it has answered.
    assert 0 <= again <= summary(spool)["usage"]["unsettled_calls"] <= lost


@contextlib.contextmanager
def struck(spool: Spool) -> Iterator[None]:
    """Run a batch, with all three nodes at work within; it is waited for at the end."""
    with spool.serving():
        drop(spool, _TASKS)
        spool.eventually(at_work(spool))
        yield
        summary(spool)
    spool.eventually(lambda: not processes("--sealed"))


def again_s(spool: Spool, struck_at: float) -> float:
    """Return how long after a strike the last of the tasks that were lost went on elsewhere,
    by the log's own times.
    """
    log = logged(spool.folder / "daemon.log")
    lost = {f"{task}" for line in log if line["event"] == "worker_died" for task in line["tasks"]}
    again: dict[str, float] = {}
    for line in log:
        name = f"{line.get('batch')}/{line.get('task')}"
        at = datetime.fromisoformat(line["timestamp"]).timestamp()
        if line["event"] == "task_started" and name in lost and at > struck_at:
            again.setdefault(name, at - struck_at)
    assert again.keys() == lost
    return max(again.values())


def test_a_batch_is_worked_off_by_the_nodes(spool: Spool, slow_server: str) -> None:
    """With the results and the accounting of one machine;
    nothing is left on any node afterwards.
    """
    with struck(spool):
        pass
    right(spool, slow_server, lost=0)
    ended = logged(spool.folder / "daemon.log", "task_finished")
    assert len({line["node"] for line in ended}) == 3
    assert not logged(spool.folder / "daemon.log", "worker_died")


def test_a_killed_worker_costs_a_call_at_most(spool: Spool, slow_server: str) -> None:
    """Its task is dispatched again within seconds."""
    with struck(spool):
        killed_at = time.time()
        os.kill(next(iter(workers(spool))), signal.SIGKILL)
    right(spool, slow_server, lost=1)
    print(f"\na worker was killed: its task went on after {again_s(spool, killed_at):.2f} s")


def test_a_killed_actor_takes_its_worker_along(spool: Spool, slow_server: str) -> None:
    """And there are as many workers again."""
    with struck(spool):
        (actor, *_) = processes("ray::Actor")
        os.kill(actor, signal.SIGKILL)
        spool.eventually(lambda: len(workers(spool)) == 6 or running(spool) == {})
    right(spool, slow_server, lost=1)


def test_a_killed_node_loses_nothing(spool: Spool, slow_server: str, cluster: Cluster) -> None:
    """Its tasks go on at the others."""
    with struck(spool):
        os.kill(raylet(cluster.worker_nodes.copy().pop()), signal.SIGKILL)
    right(spool, slow_server, lost=2)


def test_a_killed_bridge_is_started_again(spool: Spool, slow_server: str) -> None:
    """All of its workers end with it, and others come."""
    with struck(spool):
        former = bridge(spool)
        os.kill(former, signal.SIGKILL)
    right(spool, slow_server, lost=6)


def test_a_frozen_node_that_thaws_changes_nothing(
    spool: Spool, slow_server: str, cluster: Cluster
) -> None:
    """One lease later its tasks are others'; as it goes on, it can neither publish nor pay."""
    frozen: list[int] = []
    try:
        with struck(spool):
            frozen = tree(raylet(cluster.worker_nodes.copy().pop()))
            frozen_at = time.time()
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            summary(spool)
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            time.sleep(1.0)
        right(spool, slow_server, lost=2)
        after_s = again_s(spool, frozen_at)
        print(
            f"\na node was frozen: its tasks went on after {after_s:.2f} s, its lease is {LEASE_S} s"
        )
        assert after_s > LEASE_S
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
