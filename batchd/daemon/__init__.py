"""The daemon: a loop that takes inputs and runs effects.

``daemon`` makes its parts, starts and stops them; ``main_loop``, ``current_config``, ``writes``,
``outboxes`` and ``troubles`` are what they stand on. Each part has one question: ``intake``, what
becomes of a file; ``turns``, which task starts; ``attempts``, what those at work need and report;
``batches`` and ``publisher``, how results come into the outbox; ``gates`` and ``parking_lot``, what
does not start, and why; ``commands``, what people want.
"""

from __future__ import annotations

from batchd.daemon.daemon import Daemon
from batchd.daemon.listeners import Listener
from batchd.pool.threads import run

__all__ = ["Daemon", "Listener", "run"]
