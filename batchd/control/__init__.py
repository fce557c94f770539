"""The control socket: JSON lines over a Unix socket in the state directory.

A request is ``{"verb": "status", …fields}``, its answer ``{"ok": true, …fields}`` or
``{"ok": false, "error": "…", "exit_code": 2}``; both name the daemon's version as ``batchd``. A
request's ``via`` says for whom its process asks, where that is somebody else: a browser, say.
``orders`` has what people order, ``status`` and ``requests`` what else is asked. What is exported
is what who asks needs, and light to import: ``socket_server`` is the daemon's half.
"""

from __future__ import annotations

from batchd.control.client import (
    PATIENCE_S as PATIENCE_S,
    Connection as Connection,
    ask as ask,
    give as give,
    request as request,
)
from batchd.control.orders import (
    Cancel as Cancel,
    Cancelled as Cancelled,
    EndedBefore as EndedBefore,
    NewRun as NewRun,
    Nice as Nice,
    Niced as Niced,
    Pause as Pause,
    Paused as Paused,
    Prioritised as Prioritised,
    Priority as Priority,
    Prune as Prune,
    Pruned as Pruned,
    Resume as Resume,
    ResumedScope as ResumedScope,
    Retried as Retried,
    Retry as Retry,
    Tune as Tune,
    Tuned as Tuned,
)
from batchd.control.requests import (
    Check as Check,
    Checked as Checked,
    CheckLine as CheckLine,
    ControlRequest as ControlRequest,
    Detach as Detach,
    Detached as Detached,
    LineVerdict as LineVerdict,
    Order as Order,
    Submit as Submit,
    Submitted as Submitted,
    fields as fields,
)
from batchd.control.status import (
    AskStatus as AskStatus,
    DaemonStatus as DaemonStatus,
    ModelWarning as ModelWarning,
    OpenTrouble as OpenTrouble,
    ShownParking as ShownParking,
)
