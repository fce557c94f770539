"""The start of an attempt: when a task may begin again that was at work elsewhere, and what a
worker gets when it takes a task up, or why none is to take it up.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from batchd import terms, wire
from batchd.daemon import former_packs, scratch
from batchd.daemon.active import ActiveAttempt
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.lessons import Lessons
from batchd.daemon.writes import DaemonStore
from batchd.errors import InputError, NotPossibleError
from batchd.events import Resumed, Suspended, TaskStarted, Terms, decode
from batchd.gone import GONE_TASK_KEYS
from batchd.governor import Governor, ParkDecision
from batchd.lifecycle import inputs
from batchd.lifecycle.effects import End
from batchd.records import Batch, Reason, Ref, Secret, Task, TaskStatus, tasks
from batchd.spool.task_directories import TaskDirectories
from batchd.store import lookups
from batchd.store.rows import DispatchedTask

#: How the journal's text of an answer begins, and of the next attempt.
_ANSWERED = b'["CallAnswered"'
_RESUMED = b'["Resumed"'

#: Why a task may not work in its directory, empty: it may;
#: and its secrets, or why they cannot be had.
PlaceLook: TypeAlias = tuple[str, dict[str, Secret] | NotPossibleError]


@dataclass(slots=True, eq=False, repr=False)
class AttemptStarter:
    """Prepares what a worker needs to take a task up, and knows the fences behind which tasks wait.

    A machine that an earlier daemon left them at, and that was cut off, or frozen, may still change
    their directories. One that is reached has ended its workers with that daemon.
    """

    _current: CurrentConfig
    _store: DaemonStore
    _governor: Governor
    _lessons: Lessons
    #: By the monotonic clock.
    _started_at: float = field(default_factory=time.monotonic)
    #: How long each task that was left elsewhere has to wait from then on, in seconds.
    _fences: dict[Ref, float] = field(default_factory=dict)

    def restore(self) -> None:
        """Take up what the last daemon left."""
        self._lessons.restore()
        found = self._store.read(lookups.left_at)
        self._fences = {ref: tasks.fence_s(label) for ref, label in found.items()}

    async def fence(self, active: ActiveAttempt) -> None:
        """Return when no other machine works on a task any more."""
        left_s = self._started_at + self._fences.get(active.ref, 0.0) - time.monotonic()
        if left_s > 0:
            active.fences("a machine that an earlier daemon left it at", left_s)
            await asyncio.sleep(left_s)
            active.fence_s = 0.0
        self._fences.pop(active.ref, None)

    def look(self, task: Task) -> PlaceLook:
        """Look at what a task names on this machine's disks. Blocks. Raises ``SilentPathError``."""
        config = self._current.config
        directories, closed = TaskDirectories(config), ""
        # It was asked at the claim: the configuration may be another one since,
        # or the store come from elsewhere.
        # Where a link stands by now, which no one follows, who opens it says so.
        try:
            if task.dir and directories.real(task.dir) == os.path.normpath(task.dir):
                closed = directories.problem(task.dir, must_exist=False)
            for secret in task.secrets.values():
                directories.real(config.secrets.files.get(secret.from_file, "/"))
        except OSError as error:  # a link on the way that may not be read
            return f"{error.filename}: {error.strerror}", {}
        try:
            return closed, {n: Secret(value=config.revealed(s)) for n, s in task.secrets.items()}
        except NotPossibleError as error:
            return closed, error

    def prepared(
        self, active: ActiveAttempt, task: Task, given: DispatchedTask, seen: PlaceLook
    ) -> inputs.Ready | inputs.Refused | inputs.TurnedAway:
        """Return that a task can start, its terms set and its secrets known,
        or that it is not to start after all.
        """

        def refused(reason: Reason, message: str) -> inputs.Refused:
            # This dispatch is none that was tried.
            tried = given.attempt - 1
            return inputs.Refused(End(active.ref, TaskStatus.ERROR, reason, message, tried))

        config, (closed, secrets) = self._current.config, seen
        if task.needs:
            why = f"it needs {task.needs} of its machine, which no worker has any more"
            return refused(Reason.BAD_REQUEST, f"{why}: {GONE_TASK_KEYS['needs']}")
        if closed:
            why = f"tasks may not work in its directory now: {closed}"
            fix = f"allow it in [workspace], then `batchd retry {active.ref.batch}`"
            return refused(Reason.SANDBOX, f"{why} ({fix})")
        kept = _kept(given.history)
        limits = config.limits.lowered(task.limits) if kept is None else kept.limits
        if limits is not None and limits != task.limits:
            task = replace(task, limits=limits)
        try:
            active.terms = self._terms(active, task, given, kept)
        except InputError as error:
            if task.model.partition("/")[0] not in config.providers:
                park = self._governor.outages.turned_away(task.model)
                if isinstance(park, ParkDecision):
                    active.park = park
                    wish = Suspended(at=time.time(), cause="park", message=park.message)
                    return inputs.TurnedAway(active.ref, wish)
            return refused(Reason.BAD_REQUEST, str(error))
        if isinstance(secrets, NotPossibleError):
            return refused(Reason.SANDBOX, f"its env cannot be made: {secrets}")
        active.task = replace(task, secrets=secrets) if secrets else task
        return inputs.Ready(active.ref)

    def order(self, active: ActiveAttempt, batch: Batch, given: DispatchedTask) -> wire.Run:
        """Return what the worker gets; from now on the task's money is watched."""
        assert active.terms is not None, "there is no refusal"
        assert active.task is not None, "there is no refusal"
        ref, task = active.ref, active.task
        spent = self._store.read(lookups.task_money, ref).total if given.history else 0.0
        self._governor.money.open_task(ref, task.limits.max_cost_usd, spent)
        return wire.Run(
            ref=ref,
            attempt=given.attempt,
            task=task,
            batch=batch,
            terms=active.terms,
            queued_at=given.queued_at,
            node=active.worker.node,
            tmp=str(scratch.folder(self._current.config, ref)),
            base=active.base,
            lost=former_packs.lost(Path(self._current.config.paths.state), ref),
            base_s=self._current.config.workspace.fetch_timeout_s,
            max_patch_bytes=self._current.config.workspace.max_patch_bytes,
            refused={
                name: self._lessons.of(name)
                for name in {active.terms.model.name, active.terms.judge.name}
            },
            history=tuple(msgspec.Raw(body) for body in given.history),
        )

    def _terms(
        self, active: ActiveAttempt, task: Task, given: DispatchedTask, kept: Terms | None
    ) -> Terms:
        """Return the terms under which a task starts, or goes on. Raises ``InputError``."""
        config = self._current.config
        capped = self._governor.capped(active.ref)
        if kept is None:
            return terms.terms(task, config, capped=capped)
        if any(body.startswith(_ANSWERED) for body in given.history):
            return kept
        # No model has answered it yet, and what parked it may have been how it was spoken to:
        # then today's count.
        try:
            today = terms.terms(task, config, capped=capped)
        except InputError:
            return kept
        same = (today.model.api, today.model.tools) == (kept.model.api, kept.model.tools)
        return kept if same else today


def _kept(history: tuple[bytes, ...]) -> Terms | None:
    """Return the terms that a task works under."""
    for body in reversed(history):
        if body.startswith(_RESUMED):
            resumed = decode(body)
            if isinstance(resumed, Resumed) and resumed.terms is not None:
                return resumed.terms
    first = decode(history[0]) if history else None
    return first.terms if isinstance(first, TaskStarted) else None
