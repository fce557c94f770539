"""The actor: one worker's place on a node of a Ray cluster.

It starts the program that a machine's command would start, carries what that says, and ends with
it. What it carries is sealed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque

#: Of what the worker said last on its standard error: lines, and characters.
_MOST_LINES, _MOST_SAID = 20, 2000
#: What it holds of what the worker said and nobody has read, in bytes.
_MOST_HELD = 16 << 20
_READ = 1 << 16
#: What the worker says within so long of its first word goes up in one call (seconds): of a model
#: call's CPU, 2.0 times a local one's, that leaves 1.7 times.
_TOGETHER_S = 0.015


class Actor:
    """One worker's place; ``bridge`` makes an actor of Ray's of it.

    Its methods run in threads of Ray's: ``down`` in one, ``up`` in another.
    """

    def __init__(self) -> None:
        self._worker: subprocess.Popen[bytes] | None = None
        self._held = bytearray()
        #: Which byte of all that the worker said is the first that is held.
        self._first = 0
        #: How many bytes were written to it.
        self._written = 0
        self._change = threading.Condition()
        #: How it ended; empty: it has not.
        self._ended = ""

    def where(self) -> str:
        """Return the node's id."""
        import ray  # it runs where Ray does

        node_id: str = ray.get_runtime_context().get_node_id()
        return node_id

    def start(self, key_file: str) -> None:
        """Start the worker, which ends with this process."""
        self._worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "batchd", "worker", "--sealed", key_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
        )
        threading.Thread(target=self._read, args=(self._worker,), daemon=True).start()

    def _read(self, worker: subprocess.Popen[bytes]) -> None:
        """Hold what the worker says; note how it ends."""
        assert worker.stdout is not None and worker.stderr is not None, "pipes were asked for"
        last: deque[bytes] = deque(maxlen=_MOST_LINES)
        hears = threading.Thread(target=last.extend, args=(worker.stderr,), daemon=True)
        hears.start()
        while data := os.read(worker.stdout.fileno(), _READ):
            with self._change:
                self._change.wait_for(lambda: len(self._held) < _MOST_HELD)
                self._held += data
                self._change.notify_all()
        code = worker.wait()
        hears.join(1.0)
        said = b"".join(last).decode(errors="replace").strip()[-_MOST_SAID:]
        with self._change:
            self._ended = f"it ended with {code}" + (f": {said}" if said else "")
            self._change.notify_all()

    def down(self, first: int, data: bytes) -> int:
        """Pass bytes to the worker, the first of which has this number; return how many it has
        read.
        """
        assert self._worker is not None and self._worker.stdin is not None, "it was started"
        data = data[max(0, self._written - first) :]  # what came once comes no second time
        try:
            self._worker.stdin.write(data)
            self._worker.stdin.flush()
        except OSError:
            pass  # it has ended: ``up`` says how
        self._written += len(data)
        return self._written

    def up(self, read: int, most: int, wait_s: float) -> tuple[bytes, str]:
        """Return what the worker said behind so many bytes, which nobody needs any more, and how it
        ended; wait until there is something, for so long at most.
        """
        with self._change:
            del self._held[: read - self._first]
            self._first = read
            self._change.notify_all()
            if self._change.wait_for(lambda: self._held or self._ended, wait_s):
                self._change.wait_for(lambda: len(self._held) >= most or self._ended, _TOGETHER_S)
            data = bytes(self._held[:most])
            return data, "" if data else self._ended
