"""What the control socket can ask for: ``Commands`` is the table of verbs, the other modules carry them out."""

from __future__ import annotations

from batchd.daemon.commands.ends import Ends
from batchd.daemon.commands.table import Commands

__all__ = ["Commands", "Ends"]
