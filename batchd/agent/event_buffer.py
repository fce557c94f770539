"""The agent's half of the journal: what is durable, and what waits for the next flush."""

from __future__ import annotations

import msgspec

from batchd import wire
from batchd.agent.services import AgentServices
from batchd.events import CallStarted, Event, encode


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
