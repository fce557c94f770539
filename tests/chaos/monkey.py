"""Does harm at random moments, by a seed, and keeps count."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping

from arena import Arena, Model, Process

#: What strikes how often. The server is spared unless a run asks for it.
KILLS: Mapping[str, int] = {
    "worker": 30,
    "several workers": 10,
    "daemon": 20,
    "forkserver": 10,
    "all at once": 8,
    "group": 8,
    "stop worker": 8,
    "stop daemon": 6,
}
#: What a dead daemon's processes get to be gone: an instant on a quiet machine.
_GONE_S = 30.0


class Monkey:
    """Does harm to what runs in an arena."""

    def __init__(
        self, arena: Arena, model: Model, seed: int, harm: Mapping[str, int] = KILLS
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.rng = random.Random(seed)
        self._arena = arena
        self._model = model
        self.harm = harm
        #: What must be gone by when, for its daemon is dead.
        self._doomed: list[tuple[float, list[Process]]] = []

    @property
    def kills(self) -> int:
        """How many times something was killed, or stopped for good."""
        return sum(n for what, n in self.counts.items() if what != "stop daemon")

    def strike(self) -> None:
        """Do harm once, if there is anybody to harm;
        then see that no process outlives a dead daemon.
        """
        (what,) = self.rng.choices([*self.harm], [*self.harm.values()])
        if getattr(self, "_" + what.replace(" ", "_"))():
            self.counts[what] += 1
        now = time.monotonic()
        for due, ones in [d for d in self._doomed if d[0] < now]:
            assert not (left := self._arena.alive(ones)), f"they outlived their daemon: {left}"
            self._doomed.remove((due, ones))

    def settled(self) -> None:
        """Wait until all that is doomed is gone; its time may run out."""
        for due, ones in self._doomed:
            while left := self._arena.alive(ones):
                assert time.monotonic() < due, f"they outlived their daemon: {left}"
                time.sleep(0.05)

    def _those(self, role: str) -> list[Process]:
        return [p for p in self._arena.processes() if p.role == role]

    def _kill(self, ones: list[Process]) -> bool:
        for one in ones:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        return bool(ones)

    def _any(self, ones: list[Process]) -> list[Process]:
        return [self.rng.choice(ones)] if ones else []

    def _worker(self) -> bool:
        return self._kill(self._any(self._those("worker")))

    def _several_workers(self) -> bool:
        ones = self._those("worker")
        return self._kill(self.rng.sample(ones, self.rng.randint(1, len(ones))) if ones else [])

    def _forkserver(self) -> bool:
        return self._kill(self._any(self._those("forkserver")))

    def _daemon(self) -> bool:
        return self._bury(self._those("daemon"))

    def _all_at_once(self) -> bool:
        ones = [p for p in self._arena.processes() if p.role != "other"]
        self.rng.shuffle(ones)
        return self._bury(ones)

    def _group(self) -> bool:
        """Kill the daemon's whole group, as a terminal or a careless script would."""
        daemon = self._arena.daemon
        assert daemon is not None
        left = self._arena.processes()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)
        return self._dead(left)

    def _bury(self, ones: list[Process]) -> bool:
        left = self._arena.processes()
        return self._kill(ones) and self._dead(left)

    def _dead(self, left: list[Process]) -> bool:
        """The daemon is dead: everything that was its own must soon be."""
        assert self._arena.daemon is not None
        self._arena.daemon.wait()
        self._doomed.append((time.monotonic() + _GONE_S, left))
        return True

    def _stop_worker(self) -> bool:
        """Stop a worker for good: its heart stands still, and its daemon has to kill it."""
        ones = self._any(self._those("worker"))
        for one in ones:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGSTOP)
        return bool(ones)

    def _stop_daemon(self) -> bool:
        """Stop the daemon for longer than it waits for a heartbeat,
        as a laptop that sleeps does.
        """
        daemon = self._arena.daemon
        assert daemon is not None
        daemon.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.3, 3.0))
        daemon.send_signal(signal.SIGCONT)
        return True

    def _server(self) -> bool:
        """Kill the model server, and have it back on its port after a while."""
        self._model.kill()
        time.sleep(self.rng.uniform(0.0, 1.5))
        self._model.start()
        return True
