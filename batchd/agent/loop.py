"""The agent loop: decide, perform, record."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec

from batchd import wire
from batchd.agent import prompts
from batchd.agent.decide import decide
from batchd.agent.perform import Performer
from batchd.errors import SandboxError, StaleAttemptError
from batchd.events import (
    CallDenied,
    CallStarted,
    CancelRequested,
    Event,
    Resumed,
    Suspended,
    TaskFinished,
    TaskStarted,
    encode,
)
from batchd.llm import ModelClient
from batchd.records import ErrorInfo, Reason, Status
from batchd.sandbox import Sandbox, Workplace
from batchd.taskstate import TaskState, Verdict

#: What the daemon answers to an ``Ask``.
Reply = CallStarted | CallDenied | Suspended | CancelRequested


class StopSignal:
    """How the outside asks an agent to stop: at its next durable point, or, when cancelled, at once."""

    def __init__(self) -> None:
        self.requested: CancelRequested | Suspended | None = None
        self._interruptible: asyncio.Task[Any] | None = None

    def request(self, event: CancelRequested | Suspended) -> None:
        """Ask for it. A cancellation also interrupts the model call or tool that runs."""
        self.requested = event
        if self._interruptible is not None and isinstance(event, CancelRequested):
            self._interruptible.cancel()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Mark an effect that a cancellation may break off."""
        self._interruptible = asyncio.current_task()
        try:
            yield
        finally:
            self._interruptible = None


class Host(Protocol):
    """What an agent may use of the outside."""

    client: ModelClient
    sandbox: Sandbox
    stop: StopSignal

    def clock(self) -> float:
        """Return the time, in seconds since the epoch."""

    async def ask(self, ask: wire.Ask) -> Reply:
        """Commit the events and wait for a permit; raises ``StaleAttemptError``."""

    async def failed(self, failed: wire.Failed) -> Reply:
        """Commit the events and wait for what the governor says; raises ``StaleAttemptError``."""

    async def record(self, record: wire.Record) -> None:
        """Return when the events are durable; raises ``StaleAttemptError``."""

    def progress(self, step: str, detail: str) -> None:
        """Tell people what the task is doing."""

    def finish(
        self,
        state: TaskState,
        verdict: Verdict,
        files: Mapping[str, tuple[int, int]] | None,
        at: float,
    ) -> TaskFinished:
        """Return the last event, with the result's text. ``files`` is the directory as it is now."""


class Journal:
    """The task's events: all of them, and those that are not durable yet."""

    def __init__(self, run: wire.Run, host: Host) -> None:
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


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended."""

    #: ``finished``, ``suspended`` or ``stale``.
    outcome: str
    state: TaskState
    events: tuple[Event, ...]


async def run(run: wire.Run, host: Host) -> Ended:
    """Work on a task until it is finished, suspended, or given to somebody else."""
    agent = _Agent(run, host)
    try:
        await agent.work()
    except StaleAttemptError:
        return agent.ended("stale")
    return agent.ended("finished" if agent.state.finished else "suspended")


class _Agent:
    """One attempt at one task."""

    def __init__(self, run: wire.Run, host: Host) -> None:
        self._run = run
        self._host = host
        self._journal = Journal(run, host)
        self.state = TaskState.of(run.task.first_prompt, self._journal.events)

    def ended(self, outcome: str) -> Ended:
        return Ended(outcome, self.state, tuple(self._journal.events))

    async def work(self) -> None:
        if self.state.finished:
            return
        try:
            await self._work_in_sandbox()
        except SandboxError as error:
            info = ErrorInfo(type=Reason.SANDBOX, message=str(error))
            verdict = Verdict(status=Status.ERROR, reason=Reason.SANDBOX, error=info)
            self._add(self._host.finish(self.state, verdict, None, self._host.clock()))
        await self._journal.flush()

    async def _work_in_sandbox(self) -> None:
        task = self._run.task
        with await self._host.sandbox.open(
            self._run.batch.directory(task), fresh=not task.dir, network=task.network, env=task.env
        ) as place:
            self._add(await self._opening(place))
            await self._loop(Performer(self._run, self._host, self._journal, place))

    async def _loop(self, performer: Performer) -> None:
        """Decide, perform, record, until the task is finished or the agent is told to stop."""
        task, stop = self._run.task, self._host.stop
        while not self.state.finished and not self.state.suspended:
            if stop.requested and not self.state.verdict:
                self._add(stop.requested)
                continue
            step = decide(task, self.state, self._host.clock())
            try:
                async for event in performer.perform(step, self.state):
                    self._add(event)
            except asyncio.CancelledError:
                if stop.requested is None:
                    raise
                asyncio.current_task().uncancel()  # type: ignore[union-attr] (a coroutine always runs in a task)

    async def _opening(self, place: Workplace) -> Event:
        now = self._host.clock()
        if self.state.terms is not None:
            return Resumed(at=now, attempt=self._run.attempt)
        terms, task = self._run.terms, self._run.task
        text = terms.model.tools == "text"
        prompt = prompts.system(task, await place.facts(), text=text)
        return TaskStarted(at=now, terms=replace(terms, system_prompt=prompt, files=place.files()))

    def _add(self, event: Event) -> None:
        self._journal.add(event)
        self.state = self.state.apply(event)
