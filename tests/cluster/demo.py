"""The demo's tasks on a Ray cluster of two nodes of this machine: `make demo-cluster`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from cluster_spools import TOKEN
from ray_nodes import Nodes

from batchd.cli import demo

_CONFIG = """
[pool]
engine = "ray"
[ray]
address = "{address}"
token_file = "{token}"
"""


def main() -> int:
    """Play it, and print where each task ran."""
    spool = Path(tempfile.mkdtemp(prefix="batchd-demo-"))
    (token := spool / "ray-token").write_text(TOKEN)
    nodes = Nodes(mark=spool.name)
    nodes.start(others=1)
    try:
        config = _CONFIG.format(address=nodes.address, token=token)
        code = demo.play(spool, 80.0, config)
    finally:
        nodes.kill_all()
    for line in (spool / "daemon.log").read_text("utf-8").splitlines():
        if '"event":"task_finished"' in line:
            fields = json.loads(line)
            print(f"{fields['task']}  {fields.get('node', 'here')}, process {fields['worker']}")
    return code


if __name__ == "__main__":
    sys.exit(main())
