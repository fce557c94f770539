"""Bases of clones and copies: fetched once a batch,
while the tasks that wait for them hold no slot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import msgspec

from batchd import decoders, free_room
from batchd.children import ChildBugError, ChildDiedError, Children
from batchd.config import Config
from batchd.control.status import Fetching
from batchd.daemon import main_loop
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.listeners import Listener
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.publisher import Publisher
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.effects import End
from batchd.log import Action, get_logger
from batchd.pool import code
from batchd.records import Base, Batch, Cause, HoldKey, Origin, Reason, Ref, Scope, TaskStatus
from batchd.silent_paths import SilentPathError
from batchd.spool.task_directories import TaskDirectories
from batchd.workspace.fetching import FetchJob, FetchOutcome
from batchd.workspace.mirrors import Mirror, Pin

#: So many are fetched at a time.
_AT_ONCE = 4
#: As many as `status` shows: a task file may ask for a thousand.
_NAMED = 20
#: What git says of a server that may answer the next time; and when that is tried, in seconds.
_PASSING = re.compile("Could not resolve|onnect|imed out|early EOF|hung up|returned error: 5")
_PAUSES_S = (2.0, 10.0)
#: How much longer than its own limit a child may take to say so, in seconds.
_GRACE_S = 30.0
#: How long one is kept for the next job, in seconds.
_IDLE_S = 60.0
#: What it is given of the environment: ssh's agent, authorities of https, the way out.
_VARIABLES = (
    *("HOME", "SSH_AUTH_SOCK", "GIT_SSL_CAINFO", "no_proxy", "NO_PROXY"),
    *("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
)

#: What a batch asks for.
_Wanted: TypeAlias = tuple[str, Origin]


@dataclass(slots=True, eq=False, repr=False)
class Bases(Listener):
    """The bases that open batches have fetched."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _publisher: Publisher
    _outboxes: Outboxes
    #: Those that fetch.
    children: Children = field(default_factory=lambda: fetchers())
    #: What there is: where its mirror lies and the commit; or why it cannot be had.
    _known: dict[_Wanted, Base | str] = field(default_factory=dict)
    #: What is being fetched, and since when.
    _under_way: dict[_Wanted, float] = field(default_factory=dict)
    #: One at a time works in a mirror.
    _mirrors: defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock)
    )
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def of(self, ref: Ref, origin: Origin) -> Base | None:
        """Return what a task begins with; None:
        it is to wait, or to end, which is ``keep``'s business.
        """
        known = self._known.get((ref.batch, origin))
        if not isinstance(known, Base):
            return None
        branch = f"batchd/{ref.batch}/{ref.task}" if origin.kind == "clone" else ""
        return msgspec.structs.replace(known, branch=branch)

    def keep(self, ref: Ref, batch: Batch, origin: Origin) -> None:
        """Keep a task from starting until what it asks for is there;
        end it where that cannot be had.
        """
        wanted = (ref.batch, origin)
        known = self._known.get(wanted)
        if isinstance(known, str):
            self._give_up([ref], known)
            return
        self._lifecycle.take(inputs.Held(ref, _until(wanted)))
        if wanted not in self._under_way:
            self._under_way[wanted] = time.time()
            main_loop.spawn(self._work(wanted, batch))

    @property
    def fetching(self) -> tuple[Fetching, ...]:
        """What tasks wait for, up to some that began first."""
        return tuple(
            Fetching(batch=batch, source=origin.source, ref=origin.ref, kind=origin.kind, since=at)
            for (batch, origin), at in islice(self._under_way.items(), _NAMED)
        )

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Forget what it has used; copies go at once, repositories stay for its clones."""
        for wanted in [wanted for wanted in self._known if wanted[0] == batch.name]:
            self._forget(self._known.pop(wanted))

    def _forget(self, known: Base | str) -> None:
        if isinstance(known, Base) and known.origin.kind == "copy":
            main_loop.spawn(_removed(Mirror(Path(known.mirror).parent)))

    async def prune(self) -> tuple[int, int]:
        """Remove the mirrors that nothing begins at any more; return how many, and their bytes.

        One in use is left alone.
        """
        count = size = 0
        mirrors = self._current.config.workspace.mirrors
        for mirror in await asyncio.to_thread(lambda: list(Mirror.all(mirrors))):
            lock = self._mirrors[str(mirror.holder)]
            if lock.locked():
                continue
            async with lock:
                freed = await asyncio.to_thread(_freed, mirror, self._open)
            count, size = count + (freed is not None), size + (freed or 0)
        return count, size

    def _open(self, batch: str) -> bool:
        """Whether tasks of a batch may still begin, or go on."""
        return bool(self._lifecycle.of(batch))

    async def _work(self, wanted: _Wanted, batch: Batch) -> None:
        found = None
        try:
            while found is None:
                try:
                    found = await self._found(wanted, batch)
                except SilentPathError as error:
                    await self._outboxes.answers(error.path)
        finally:
            del self._under_way[wanted]
        if not self._open(batch.name):
            self._forget(found)  # all of its tasks were ended meanwhile
            return
        self._known[wanted] = found
        refs = self._lifecycle.lift(_until(wanted))
        if isinstance(found, str):
            self._give_up(refs, found)
        main_loop.wake()

    async def _found(self, wanted: _Wanted, batch: Batch) -> Base | str:
        """Return what a batch asks for, or why it cannot be had. Raises ``SilentPathError``."""
        name, origin = wanted
        config = self._current.config
        look = partial(_look, config, batch, origin)
        try:
            mirror, why = await self._outboxes.look(look, origin.source)
            if why:
                return why
            async with self._mirrors[str(mirror.holder)]:
                pin = await asyncio.to_thread(mirror.pinned, name, batch.folder)
                there = pin is not None and await asyncio.to_thread(mirror.kept.is_dir)
                commit = pin.commits.get(origin.ref) if pin and there else None
                if commit is None:
                    copy = origin.kind == "copy"
                    pin = pin or Pin(batch=name, folder=batch.folder, copy=copy, commits={})
                    outcome = await self._fetched(pin, origin, mirror, fetch=not there)
                    if outcome.error:
                        await self._outboxes.look(look, origin.source)  # its disk may hang by now
                        return f"{origin.source}: {outcome.error}"
                    commit = outcome.commit
        except (OSError, msgspec.DecodeError) as error:
            return f"{origin.source}: it cannot be fetched: {error}"
        return Base(origin=origin, mirror=str(mirror.kept), commit=commit)

    async def _fetched(
        self, pin: Pin, origin: Origin, mirror: Mirror, *, fetch: bool
    ) -> FetchOutcome:
        """Let a child fetch an origin when its turn has come, and again where a disk refuses it.

        Raises ``OSError``, ``msgspec.DecodeError``.
        """
        about = {"batch": pin.batch, "source": origin.source}
        began = time.monotonic()
        get_logger().info(Action.MIRROR_FETCHING, **about)
        ask = partial(self._asked, pin, origin, mirror, fetch=fetch)
        for pause_s in (0.0, *_PAUSES_S) if origin.remote else (0.0,):
            await asyncio.sleep(pause_s)
            outcome = await self._outboxes.patiently(ask, Action.MIRROR_TROUBLE)
            if not _PASSING.search(outcome.error):
                break
        if not outcome.error:
            took = round(time.monotonic() - began, 3)
            get_logger().info(Action.MIRROR_FETCHED, **about, waited_s=took)
        return outcome

    async def _asked(
        self, pin: Pin, origin: Origin, mirror: Mirror, *, fetch: bool
    ) -> FetchOutcome:
        """Return what a child answers that fetches.

        Raises ``OSError`` where the disk takes nothing, and tasks wait for it,
        and ``NotPossibleError`` after an upgrade in place.
        """
        config = self._current.config
        workspace = config.workspace
        job = FetchJob(
            origin=origin,
            kept=str(mirror.kept),
            fetch=fetch,
            pin=pin,
            policy=config.sandbox_policy(),
            credentials=workspace.credentials,
            timeout_s=workspace.fetch_timeout_s,
            max_bytes=workspace.max_mirror_bytes,
        )
        async with self._turns:
            await code.insist("works on mirrors")
            outcome = await carried_out(
                self.children, job, 2 * workspace.fetch_timeout_s + _GRACE_S
            )
        if outcome.errno and self._open(pin.batch):
            needs = {workspace.mirrors: free_room.MIRRORS}
            said = f"{origin.source}: {outcome.error}"
            raise await asyncio.to_thread(free_room.refusal, said, needs)
        return outcome

    def _give_up(self, refs: Iterable[Ref], why: str) -> None:
        """End tasks that cannot have what they ask for."""
        ends = (End(ref, TaskStatus.ERROR, Reason.WORKSPACE, why) for ref in refs)
        main_loop.spawn(self._publisher.give_up(ends))


def fetchers() -> Children:
    """Return the children that fetch."""
    return Children("batchd.workspace.fetching", keep_s=_IDLE_S, variables=_VARIABLES)


async def carried_out(children: Children, job: FetchJob, timeout_s: float) -> FetchOutcome:
    """Have a child do a job. Raises ``OSError``, ``msgspec.DecodeError``."""
    try:
        answer = await children.ask(msgspec.json.encode(job), timeout_s)
        return decoders.decode(answer, FetchOutcome)
    except TimeoutError:
        return FetchOutcome(error="it does not end")
    except (ChildDiedError, ChildBugError) as error:
        return FetchOutcome(error=f"the program that works on it has died: {error}")


def _until(wanted: _Wanted) -> HoldKey:
    """Return what keeps the tasks that wait for it."""
    batch, origin = wanted
    what = f"{batch} {origin.kind} {origin.source} {origin.ref}"
    return HoldKey(Scope.BATCH, what, Cause.REPOSITORY)


def _look(config: Config, batch: Batch, origin: Origin) -> tuple[Mirror, str]:
    """Return the mirror of an origin, and why no task may have it by now; empty: it may. Blocks."""
    why = TaskDirectories(config).closed(origin)
    return Mirror.of(config.workspace.mirrors, origin, batch.name), why


def _freed(mirror: Mirror, is_open: Callable[[str], bool]) -> int | None:
    """Remove a mirror whose batches have ended, and whose clones have gone;
    return its bytes, None: it stays.
    """
    try:
        with mirror.locked(wait=False):
            pins = mirror.pins()
            for place, pin in pins.items():
                # What cannot be read may be in use.
                over = pin is not None and not is_open(pin.batch)
                if over and pin and (pin.copy or not os.path.lexists(pin.folder)):
                    place.unlink()
            if mirror.pins():
                return None
            size = mirror.size()
            mirror.remove()
    except OSError:
        return None  # another works there, or the next one tries it again
    return size


async def _removed(mirror: Mirror) -> None:
    with contextlib.suppress(OSError):  # `prune` tries it again
        await asyncio.to_thread(partial(mirror.remove))
