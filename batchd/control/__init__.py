"""The control socket: JSON lines over a Unix socket in the state directory.

A request is ``{"verb": "status", …fields}``, its answer ``{"ok": true, …fields}`` or
``{"ok": false, "error": "…", "exit_code": 2}``; both name the daemon's version as ``batchd``. A
request's ``via`` says for whom its process asks, where that is somebody else: a browser, say.
``requests``, ``status`` and ``check`` have their fields, ``coding`` their JSON. What is exported
is what who asks needs, and light to import: ``socket_server`` is the daemon's half.
"""

from __future__ import annotations

from batchd.control.check import Check, Checked, CheckLine, LineVerdict
from batchd.control.client import Connection, ask, request
from batchd.control.coding import fields
from batchd.control.requests import (
    Cancel,
    Cancelled,
    ControlRequest,
    Detach,
    Detached,
    EndedBefore,
    Invite,
    Invited,
    NewRun,
    Pause,
    Paused,
    Prioritised,
    Priority,
    Prune,
    Pruned,
    Resume,
    ResumedScope,
    Retried,
    Retry,
    ShownParking,
    Submit,
    Submitted,
    Tune,
    Tuned,
)
from batchd.control.status import DaemonStatus, ModelWarning, OpenTrouble, Status
