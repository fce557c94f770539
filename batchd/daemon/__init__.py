"""The daemon: the composition root, which joins the rooms and holds no logic of theirs."""

from __future__ import annotations

from batchd.daemon.listener import Listener
from batchd.daemon.service import Daemon
from batchd.pool.threads import run

__all__ = ["Daemon", "Listener", "run"]
