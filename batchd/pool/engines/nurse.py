"""The nurse: the actor that starts one worker on its node of a Ray cluster, and ends with it. It carries nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

#: Of what the worker said last.
_MOST_SAID = 2000


class Nurse:
    """One worker's place on a node; ``launcher`` makes an actor of it."""

    def where(self, daemon: tuple[str, int]) -> tuple[str, str, str]:
        """Return the node's id, the IP address from which it reaches the daemon, and its host name.

        Raises ``OSError`` where it does not know a way to the daemon.
        """
        import ray  # noqa: PLC0415 (it runs where Ray does)

        node_id: str = ray.get_runtime_context().get_node_id()
        family, kind, protocol, _, place = socket.getaddrinfo(*daemon, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(place)  # sends nothing
            address: str = way.getsockname()[0]
        return node_id, address, os.uname().nodename

    def run(self, ticket: str, node: str) -> str:
        """Run a worker until it ends, and return how. It ends with this process."""
        worker = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "batchd",
                "worker",
                "--join",
                "-",
                "--tied",
                "--node",
                node,
            ],
            input=f"{ticket}\n",
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
            check=False,
        )
        said = worker.stderr.strip()[-_MOST_SAID:]
        return f"it exited with {worker.returncode}" + (f": {said}" if said else "")
