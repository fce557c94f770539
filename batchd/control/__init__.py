"""The control socket: JSON lines over a Unix socket in the state directory.

A request is ``{"verb": "status", …arguments}``, its answer ``{"ok": true, …}`` or
``{"ok": false, "error": "…", "exit_code": 2}``; both tell the daemon's version as ``batchd``. Here is what who asks needs,
which is light to import; ``server`` is the daemon's half.
"""

from __future__ import annotations

from batchd.control.client import request

__all__ = ["request"]
