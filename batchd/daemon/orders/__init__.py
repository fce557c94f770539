"""What the control socket can ask for: ``Orders`` is the table of verbs, the other modules carry them out."""

from __future__ import annotations

from batchd.daemon.orders.ends import Ends
from batchd.daemon.orders.verbs import Orders

__all__ = ["Ends", "Orders"]
