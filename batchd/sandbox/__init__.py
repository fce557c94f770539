"""The sandbox: the only place where model-written text becomes a process.

A ``Sandbox`` opens one ``Workplace`` a task: its directory. That has one ``TaskSandbox`` at a time,
whose namespaces bubblewrap makes; its ``Entrance`` is the way in: a socket to the helper that has
made it, and starts each command there. What commands leave goes on until the round is evaluated;
all of it ends with the worker.
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
