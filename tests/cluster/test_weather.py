"""What a cluster does beside working: it is not there yet,
it dies, it comes back, it is open to all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster_spools import on_cluster, tree
from pools import drop, running, summary
from ports import free_port

from batchd import control
from tests.conftest import Spool


@contextlib.contextmanager
def started(*options: str, **environ: str) -> Iterator[None]:
    """Run a node of a cluster; at the end all of its processes are killed."""
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *("--num-cpus", "2", "--object-store-memory", str(80 << 20)),
            *("--min-worker-port", "0", "--max-worker-port", "0", *options),
        ],
        env={**os.environ, **environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as node:
        try:
            yield
        finally:
            for pid in tree(node.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def head(port: int, **environ: str) -> contextlib.AbstractContextManager[None]:
    """Run a head."""
    return started("--head", "--port", str(port), "--include-dashboard", "false", **environ)


def troubles(spool: Spool) -> dict[str, Any]:
    """Return what the daemon says is wrong."""
    found = control.request(spool.folder / ".batchd", "status")["troubles"]
    return {trouble["what"]: trouble for trouble in found}


def test_tasks_wait_for_a_cluster_that_is_not_there(tmp_path: Path, model_server: str) -> None:
    """The daemon takes them and says what it waits for; when the head is up, they are done."""
    port = free_port()
    spool = on_cluster(tmp_path, model_server, f"127.0.0.1:{port}")
    with spool.serving():
        drop(spool, 2)
        spool.eventually(lambda: "cluster_trouble" in troubles(spool))
        assert f"127.0.0.1:{port} cannot be reached" in str(troubles(spool))
        assert "cannot be reached" in spool.batchd("status").stdout
        with head(port):
            assert summary(spool)["counts"]["completed"] == 2
            spool.eventually(lambda: not troubles(spool))


def test_a_head_that_is_killed_and_comes_back_loses_nothing(
    tmp_path: Path, slow_server: str
) -> None:
    """Meanwhile the daemon answers, and says what its tasks wait for."""
    port = free_port()
    spool = on_cluster(tmp_path, slow_server, f"127.0.0.1:{port}")
    with spool.serving():
        with head(port):
            drop(spool, 12)
            spool.eventually(lambda: running(spool))
        spool.eventually(lambda: "cluster_trouble" in troubles(spool))
        with head(port):
            assert summary(spool)["counts"]["completed"] == 12


def test_a_cluster_that_takes_orders_from_anybody_is_refused(
    tmp_path: Path, model_server: str
) -> None:
    """With several nodes and no token,
    each process that reaches one could run what it likes as batchd's user.
    """
    port, open_to_all = free_port(), {"RAY_AUTH_MODE": "disabled"}
    spool = on_cluster(tmp_path, model_server, f"127.0.0.1:{port}", token="")
    address = f"127.0.0.1:{port}"
    with (
        head(port, **open_to_all),
        started("--address", address, **open_to_all),
        spool.serving(**open_to_all),
    ):
        drop(spool, 1)
        spool.eventually(lambda: "takes orders from any process" in str(troubles(spool)))
        # One node alone is used: what began before the other one was up ends with the launcher.
        spool.eventually(lambda: not running(spool))


def test_what_no_node_can_give_is_reported(tmp_path: Path, model_server: str) -> None:
    """Tasks wait, and ``status`` says for what."""
    port = free_port()
    spool = on_cluster(tmp_path, model_server, f"127.0.0.1:{port}", cpus=64)
    with head(port), spool.serving():
        drop(spool, 1)
        spool.eventually(lambda: "which takes 64 CPUs" in str(troubles(spool)))
