"""A file for node_exporter's textfile collector:
whole at any moment, and gone when the daemon has ended well.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from batchd.telemetry.loop_link import LoopLink

_EVERY_S, _AGAIN_S = 15.0, 5.0
_END_S = 1.0


class Textfile:
    """The text file of figures: written again and again, from a thread of its own."""

    def __init__(self, path: str, registry: CollectorRegistry, line: LoopLink) -> None:
        self._path = Path(path)
        self._registry = registry
        self._line = line
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="textfile", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove it: figures of a daemon that is gone would be taken for today's."""
        self._closing.set()
        self._thread.join(_END_S)
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _keep(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            pause_s = _EVERY_S
            try:
                self._write(generate_latest(self._registry))
            except OSError as error:
                pause_s = _AGAIN_S
                # Under its own name, not that of the new one.
                self._line.failed(OSError(error.errno, error.strerror, str(self._path)))
            else:
                self._line.worked()

    def _write(self, text: bytes) -> None:
        # The collector reads no other names than *.prom.
        new = self._path.with_name(f".{self._path.name}.tmp")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask: another user reads it
            file.write(text)
        new.replace(self._path)
