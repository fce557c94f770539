"""Three nodes of a Ray cluster on this machine,
each a process tree of its own to which anything may be done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count

from cluster_spools import TOKEN, tree
from patience import PATIENCE_S, until
from ports import free_port

#: Of each: room for two workers.
_NODE = ("--num-cpus", "2", "--object-store-memory", str(80 << 20), "--disable-usage-stats")
#: Ray's own range of ports for workers would be that of all nodes at once.
_PORTS = ("--min-worker-port", "0", "--max-worker-port", "0")
#: What a node gets to finish what it is at, once it is drained, in seconds.
DRAIN_S = 5


class Nodes:
    """A head and others, by name.

    Those that were killed, frozen or drained are replaced by the test, as an operator would.
    """

    def __init__(self, mark: str) -> None:
        """``mark``: what all their processes bear in their environment,
        as ``Arena`` knows its own.
        """
        self.port = free_port()
        self._names = count(1)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        self._environ = {**os.environ, **token, "RAY_USAGE_STATS_ENABLED": "0", "CHAOS_MARK": mark}
        self.head: subprocess.Popen[bytes]
        self.others: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        """Where the head is."""
        return f"127.0.0.1:{self.port}"

    def start(self, others: int = 2) -> None:
        """Start the head and others."""
        self.head = self._start("--head", "--port", str(self.port), "--include-dashboard", "false")
        until(self._infos, lambda: "the head does not come up", PATIENCE_S)
        for _ in range(others):
            self.add()

    def add(self, *prefix: str) -> str:
        """Start another node; return its name. ``prefix``: a program that is to run it."""
        name = f"node-{next(self._names)}"
        self.others[name] = self._start(
            "--address", self.address, "--node-name", name, prefix=prefix
        )
        return name

    def kill(self, name: str) -> None:
        """Kill a node: its raylet, and all below it with that."""
        self._end(self.others.pop(name))

    def kill_all(self) -> None:
        """Kill the head and all others at once, and wait until they are gone."""
        for node in (self.head, *self.others.values()):
            self._end(node)
        self.others.clear()

    def freeze(self, name: str) -> list[int]:
        """Stop everything on a node; return its processes."""
        pids = tree(self.others[name].pid)
        _signal(pids, signal.SIGSTOP)
        return pids

    @staticmethod
    def thaw(pids: list[int]) -> None:
        """Have it go on."""
        _signal(pids, signal.SIGCONT)

    def drain(self, name: str) -> str:
        """Have Ray drain a node, as before it is preempted; return its exit code, and what was
        said, or that the node has ended by itself: Ray gives one up that was frozen for long.
        """
        node_id = self._id(name)
        if not node_id:
            return f"{name} has ended"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
            *("--address", self.address, "--node-id", node_id),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"),
            *("--deadline-remaining-seconds", str(DRAIN_S)),
        ]
        done = subprocess.run(
            command, env=self._environ, capture_output=True, text=True, timeout=60, check=False
        )
        return f"{done.returncode}: {done.stdout}{done.stderr}"

    def _id(self, name: str) -> str:
        """Return the id of a node, once it is up: it may have just been started.

        Empty: it has ended.
        """
        known: dict[str, str] = {}

        def up() -> bool:
            known.update(self._infos())
            return name in known.values() or self.others[name].poll() is not None

        until(up, lambda: f"{name} does not come up, only {known}", PATIENCE_S)
        return next((node_id for node_id, other in known.items() if other == name), "")

    def _infos(self) -> dict[str, str]:
        """Return the names of the nodes that live, by their ids; none where there is no head."""
        program = (
            "import sys; from ray._raylet import GcsClient\n"
            "for key, node in GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5).items():\n"
            "    if node.state == 0: print(key.hex(), node.node_name)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, self.address],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        pairs = (line.split() for line in done.stdout.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) > 1}

    def _start(self, *options: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        return subprocess.Popen(
            [*command, *_NODE, *_PORTS, *options],
            env=self._environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _end(self, node: subprocess.Popen[bytes]) -> None:
        if node.poll() is None:
            _signal(tree(node.pid), signal.SIGKILL)
        node.wait(PATIENCE_S)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def three_nodes(mark: str) -> Iterator[Nodes]:
    """Run a cluster; all of it ends with the block."""
    made = Nodes(mark)
    try:
        made.start()
        yield made
    finally:
        made.kill_all()
