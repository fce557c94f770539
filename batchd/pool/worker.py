"""A worker process: one loop, one model client, one sandbox, and a task of the loop for each agent.

It owns no durable state. It ends when the daemon's socket does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from batchd import free_room, pauses, processes, results, wire
from batchd.agent.loop import AttemptEnd
from batchd.agent.services import AgentServices, Reply, StopSignal
from batchd.errors import (
    FolderError,
    NotPossibleError,
    StaleAttemptError,
)
from batchd.events import CancelRequested, Suspended, TaskFinished, decode
from batchd.llm import ModelClient
from batchd.masking import Masker
from batchd.pool import code, threads
from batchd.pool.channel import Channel
from batchd.pool.here import Here
from batchd.pool.lease import Lease
from batchd.records import Activity, FileStamp, Patch, Ref, Trigger
from batchd.sandbox import Sandbox
from batchd.spool import outbox
from batchd.taskstate import TaskState, Verdict
from batchd.version import __version__

#: How soon the daemon learns what a task does.
_NEWS_S = 0.1
#: How long until a disk is tried again that takes nothing, in seconds.
_AGAIN_S = 5.0
#: What the clock may be adjusted by, in seconds, before the journal notes it.
_MOVED_S = 2.0
_LAPSED = "its lease is over: the daemon has not been heard of for too long"
Agent: TypeAlias = Callable[[wire.Run, AgentServices], Awaitable[AttemptEnd]]
_Carrier = TypeVar("_Carrier", wire.Ask, wire.Record)


def main(sock: socket.socket, agent: str) -> None:
    """Work until the daemon closes ``sock`` or drains; ``agent`` is ``module:function``."""
    module, _, function = agent.partition(":")
    # A daemon of another version may call it otherwise: it is to hear of which this worker is.
    worker = Worker(getattr(importlib.import_module(module), function, None))
    asyncio.run(worker.work(lambda channel: channel.attach(sock)))


class Worker:
    """The process: joins the socket, the shared tools and the agents."""

    client: ModelClient
    sandbox: Sandbox

    def __init__(
        self,
        agent: Agent | None,
        lease: Lease | None = None,
        here: Here | None = None,
    ) -> None:
        """``agent`` None: it has another name, the daemon is of another version.

        ``lease``, and ``here``, which finds keys and folders there:
        of a worker on another machine than its daemon's.
        """
        self._agent = agent
        self._lease = lease
        self._here = here
        self._hosts: dict[Ref, WorkerAgentServices] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: By attempt: what has come of histories whose ``Run`` is to come.
        self._histories: dict[tuple[Ref, int], list[msgspec.Raw]] = {}
        self._settings: wire.WorkerSettings | None = None
        #: Whether the sandbox is still to become what the settings say: before the next task.
        self._stale = False
        #: The heart may have to beat faster from now on.
        self._retuned = asyncio.Event()
        #: Whether tasks are given back at their next durable points.
        self._leaving = False
        #: Whether it ends with the last of them: the daemon sends no more.
        self._draining = False
        #: What tasks do now, as far as the daemon does not know it yet.
        self._news: dict[Ref, wire.Progress] = {}
        self._ended = asyncio.Event()
        #: Why it ends, where that was not asked for.
        self._cause = ""
        self.channel = Channel(self._received, self._lost)

    async def work(self, attach: Callable[[Channel], Awaitable[None]]) -> int:
        """Serve until the daemon is gone or has drained this worker; return the exit code.

        ``attach`` connects the channel with the daemon.
        """
        threads.start()
        await attach(self.channel)
        heart = asyncio.create_task(self._beat())
        heart.add_done_callback(self._stopped)
        lean = asyncio.create_task(threads.give_back())
        await self._ended.wait()
        for task in (heart, lean, *self._tasks):
            task.cancel()
        await asyncio.gather(heart, lean, *self._tasks, return_exceptions=True)
        if self._settings is not None:
            await self.client.aclose()
        self.channel.close()
        return 3 if self._cause else 0

    def report(self, progress: wire.Progress) -> None:
        """Report progress soon: of steps that follow in no time, the last one is enough."""
        if self._settings is not None and self._settings.each_step:
            self.channel.send(progress)
            return
        if not self._news:
            asyncio.get_running_loop().call_later(_NEWS_S, self._send_news)
        self._news[progress.ref] = progress

    def _send_news(self) -> None:
        for progress in self._news.values():
            self.channel.send(progress)
        self._news.clear()

    def leave(self, cause: str) -> None:
        """Give every task back at its next durable point, then end:
        what asks for that is not the daemon, which may have sent one more by then.
        """
        if self._settings is None:  # it was not admitted yet
            self._drain()
            return
        self.channel.send(wire.Leaving(cause))
        self._give_back()

    def _lost(self, cause: str) -> None:
        if self._lease is not None and not (cause or self._ended.is_set()):
            cause = "the connection to the daemon was closed"
        if cause and not self._ended.is_set():
            self._cause = cause
            sys.stderr.write(f"batchd worker {os.getpid()}: {cause}\n")
        self._ended.set()

    def _stopped(self, heart: asyncio.Task[None]) -> None:
        """End with the cause, not as one that fell silent, where the heart stops by itself."""
        if not heart.cancelled() and (error := heart.exception()):
            self._lost("".join(traceback.format_exception(error)))

    async def _beat(self) -> None:
        if self._lease is not None:
            await self._retuned.wait()  # until it is admitted, it says nothing
        loop = asyncio.get_running_loop()
        while True:
            if self._lease is not None and self._lease.lapsed:
                self._lost(_LAPSED)
                return
            number = self._lease.sending() if self._lease is not None else 0
            beat = wire.Heartbeat(
                rss=_rss(), busy=len(self._hosts), number=number, at=time.time() if number else 0.0
            )
            self.channel.send(beat)
            self._retuned.clear()
            with contextlib.suppress(TimeoutError):
                every_s = self._settings.heartbeat_s if self._settings else 1.0
                async with asyncio.timeout(pauses.until_next(every_s, loop.time())):
                    await self._retuned.wait()

    def _received(self, message: wire.Down) -> None:
        if self._lease is not None and self._lease.lapsed:
            # What came while this machine stood still allows nothing any more:
            # others may be at its tasks.
            self._lost(_LAPSED)
            return
        match message:
            case wire.LeaseRenewed(number=number):
                assert self._lease is not None, "the daemon renews those of who joined it"
                self._lease.renewed(number)
            case wire.Granted() | wire.Denied() | wire.Ack() | wire.Nack():
                if host := self._host(message):
                    host.answered(message)
            case wire.History(ref=ref, attempt=attempt, events=events):
                self._histories.setdefault((ref, attempt), []).extend(events)
            case wire.Run(ref=ref, attempt=attempt, history=history):
                earlier = self._histories.pop((ref, attempt), [])
                self._start(replace(message, history=(*earlier, *history)))
            case wire.CancelTask(message=why):
                if host := self._host(message):
                    host.stop.request(CancelRequested(at=time.time(), message=why))
            case wire.Park(cause=why):
                if host := self._host(message):
                    host.stop.request(Suspended(at=time.time(), cause="park", message=why))
            case wire.Drain():
                self._drain()
            case wire.Hello() if self._here is not None:
                self._begin(self._found(message, self._here))
            case wire.Hello(version=version, settings=settings):
                self._greeted(version, settings)
            case wire.Retune(settings=settings) if self._here is not None:
                self._begin(self._found_again(settings, self._here))
            case wire.Retune(settings=settings):
                self._retune(settings)

    def _host(
        self,
        to: wire.Granted | wire.Denied | wire.Ack | wire.Nack | wire.CancelTask | wire.Park,
    ) -> WorkerAgentServices | None:
        """Return the services of the attempt that a message is for; None: it has ended."""
        host = self._hosts.get(to.ref)
        return host if host is not None and host.attempt == to.attempt else None

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _found_again(self, settings: wire.WorkerSettings, here: Here) -> None:
        """Take other settings, with the keys that are there by now."""
        settings = replace(settings, endpoints=await asyncio.to_thread(here.endpoints, settings))
        self._retune(settings)
        self.channel.send(wire.KeysFound(here.digests(settings.endpoints)))

    def _retune(self, settings: wire.WorkerSettings) -> None:
        former, self._settings = self._settings, settings
        self._retuned.set()
        if self._lease is not None:
            self._lease.lasts(settings.lease_s)
        # To try a sandbox takes processes and descriptors:
        # where nothing changes, nothing must depend on them.
        if former is None or settings.sandbox != former.sandbox:
            self._stale = True
        self.client.retune(settings.endpoints)
        for host in self._hosts.values():
            host.masker.learn(settings.secrets())

    async def _found(self, hello: wire.Hello, here: Here) -> None:
        """Say Hello with what is found on this machine, which disks that hang may delay."""
        settings = hello.settings
        assert settings is not None, "the daemon's has them"
        endpoints = await asyncio.to_thread(here.endpoints, settings)
        processes.forget(source.env for source in settings.keys.values())
        here.salt = hello.salt
        facts = here.facts(endpoints)
        settings = replace(settings, endpoints=endpoints)
        problem = await asyncio.to_thread(here.problem, hello, settings.sandbox)
        self._greeted(hello.version, settings, facts, problem)

    def _greeted(
        self,
        version: str,
        settings: wire.WorkerSettings | None,
        facts: wire.MachineFacts | None = None,
        problem: str = "",
    ) -> None:
        if version != __version__ or settings is None:
            self.channel.send(self._hello())
            self._lost(f"this is batchd {__version__}, the daemon is {version}: restart it")
            return
        try:
            self.sandbox = Sandbox(settings.sandbox)
        except (OSError, NotPossibleError) as error:  # here it was there when the daemon looked
            problem = problem or str(error)
        self.channel.send(self._hello(problem, facts))
        if problem:
            self._lost(problem)
            return
        self._settings = settings
        self.client = ModelClient(settings.endpoints)
        if self._lease is not None:
            self._lease.lasts(settings.lease_s)
        self._retuned.set()

    def _hello(self, problem: str = "", facts: wire.MachineFacts | None = None) -> wire.Hello:
        return wire.Hello(
            version=__version__,
            code=code.content() if facts else code.fingerprint(),
            pid=os.getpid(),
            problem=problem,
            machine=facts,
        )

    def _start(self, run: wire.Run) -> None:
        assert self._settings is not None, "the daemon says Hello first"
        try:
            if self._stale:
                self.sandbox, self._stale = Sandbox(self._settings.sandbox), False
        except (OSError, NotPossibleError) as error:
            # It has too few descriptors, say, for what it works on,
            # which goes on as it began; another one can.
            self.channel.send(wire.Done(run.ref, run.attempt, "refused", str(error)))
            return
        own = (secret.value for secret in run.task.secrets.values())
        masker = Masker(self._settings.secrets(), known=own)
        self.client.know(run.refused)
        away = self._lease is not None
        host = WorkerAgentServices(
            *(run, masker, self.client, self.sandbox, self.channel, self.report, away)
        )
        self._hosts[run.ref] = host
        if self._leaving:  # it was on its way when this worker said so
            host.stop.request(Suspended(at=time.time(), cause="drain"))
        self._begin(self._work_on(run, host))

    def _give_back(self) -> None:
        self._leaving = True
        for host in self._hosts.values():
            host.stop.request(Suspended(at=time.time(), cause="drain"))

    def _drain(self) -> None:
        self._draining = True
        self._give_back()
        if not self._hosts:
            self._ended.set()

    async def _work_on(self, run: wire.Run, host: WorkerAgentServices) -> None:
        try:
            done = await self._outcome(run, host)
        finally:
            del self._hosts[run.ref]
            self._news.pop(run.ref, None)
        self.channel.send(done)
        if self._draining and not self._hosts:
            self._ended.set()

    async def _outcome(self, run: wire.Run, host: WorkerAgentServices) -> wire.Done:
        """Run the agent and publish what it ends with; here, at the edge, every error is caught."""
        ref, attempt = run.ref, run.attempt
        try:
            assert self._agent is not None, "a daemon of another version gives no task"
            ended = await self._agent(run, host)
            if ended.outcome != "finished":
                return wire.Done(ref, attempt, ended.outcome)
            if self._lease is not None:  # the daemon writes them
                return wire.Done(ref, attempt, "unpublished")
            try:
                published = await asyncio.to_thread(_publish, run, ended)
            except OSError:
                published = False
            if not published:  # the daemon tries it again, and reports why it cannot be
                return wire.Done(ref, attempt, "unpublished")
        except StaleAttemptError:
            return wire.Done(ref, attempt, "stale")
        except FolderError as error:
            return wire.Done(ref, attempt, "unopened", host.masker.text(str(error)))
        except Exception:  # noqa: BLE001 (a bug in one task must not end the others; the daemon logs it and ends the task)
            return wire.Done(ref, attempt, "failed", host.masker.text(traceback.format_exc()))
        return wire.Done(ref, attempt, "published")


@dataclass(eq=False, repr=False)
class WorkerAgentServices:
    """The services of one agent: its ``AgentServices``."""

    _run: wire.Run
    masker: Masker
    client: ModelClient
    sandbox: Sandbox
    _channel: Channel
    #: Takes what the task does now, for people.
    _show: Callable[[wire.Progress], None]
    #: Whether this is another machine than the daemon's, whose disks it shares.
    away: bool = False
    #: The answer to the one message that may be out.
    _answer: asyncio.Future[Any] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.attempt = self._run.attempt
        self.stop = StopSignal()
        self._ahead = _ahead()

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
        folder, task = Path(self._run.batch.folder), self._run.ref.task
        while True:
            try:
                await asyncio.to_thread(outbox.publish_patch, folder, task, patch)
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


def _publish(run: wire.Run, ended: AttemptEnd) -> bool:
    """Write transcript and result; return False where another result was there before."""
    assert ended.state.finished is not None
    transcript, result = results.transcript(ended.events), ended.state.finished.result
    return outbox.publish_task(Path(run.batch.folder), run.ref.task, transcript, result)


@functools.cache
def _statm(pid: int) -> int:
    """Return a descriptor that stays open: a heart must not stop where there is none left."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def _rss() -> int:
    """Return this process's resident memory in bytes."""
    return int(os.pread(_statm(os.getpid()), 128, 0).split()[1]) * resource.getpagesize()
