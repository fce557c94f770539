"""The sandbox: the only place where model-written text becomes a process.

A ``Sandbox`` opens one ``Workplace`` a task; each of its commands runs under bubblewrap, in
namespaces of its own, and nothing that a command started outlives it.
"""

from __future__ import annotations

from batchd.sandbox.findings import Finding, check
from batchd.sandbox.identity import check_user
from batchd.sandbox.opening import Sandbox
from batchd.sandbox.process import Ran
from batchd.sandbox.shortage import patiently
from batchd.sandbox.shown import seen
from batchd.sandbox.workplace import Workplace

__all__ = ["Finding", "Ran", "Sandbox", "Workplace", "check", "check_user", "patiently", "seen"]
