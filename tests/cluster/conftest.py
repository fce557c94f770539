"""A Ray cluster of three nodes on this machine,
and spools whose workers run there: `make test-cluster`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_spools import TOKEN, on_cluster

from tests.conftest import Spool

#: Before Ray is imported: it reads them once.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}

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
    return on_cluster(tmp_path, slow_server, cluster.address)
