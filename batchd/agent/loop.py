"""The agent loop: decide, perform, record."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import UNSET
from msgspec.structs import replace

from batchd import free_room, wire
from batchd.agent import context, prompts, seen
from batchd.agent.context import Compact
from batchd.agent.decide import Conclude, RunTool, Step, decide
from batchd.agent.perform import Performer
from batchd.agent.services import AgentServices, EventBuffer
from batchd.errors import FolderError, SandboxError, StaleAttemptError, WorkspaceError
from batchd.events import CallStarted, ClockMoved, Event, Resumed, TaskStarted
from batchd.records import Reason, TaskStatus, Trigger
from batchd.sandbox import Workplace
from batchd.taskstate import TaskState, Verdict, apply, fold
from batchd.workspace import clones

#: Size and mtime of a file's stamp: all that is the same on another machine.
_LASTING = 2
EndedAs: TypeAlias = Literal["finished", "suspended", "stale"]


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of an attempt."""

    outcome: EndedAs
    state: TaskState
    events: tuple[Event, ...]


async def run(run: wire.Run, host: AgentServices) -> AttemptEnd:
    """Work on a task until it is finished, suspended, or given to somebody else."""
    # A long history takes seconds to read.
    agent = await asyncio.to_thread(_Agent, run, host) if run.history else _Agent(run, host)
    try:
        await agent.work()
    except StaleAttemptError:
        return agent.ended("stale")
    return agent.ended("finished" if agent.state.finished else "suspended")


