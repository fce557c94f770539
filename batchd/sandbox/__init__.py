"""The sandbox: the only place where model-written text becomes a process.

A ``Sandbox`` opens one ``Workplace`` a task; each of its commands runs under bubblewrap, in
namespaces of its own, and nothing that a command started outlives it.
"""

from __future__ import annotations

from batchd.sandbox.command_run import CommandEnd
from batchd.sandbox.command_user import check_user
from batchd.sandbox.findings import Finding, check
from batchd.sandbox.resource_shortage import patiently
from batchd.sandbox.sandbox import Sandbox
from batchd.sandbox.shown import seen
from batchd.sandbox.workplace import Workplace

__all__ = [
    "CommandEnd",
    "Finding",
    "Sandbox",
    "Workplace",
    "check",
    "check_user",
    "patiently",
    "seen",
]
