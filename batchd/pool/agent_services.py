"""The services of one agent in its worker: how it asks the daemon, keeps its patch, and ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from batchd import free_room, results, wire
from batchd.agent import Reply, StopSignal
from batchd.errors import FolderError, StaleAttemptError
from batchd.events import TaskFinished, decode
from batchd.llm import ModelClient
from batchd.masking import Masker
from batchd.pool.channel import Channel
from batchd.records import Activity, FileStamp, Patch, Trigger
from batchd.sandbox import Sandbox
from batchd.spool import outbox
from batchd.taskstate import TaskState, Verdict

#: How long until a disk is tried again that takes nothing, in seconds.
_AGAIN_S = 5.0
#: What the clock may be adjusted by, in seconds, before the journal notes it.
_MOVED_S = 2.0

_Carrier = TypeVar("_Carrier", wire.Ask, wire.Record)


class WorkerAgentServices:
    """The services of one agent: its ``agent.Host``."""

    def __init__(
        self,
        run: wire.Run,
        masker: Masker,
        *,
        client: ModelClient,
        sandbox: Sandbox,
        channel: Channel,
        show: Callable[[wire.Progress], None],
        away: bool = False,
    ) -> None:
        """``show``: takes what the task does now, for people.

        ``away``: this is another machine than the daemon's, whose disks it shares.
        """
        self.stop = StopSignal()
        self.masker = masker
        self.attempt = run.attempt
        self._ahead = _ahead()
        self.client = client
        self.sandbox = sandbox
        self._run = run
        self._channel = channel
        self._show = show
        #: The answer to the one message that may be out.
        self._answer: asyncio.Future[Any] | None = None
        self.away = away

    def clock(self) -> float:
        """Return the time, in seconds since the epoch."""
        return time.time()

    def moved(self) -> float:
        """Return how far the clock has moved without time passing since this was last asked."""
        ahead = _ahead()
        moved = ahead - self._ahead
        if abs(moved) < _MOVED_S:
            return 0.0
        self._ahead = ahead
        return moved

    async def ask(self, ask: wire.Ask) -> Reply:
        """Commit the events and wait for a permit; raises ``StaleAttemptError``."""
        reply: Reply = await self._exchange(self._learnt(ask))
        return reply

    async def failed(self, failed: wire.Failed) -> Reply:
        """Commit the events and wait for what the governor says; raises ``StaleAttemptError``."""
        reply: Reply = await self._exchange(replace(failed, ask=self._learnt(failed.ask)))
        return reply

    async def record(self, record: wire.Record) -> None:
        """Return when the events are durable; raises ``StaleAttemptError``."""
        await self._exchange(self._learnt(record))

    def progress(self, step: Activity, detail: str) -> None:
        """Show people what the task is doing."""
        self._show(wire.Progress(ref=self._run.ref, attempt=self.attempt, step=step, detail=detail))

    async def keep(self, patch: Patch) -> Patch:
        """Return a patch when it is durable beside where the result will be;
        one that cannot be there says so.

        A disk that takes nothing is waited for.
        Raises ``FolderError`` where the agent is to stop before that.
        """
        while True:
            try:
                await self._publish(patch)
            except OSError as error:
                why = f"its patch cannot be written: {error}"
                if not free_room.refused(error):
                    return Patch(changes=patch.changes, problem=why)
                if self.stop.requested:
                    raise FolderError(why) from error
                self.progress("waiting", why)
                await asyncio.sleep(_AGAIN_S)
            else:
                return patch

    async def _publish(self, patch: Patch) -> None:
        """Return when a patch is durable. Raises ``OSError``."""
        folder = Path(self._run.batch.folder)
        await asyncio.to_thread(outbox.publish_patch, folder, self._run.ref.task, patch)

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
        """Return the last event, with the result's text."""
        run = self._run
        text = results.result(
            run.batch,
            run.task,
            state,
            status=verdict.status,
            reason=verdict.reason,
            error=verdict.error,
            queued_at=run.queued_at,
            finished_at=at,
            attempts=run.attempt,
            files=files,
            triggers=triggers,
            patch=patch,
            unsynced=unsynced,
        )
        return TaskFinished(at=at, status=verdict.status, reason=verdict.reason, result=text)

    def _learnt(self, message: _Carrier) -> _Carrier:
        """Return a message that takes along what the client has learnt:
        limits of providers, and what models refuse.
        """
        limits, lessons = self.client.limits(), self.client.lessons()
        if limits or lessons:
            return replace(message, limits=limits, lessons=lessons)
        return message

    async def _exchange(self, message: wire.Ask | wire.Failed | wire.Record) -> Any:
        self._answer = asyncio.get_running_loop().create_future()
        self._channel.send(message)
        return await self._answer

    def answered(self, message: wire.Granted | wire.Denied | wire.Ack | wire.Nack) -> None:
        """Hand the daemon's answer to the agent that waits for it."""
        if self._answer is None or self._answer.done():
            return
        match message:
            case wire.Granted(event=event):
                self._answer.set_result(event)
            case wire.Denied(event=event):
                self._answer.set_result(decode(bytes(event)))
            case wire.Ack():
                self._answer.set_result(None)
            case wire.Nack():
                self._answer.set_exception(StaleAttemptError())


def _ahead() -> float:
    """Return how far the clock is ahead of one that is never set,
    and that sleeps with the machine.
    """
    return time.time() - time.monotonic()
