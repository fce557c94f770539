"""The daemon: a loop that takes inputs and runs effects.

``daemon`` makes its parts, starts and stops them; ``main_loop``, ``tuning``, ``writes``,
``outboxes`` and ``troubles`` are what they stand on. Each room beside them has one question:
``intake``, what becomes of a file; ``attempts``, which task works, and with what; ``ends``, how
results come into the outbox; ``waits``, what does not start, and why; ``commands``, what people
want.
"""

from __future__ import annotations

from batchd.daemon.daemon import Daemon
from batchd.daemon.listeners import Listener
from batchd.pool.threads import run

__all__ = ["Daemon", "Listener", "run"]
