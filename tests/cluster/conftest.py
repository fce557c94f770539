"""A Ray cluster of three nodes on this machine, and spools whose workers run there: `make test-cluster`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CONFIG, NO_REPORT, Spool
from ports import free_port

#: Before Ray is imported: it reads them once.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}

from ray.cluster_utils import Cluster

#: Of each node: enough for little that is put there.
_STORE_BYTES = 80 << 20


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head and two nodes, each with room for two workers."""
    node = {"num_cpus": 2, "object_store_memory": _STORE_BYTES}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(2):
        made.add_node(**node)
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def spool(tmp_path: Path, slow_server: str, cluster: Cluster) -> Spool:
    """A spool whose workers run on the cluster."""
    token = tmp_path / "ray-token"
    token.write_text("0" * 64)
    text = CONFIG.format(base_url=slow_server, model="steps-3")
    pool = f'engine = "ray"\nprocesses = 6\nheartbeat_timeout_s = 4.0\nlisten = "0.0.0.0:{free_port()}"\n'
    text = text.replace(
        "processes = 2\n", f'{pool}advertise = "{cluster.head_node.node_ip_address}:PORT"\n'
    )
    text = text.replace("PORT", text.partition('listen = "0.0.0.0:')[2].partition('"')[0])
    more = f'[ray]\naddress = "{cluster.address}"\ntoken_file = "{token}"\n[workspace]\nshared = true\n'
    (tmp_path / "config.toml").write_text(NO_REPORT + text + more)
    return Spool(tmp_path)
