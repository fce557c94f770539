"""What the control socket can ask for: ``Commands`` carries requests out, by the module of each command's name."""

from __future__ import annotations

from batchd.daemon.commands.ends import Ends
from batchd.daemon.commands.table import Commands

__all__ = ["Commands", "Ends"]