class _Agent:
    """One attempt at one task."""

    def __init__(self, run: wire.Run, host: AgentServices) -> None:
        self._run = run
        self._host = host
        self._journal = EventBuffer(run, host)
        self.state = fold(run.task.first_prompt, self._journal.events)
        #: What others run in the directory, where the sandbox failed.
        self._triggers: Mapping[str, Trigger] | None = None

    def ended(self, outcome: EndedAs) -> AttemptEnd:
        return AttemptEnd(outcome, self.state, tuple(self._journal.events))

    async def work(self) -> None:
        if self.state.finished:
            return
        try:
            await self._work_in_sandbox()
        except (WorkspaceError, SandboxError) as error:
            if free_room.refused(error):
                await self._journal.flush()
                raise FolderError(str(error)) from error
            reason = Reason.SANDBOX if isinstance(error, SandboxError) else Reason.WORKSPACE
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EFBIG:
                reason = Reason.DISK  # more than the task may have on it
            message = self._host.masker.text(str(error))
            verdict = Verdict.of(TaskStatus.ERROR, reason, message)
            self._add(
                self._host.finish(self.state, verdict, self._host.clock(), triggers=self._triggers)
            )
        await self._journal.flush()

    async def _work_in_sandbox(self) -> None:
        run, task = self._run, self._run.task
        async with await self._host.sandbox.open(
            run.batch.directory(task),
            fresh=not task.dir,
            network=task.network,
            env={**task.env, **{name: s.value for name, s in task.secrets.items()}},
            masker=self._host.masker,
            tmp=run.tmp,
            base=run.base.mirror if run.base else "",
            held=self.state.terms.held if self.state.terms else None,
        ) as place:
            try:
                # What another machine has changed is on the disks before its event is durable.
                boot = UNSET if self._host.away else _boot() or UNSET
                lost = bool(boot) and self.state.boots.get(run.node, boot) != boot
                lost = lost or (run.lost and not self.state.files_lost)
                opening = await self._opening(place, lost=lost)
                self._add(replace(opening, node=run.node or UNSET, boot=boot))
                performer = Performer(run, self._host, self._journal, place)
                await self._loop(performer)
            except SandboxError:
                self._triggers = await asyncio.to_thread(place.triggers)
                raise
            finally:
                await place.clear("the task ended")
            if not self.state.finished:
                # What went on in the background since its last step;
                # if it cannot be kept, that step still can.
                with contextlib.suppress(FolderError):
                    await performer.kept()

    async def _loop(self, performer: Performer) -> None:
        """Decide, perform, record, until the task is finished or the agent is asked to stop."""
        stop = self._host.stop
        while not self.state.finished and not self.state.suspended:
            if stop.requested and not self.state.verdict:
                self._add(replace(stop.requested, at=self._host.clock()))
                continue
            self._see_clock()
            try:
                step = await self._decided()
                async for event in performer.perform(step, self.state):
                    self._add(event)
                if isinstance(step, RunTool | Compact | Conclude):
                    # It may have waited for nothing, and a hundred like it may follow.
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                if not stop.absorb():
                    raise

    async def _decided(self) -> Step:
        args = self._run.task, self.state, self._host.clock()
        if context.laborious(self.state):
            return await asyncio.to_thread(decide, *args)
        return decide(*args)

    async def _opening(self, place: Workplace, *, lost: bool) -> TaskStarted | Resumed:
        """Return how this attempt begins; ``lost``: files of the one before may be."""
        before, terms, task = self.state.terms, self._run.terms, self._run.task
        base = self._run.base
        # A clone, or a copy, that no model has worked in can be made once more.
        makes = base is not None and (before is None or (lost and not self.state.spend))
        goes_on = self.state.spend or (
            before
            and ((before.model.api, before.model.tools) == (terms.model.api, terms.model.tools))
        )
        if goes_on and not makes:
            words = prompts.LEFT_ELSEWHERE if self._run.lost else prompts.LOST
            learns = words if lost and (self.state.commands or base) else UNSET
            return Resumed(at=self._host.clock(), attempt=self._run.attempt, lost=learns)
        if base is not None and makes:
            await clones.make(place, base, self._run.base_s)
        text = terms.model.tools == "text"
        stays, facts = place.can_stay, await place.facts()
        facts += prompts.CLONED if base is not None and base.branch else ""
        files = {} if place.new else await asyncio.to_thread(place.files)
        says, most = "", context.output_bytes(terms.model)
        if terms.agents_md and not place.new:
            says = await context.words(place, files, *([most] if most else []))
        prompt = prompts.system(task, facts, text=text, stays=stays, owner=says)
        if before is not None:
            # No model has answered yet: it begins as it would today.
            terms = replace(
                before,
                model=terms.model,
                judge=terms.judge,
                agents_md=terms.agents_md,
                system_prompt=prompt,
                keep_processes=stays,
                circles=True,
            )
            if makes:
                triggers = await asyncio.to_thread(place.triggers)
                terms = replace(terms, files=files, triggers=triggers)
            return Resumed(at=self._host.clock(), attempt=self._run.attempt, terms=terms)
        if self._host.away:
            files = files and {path: stamp[:_LASTING] for path, stamp in files.items()}
        opening, quoted = await seen.opening(place, files, task.first_prompt, most)
        terms = replace(
            terms,
            system_prompt=prompt,
            opening=opening,
            quoted=quoted,
            keep_processes=stays,
            circles=True,
            files=files,
            triggers={},
            base=base,
            check_in=task.check_in,
        )
        if task.check_in == "apart":
            # In the place of its commands a check has what they left, and promises nothing.
            links = {} if place.new else await place.leading_out()
            terms = replace(terms, links=links)
        if not place.new:
            triggers = await asyncio.to_thread(place.triggers)
            terms = replace(terms, triggers=triggers, held=await place.held())
        # What the clock was moved by until now is no time of this task's.
        self._host.moved()
        return TaskStarted(at=self._host.clock(), terms=terms)

    def _add(self, event: Event) -> None:
        # A call's beginning is in the journal already: the daemon wrote it, with the permit.
        if not isinstance(event, CallStarted):
            self._see_clock()
        self._append(event)

    def _see_clock(self) -> None:
        """Take what the clock was moved by, or what the machine slept, out of the time at work."""
        if self.state.last_at and (moved := self._host.moved()):
            self._append(ClockMoved(at=self._host.clock(), by_s=moved))

    def _append(self, event: Event) -> None:
        self._journal.add(event)
        self.state = apply(self.state, event)


@functools.cache
def _boot() -> str:
    """Return what tells this start of the machine from all others; empty: nothing does."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]
    return ""
