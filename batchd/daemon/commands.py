"""What the control socket can ask for: a table of verbs, to which more are added."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from batchd import __version__
from batchd.control import Handler
from batchd.daemon.batches import Batches
from batchd.daemon.core import Core
from batchd.daemon.dispatch import Dispatcher
from batchd.errors import UsageError


class Commands:
    """Answers requests."""

    def __init__(self, core: Core, batches: Batches, dispatcher: Dispatcher) -> None:
        self._core = core
        self._batches = batches
        self._dispatcher = dispatcher
        self._started_at = time.time()

    def table(self) -> Mapping[str, Handler]:
        """Return what answers each verb."""
        return {"status": self._status, "cancel": self._cancel}

    async def _status(self, _arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tell what the daemon does right now."""
        core, active = self._core, self._dispatcher.active
        return {
            "pid": os.getpid(),
            "version": __version__,
            "started_at": self._started_at,
            "draining": core.closing,
            "batches": {"open": len(self._batches)},
            "tasks": {
                "queued": len(core.schedule) - len(active),
                "running": len(active),
                "waiting": core.governor.waiting,
            },
            "providers": core.governor.told(),
            "workers": [
                {"pid": w.pid, "tasks": len(w.tasks), "rss": w.rss, "tasks_done": w.tasks_done}
                for w in self._dispatcher.pool.workers
            ],
            "running": [
                {
                    "task": str(a.ref),
                    "attempt": a.attempt,
                    "worker": a.worker.pid,
                    "step": a.step,
                    "detail": a.detail,
                    "since": a.since,
                }
                for a in active
            ],
        }

    async def _cancel(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """End the tasks of a batch, or one task."""
        target, message = arguments.get("target"), arguments.get("message", "")
        if not isinstance(target, str) or not isinstance(message, str):
            raise UsageError("cancel needs a target, BATCH or BATCH/TASK")
        name, _, task = target.partition("/")
        if self._batches.get(name) is None:
            raise UsageError(f"no batch {name} is under way")
        refs = [q.ref for q in self._core.store.queued(name) if task in {"", q.ref.task}]
        if task and not refs:
            raise UsageError(f"no task {task} of {name} is under way")
        for ref in refs:
            self._dispatcher.cancel(ref, message)
        return {"cancelled": len(refs)}
