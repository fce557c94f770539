"""The control socket: JSON lines over a Unix socket in the state directory.

A request is ``{"verb": "status", …fields}``, its answer ``{"ok": true, …fields}`` or
``{"ok": false, "error": "…", "exit_code": 2}``; both name the daemon's version as ``batchd``. A request's ``via`` says for whom
its process asks, where that is somebody else: a browser, say. ``messages``, ``standing`` and
``checking`` have their fields, ``coding`` their JSON. What is exported is what who asks needs, and light to import: ``server`` is the daemon's half.
"""

from __future__ import annotations

from batchd.control.checking import Check, Checked, Line, LineVerdict
from batchd.control.client import Connection, ask, request
from batchd.control.coding import fields
from batchd.control.messages import (
    Cancel,
    Cancelled,
    Detach,
    Detached,
    EndedBefore,
    Held,
    Invite,
    Invited,
    Pause,
    Paused,
    Prioritised,
    Priority,
    Prune,
    Pruned,
    Request,
    Resume,
    Resumed,
    Retried,
    Retry,
    Run,
    Submit,
    Submitted,
    Tune,
    Tuned,
)
from batchd.control.standing import Standing, Status, Trouble, Warned

__all__ = [
    "Cancel",
    "Cancelled",
    "Check",
    "Checked",
    "Connection",
    "Detach",
    "Detached",
    "EndedBefore",
    "Held",
    "Invite",
    "Invited",
    "Line",
    "LineVerdict",
    "Pause",
    "Paused",
    "Prioritised",
    "Priority",
    "Prune",
    "Pruned",
    "Request",
    "Resume",
    "Resumed",
    "Retried",
    "Retry",
    "Run",
    "Standing",
    "Status",
    "Submit",
    "Submitted",
    "Trouble",
    "Tune",
    "Tuned",
    "Warned",
    "ask",
    "fields",
    "request",
]
