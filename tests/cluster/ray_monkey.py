"""Does harm to batchd on a Ray cluster, by a seed:
each kind at least once, in an order that the seed gives.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from arena import Arena, Process
from ray_nodes import Nodes

#: What is struck, and the word in the command line of the process that is killed for it.
_WORDS: Mapping[str, str] = {
    "actor": "ray::Actor",
    "bridge": "batchd.pool.bridge",
}
#: What a worker and its parent have in theirs.
_PROGRAM = "batchd worker --sealed"
KINDS = (*_WORDS, "worker", "parent", "raylet", "head", "freeze", "daemon", "drain", "leave")
#: What a process that must end gets for that:
#: a lease, what a worker takes to see that, and a busy machine's share.
_GONE_S = 60.0


class RayMonkey:
    """Strikes, and sees that what must be gone is."""

    def __init__(self, place: Arena, nodes: Nodes, seed: int, strikes: int, lease_s: float) -> None:
        self.rng = random.Random(seed)
        more = self.rng.choices(KINDS, k=max(0, strikes - len(KINDS)))
        #: What is yet to come.
        self.left = self.rng.sample(KINDS, min(strikes, len(KINDS))) + more
        self.rng.shuffle(self.left)
        self.done: Counter[str] = Counter()
        self._place = place
        self._nodes = nodes
        self._lease_s = lease_s

    def strike(self) -> None:
        """Do the next harm; one that finds nothing to harm is tried again later."""
        what = self.left.pop()
        if what in _WORDS:
            struck = self._kill(self._any(_WORDS[what]))
        else:
            struck = getattr(self, f"_{what}")()
        if struck:
            self.done[what] += 1
        else:
            self.left.insert(0, what)

    def ours(self) -> list[Process]:
        """Return the processes of batchd that are on nodes:
        workers, their parents, commands; Ray's own stay.
        """
        words = ("batchd", "bwrap", "multiprocessing")
        found = self._place.processes()
        # Ray's have the path of the checkout in their commands, whatever that is called.
        bare = [(p, p.command.replace(str(Path(__file__).parents[2]), "")) for p in found]
        return [p for p, said in bare if any(w in said for w in words) and p.role != "daemon"]

    def _those(self, word: str) -> list[Process]:
        return [p for p in self._place.processes() if word in p.command and p.state != "Z"]

    def _any(self, word: str) -> list[Process]:
        found = self._those(word)
        return [self.rng.choice(found)] if found else []

    def _kill(self, ones: list[Process], number: int = signal.SIGKILL) -> bool:
        for one in ones:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, number)
        return bool(ones)

    def _node(self) -> str:
        """Return one of the nodes that are no head; those that ended by themselves are replaced."""
        for name in [name for name, node in self._nodes.others.items() if node.poll() is not None]:
            self._nodes.kill(name)
            self._nodes.add()
        return self.rng.choice(sorted(self._nodes.others))

    def _raylet(self) -> bool:
        """Kill a node, and have another in its place."""
        self._nodes.kill(self._node())
        self._nodes.add()
        return True

    def _head(self) -> bool:
        """Kill the whole cluster, as where its head and then its nodes are lost,
        and start it again a while later.
        """
        self._nodes.kill_all()
        time.sleep(self.rng.uniform(0.0, 5.0))
        self._nodes.start()
        return True

    def _freeze(self) -> bool:
        """Stop a node for longer than the lease, and have it go on."""
        frozen = self._nodes.freeze(self._node())
        time.sleep(2 * self._lease_s + 5.0)
        self._nodes.thaw(frozen)
        return True

    def _daemon(self) -> bool:
        """Kill the daemon, and see that all of its own ends before the next one begins."""
        daemon = self._place.daemon
        assert daemon is not None
        left = self.ours()
        daemon.kill()
        daemon.wait()
        until = time.monotonic() + _GONE_S
        while alive := self._place.alive(left):
            assert time.monotonic() < until, f"they outlived their daemon: {alive}"
            time.sleep(0.1)
        return True

    def _drain(self) -> bool:
        """Have Ray drain a node, as before a preemption; then it is gone, and another comes."""
        name = self._node()
        self._nodes.drain(name)
        time.sleep(self.rng.uniform(2.0, 8.0))
        self._nodes.kill(name)
        self._nodes.add()
        return True

    def _leave(self) -> bool:
        """Ask a worker to give its tasks back, as Slurm or Kubernetes do."""
        return self._kill(self._some(parents=True), signal.SIGTERM)

    def _worker(self) -> bool:
        return self._kill(self._some(parents=False))

    def _parent(self) -> bool:
        return self._kill(self._some(parents=True))

    def _some(self, *, parents: bool) -> list[Process]:
        """Return a worker, or the parent of one."""
        found = self._those(_PROGRAM)
        all_of_them = {each.pid for each in found}
        ones = [p for p in found if (_parent(p.pid) not in all_of_them) == parents]
        return [self.rng.choice(ones)] if ones else []


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
