"""What the control socket can ask for:
``CommandHandlers`` carries requests out, by the module of each command's name.
"""

from __future__ import annotations

from batchd.daemon.commands.cancel import EndWaiters
from batchd.daemon.commands.handlers import CommandHandlers

__all__ = ["CommandHandlers", "EndWaiters"]
