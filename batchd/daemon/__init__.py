"""The daemon: a loop that takes inputs and runs effects.

``service`` starts and stops it, ``parts`` joins what it is made of, and ``loop``, ``current``, ``writes``, ``outboxes`` and
``troubles`` are what its parts stand on. Each room beside them has one question: ``intake``, what becomes of a file;
``attempts``, which task works, and with what; ``ends``, how results come into the outbox; ``waits``, what does not start, and
why; ``commands``, what people want.
"""

from __future__ import annotations

from batchd.daemon.listener import Listener
from batchd.daemon.service import Daemon
from batchd.pool.threads import run

__all__ = ["Daemon", "Listener", "run"]
