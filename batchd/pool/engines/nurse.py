"""The nurse: the actor that starts one worker on its node of a Ray cluster, and ends with it.

It carries nothing else.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

#: Of what the worker said last: lines, and characters.
_MOST_LINES, _MOST_SAID = 20, 2000


class Nurse:
    """One worker's place on a node; ``launcher`` makes an actor of it."""

    def where(self, daemon: tuple[str, int]) -> tuple[str, tuple[str, ...], str]:
        """Return the node's id, the IP addresses from which it may reach the daemon,
        and its host name.

        Raises ``OSError`` where it does not know a way to the daemon.
        """
        import ray  # it runs where Ray does

        node_id: str = ray.get_runtime_context().get_node_id()
        found = socket.getaddrinfo(*daemon, type=socket.SOCK_DGRAM)
        return node_id, tuple(_sources(found)), os.uname().nodename

    def run(self, ticket: str, node: str, gpus: int, labels: tuple[str, ...]) -> str:
        """Run a worker until it ends, and return how.

        It ends with this process. ``gpus``, ``labels``: for its tasks.
        """
        with subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "batchd",
                "worker",
                "--join",
                "-",
                "--tied",
                *("--node", node, "--gpus", str(gpus)),
                *(f"--label={label}" for label in labels),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd="/",
        ) as worker:
            assert worker.stdin is not None, "a pipe was asked for"
            assert worker.stderr is not None, "a pipe was asked for"
            with contextlib.suppress(BrokenPipeError), worker.stdin:
                worker.stdin.write(f"{ticket}\n")
            # It may run for months.
            said = deque(worker.stderr, _MOST_LINES)
        last = "".join(said).strip()[-_MOST_SAID:]
        return f"it exited with {worker.returncode}" + (f": {last}" if last else "")


def _sources(found: Iterable[Any]) -> Iterator[str]:
    """Yield the addresses from which this machine reaches others."""
    for family, kind, protocol, _, place in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as way:
            way.connect(place)  # sends nothing
            yield way.getsockname()[0].partition("%")[0]
