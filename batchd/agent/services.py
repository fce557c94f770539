"""What the agent asks of its worker and its machine: the daemon's answers, the task's directory;
and its half of the journal: what is durable, and what waits for the next flush.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import msgspec

from batchd import wire
from batchd.events import (
    CallDenied,
    CallStarted,
    CancelRequested,
    Event,
    Suspended,
    TaskFinished,
    encode,
)
from batchd.llm import ModelClient
from batchd.masking import Masker
from batchd.records import Activity, FileStamp, Patch, Trigger
from batchd.sandbox import Sandbox
from batchd.taskstate import TaskState, Verdict

#: What the daemon answers to an ``Ask``.
Reply: TypeAlias = CallStarted | CallDenied | Suspended | CancelRequested


class StopSignal:
    """The request to stop an agent:
    at its next durable point, or, when it is cancelled, at once.
    """

    def __init__(self) -> None:
        self.requested: CancelRequested | Suspended | None = None
        self._interruptible: asyncio.Task[Any] | None = None
        self._interrupted = False

    def request(self, event: CancelRequested | Suspended) -> None:
        """Ask for it. A cancellation also interrupts the model call or tool that runs."""
        self.requested = event
        if self._interruptible is not None and isinstance(event, CancelRequested):
            self._interrupted = self._interruptible.cancel()

    def absorb(self) -> bool:
        """Return whether the ``CancelledError`` at hand was this signal's own;
        then it is over with.
        """
        task = asyncio.current_task()
        if task is None or not self._interrupted:
            return False
        self._interrupted = False
        task.uncancel()
        return True

    @property
    def cancelled(self) -> bool:
        """Whether nothing more is wanted of this agent."""
        return isinstance(self.requested, CancelRequested)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Mark an effect that a cancellation may break off;
        one that came before it breaks it off at once.
        """
        if self.cancelled:
            self._interrupted = True
            raise asyncio.CancelledError
        around, self._interruptible = self._interruptible, asyncio.current_task()
        try:
            yield
        finally:
            self._interruptible = around


class AgentServices(Protocol):
    """The services of an agent: all that it may use of the outside."""

    client: ModelClient
    sandbox: Sandbox
    stop: StopSignal
    #: Knows the keys of all providers and the secrets of the task.
    masker: Masker
    #: Whether this is another machine than the daemon's, whose disks it shares.
    away: bool

    def clock(self) -> float:
        """Return the time, in seconds since the epoch."""

    def moved(self) -> float:
        """Return how far the clock has moved without time passing since this was last asked;
        0.0 where it has not.
        """

    async def ask(self, ask: wire.Ask) -> Reply:
        """Commit the events and wait for a permit; raises ``StaleAttemptError``."""

    async def failed(self, failed: wire.Failed) -> Reply:
        """Commit the events and wait for what the governor says; raises ``StaleAttemptError``."""

    async def record(self, record: wire.Record) -> None:
        """Return when the events are durable; raises ``StaleAttemptError``."""

    def progress(self, step: Activity, detail: str) -> None:
        """Report what the task is doing, for people."""

    async def keep(self, patch: Patch) -> Patch:
        """Return a patch when it is durable beside where the result will be;
        one that cannot be there says so.

        Raises ``FolderError`` where the agent is to stop before the folder takes it.
        """

    def finish(
        self,
        state: TaskState,
        verdict: Verdict,
        at: float,
        *,
        files: Mapping[str, FileStamp] | None = None,
        triggers: Mapping[str, Trigger] | None = None,
        patch: Patch | None = None,
        unsynced: str = "",
    ) -> TaskFinished:
        """Return the last event, with the result's text.

        ``files`` and ``triggers``: the directory as it is now. ``unsynced``: why ``files`` are not
        on the disk; empty: they are.
        """


class EventBuffer:
    """The task's events: all of them, and those that are not durable yet."""

    def __init__(self, run: wire.Run, host: AgentServices) -> None:
        self.run = run
        self.events: list[Event] = wire.unraw(run.history)
        #: The number of the first event that is not durable.
        self.seq = len(self.events)
        self._waiting: list[msgspec.Raw] = []
        self._host = host

    def add(self, event: Event) -> None:
        """Append an event; it becomes durable with the next flush."""
        self.events.append(event)
        if isinstance(event, CallStarted):
            self.seq += 1  # the daemon committed it with the permit
        else:
            self._waiting.append(msgspec.Raw(encode(event)))

    def take(self) -> tuple[msgspec.Raw, ...]:
        """Return the waiting events, to be committed by whatever carries them."""
        waiting, self._waiting = tuple(self._waiting), []
        self.seq += len(waiting)
        return waiting

    async def flush(self) -> None:
        """Return when every event so far is durable; raises ``StaleAttemptError``."""
        if self._waiting:
            seq, events = self.seq, self.take()
            run = self.run
            await self._host.record(
                wire.Record(ref=run.ref, attempt=run.attempt, seq=seq, events=events)
            )
