"""Commands: what the control socket can ask of the daemon, answered in one ``match``.

Each order is durable before it is answered, and leaves one line in the log. What runs again is in
``retry``, the looks of ``status`` and ``check`` in ``status``, what a ``run`` hands over in
``errands``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from batchd.control import (
    AskStatus,
    Cancel,
    Cancelled,
    Check,
    ControlRequest,
    Detach,
    Nice,
    Niced,
    Pause,
    Paused,
    Prioritised,
    Priority,
    Prune,
    Pruned,
    Resume,
    ResumedScope,
    Retry,
    ShownParking,
    Submit,
    Tune,
    Tuned,
    requests,
)
from batchd.control.requests import A
from batchd.control.socket_server import Requester
from batchd.daemon import main_loop, targets
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.errands import Errands
from batchd.daemon.listeners import Listener
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.parking_lot import ParkingLot
from batchd.daemon.reloading import Reloader, shown
from batchd.daemon.retry import Reruns
from batchd.daemon.status import Desk
from batchd.daemon.writes import DaemonStore
from batchd.errors import BatchdError, UsageError
from batchd.events import Event, TaskFinished
from batchd.free_room import STATE, NeededRoom
from batchd.lifecycle import Lifecycle, inputs, is_of
from batchd.lifecycle.holds import ALL, DAY, Key
from batchd.log import Action, detailed, get_logger
from batchd.records import Cause, Parking, Ref, Scope, TaskStatus
from batchd.spool import outbox
from batchd.store import lookups, operations

#: Items of a list that a line of the log shows.
_SHOWN = 20
#: Tasks that are looked at in one go, before others get their turn.
_CHUNK = 200
#: A priority is a number of 32 bits, as in a task file.
_INT32 = 1 << 31
_DAY_S = 86400.0
_MOST_DAYS = 1e6
#: `prune` makes no file, and deletes some: mirrors lie on that disk, too.
_ROOM_TO_PRUNE = replace(STATE, files=0)


@dataclass(slots=True, eq=False)
class _EndWait:
    """An order that waits for some tasks to end."""

    left: set[Ref]
    #: Of those whose end is durable, the ones that ended as cancelled.
    cancelled: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False, repr=False)
class Commands(Listener):
    """Answers every request; listens for the ends that a ``cancel`` waits for."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _outboxes: Outboxes
    _batches: OpenBatches
    _attempts: Attempts
    _lot: ParkingLot
    _reloader: Reloader
    _reruns: Reruns
    _errands: Errands
    _desk: Desk
    _waits: list[_EndWait] = field(default_factory=list)

    async def carry_out(self, request: ControlRequest[A], by: Requester) -> A:
        """Do what is asked, with a line in the log where that is an order.

        Raises ``BatchdError`` where it is refused.
        """
        answer: A
        if isinstance(request, AskStatus | Check) or request == Tune():
            begun = time.monotonic()
            answer = await self._answer(request, by)
            if detailed():
                who = {"verb": request.verb(), "uid": by.uid, "pid": by.pid}
                took_s = round(time.monotonic() - begun, 3)
                get_logger().debug(Action.QUESTION_ANSWERED, **who, seconds=took_s)
            return answer
        kind, given = type(request), requests.fields(request)
        try:
            # It may have waited a while to be read:
            # for a daemon that was stopped, or had much to do.
            by.insist()
            answer = await self._answer(request, by)
        except BatchdError as error:
            self.refused(kind, given, by, error)
            raise
        get_logger().info(Action.COMMAND_DONE, **_asked(kind, given, by) | _answered(answer))
        return answer

    def refused(
        self,
        kind: type[ControlRequest[Any]],
        given: Mapping[str, Any],
        by: Requester,
        error: BatchdError,
    ) -> None:
        """Leave a line about a request that is refused, be it for its fields."""
        fields = _asked(kind, given, by)
        get_logger().warning(Action.COMMAND_REFUSED, **fields | {"message": str(error)})

    async def _answer(self, request: ControlRequest[Any], by: Requester) -> Any:
        match request:
            case Cancel():
                return await self._cancel(request, by)
            case Pause():
                return await self._pause(request, by)
            case Resume():
                return await self._resume(request, by)
            case Priority(target=target, priority=priority):
                found = await self._prioritise(target, lambda _: priority, by)
                return Prioritised(tasks=len(found))
            case Nice(target=target, by=more):
                found = await self._prioritise(target, lambda own: own + more, by)
                return Niced(tasks=len(found), priorities=tuple(sorted({*found})))
            case Retry():
                await self._ready(by, STATE)
                return await self._reruns.retry(request, by)
            case Prune():
                return await self._prune(request, by)
            case Tune(changes=changes, reset=reset):
                return Tuned(overrides=await self._reloader.tune(changes, reset=reset))
            case Submit():
                await self._ready(by, STATE)
                return await self._errands.submit(request, by)
            case Detach():
                return self._errands.detach(request)
            case AskStatus():
                return await self._desk.status(request)
            case Check():
                return await self._desk.check(request)
        raise AssertionError(f"{request} has no answer")

    async def _ready(self, by: Requester, needed: NeededRoom | None = None) -> None:
        """Return if the store can be written, and the giver is still there: an order that waited
        for a disk would surprise later.

        ``needed``: the room on the disk; None: it is urgent, and carried out on a full disk, too.
        """
        await self._store.ready(needed)
        by.insist()

    # cancel

    async def _cancel(self, order: Cancel, by: Requester) -> Cancelled:
        """End batches or tasks, as far as they have not ended; answer when their ends are durable.

        Raises ``UsageError`` where all have ended, and not all as cancelled.
        """
        await self._ready(by)
        found = targets.find(self._store, order.target, refused=True)
        refs = [ref for target in found for ref in target.left()]
        over = tuple(each for target in found for each in target.over())
        del found  # of 100,000 tasks it takes more than all that follows
        if not refs and not all(map(targets.cancelled, over)):
            raise UsageError("; ".join(map(targets.why, over)))
        if not refs:
            return Cancelled(cancelled=0, ended=over)
        for ref in refs:
            if ref not in self._lifecycle.entries:
                raise targets.left_over(ref.batch)
        wait = _EndWait(set(refs))
        self._waits.append(wait)
        try:
            await self._attempts.end_all(refs, order.message, by.insist)
            await wait.over.wait()
        finally:
            self._waits.remove(wait)
        # Those left out ended by themselves, before the order reached them.
        return Cancelled(cancelled=wait.cancelled, ended=over)

    def task_event(self, ref: Ref, event: Event) -> None:
        """Note a durable end."""
        if isinstance(event, TaskFinished):
            for wait in self._waits:
                if ref in wait.left:
                    wait.left.remove(ref)
                    wait.cancelled += event.status is TaskStatus.CANCELLED
                    if not wait.left:
                        wait.over.set()

    # pause, resume

    async def _pause(self, order: Pause, by: Requester) -> Paused:
        """Let nothing of a scope start, and have what runs give its slot back."""
        await self._ready(by)
        scope, name = self._scope(order.scope, order.name)
        message = order.message or "paused"
        parking = Parking(
            scope=scope, name=name, cause=Cause.PAUSED, message=message, since=time.time()
        )
        parked = await self._lot.park(parking, check=by.insist)
        judged = await self._judged(name) if scope.asked else 0
        return Paused(parked=parked + judged, judged=judged)

    async def _resume(self, order: Resume, by: Requester) -> ResumedScope:
        """Let a scope go on, whatever it waits for;
        without a scope, everything but what is uncertain.

        A task that may have been done already must be named. The answer says what is still
        ``held``, and by what.
        """
        await self._ready(by)
        self._lot.catch_up()
        wanted, holders = self._wanted(order)
        resumed = await self._lot.resume(*sorted(wanted))
        left = [
            (parking, (parking.scope, parking.name)) for parking in self._lifecycle.holds.parkings
        ]
        # What is still parked although it was named: a provider must answer one call first; else,
        # as with a day's budget that is still spent, it was parked again at once.
        named = {key for _, key in left if key in wanted}
        trying = {name for scope, name in named if scope.asked}
        again = {key for key in named if not key[0].asked}
        return ResumedScope(
            resumed=resumed - len(again),
            trying=tuple(sorted(trying)),
            held=tuple(
                ShownParking.of(parking)
                for parking, key in left
                if key in again or (key not in wanted and (holders is None or key in holders))
            ),
        )

    def _wanted(self, order: Resume) -> tuple[set[Key], set[Key] | None]:
        """Return what is to go on, and what may hold it back all the same;
        None: whatever is parked.
        """
        parkings = self._lifecycle.holds.parkings
        if order.scope is None:
            return {(p.scope, p.name) for p in parkings if p.cause is not Cause.UNCERTAIN}, None
        scope, name = self._scope(order.scope, order.name)
        wanted = {(scope, name)}
        if scope is Scope.ALL:
            return wanted, None
        holders: set[Key] = {ALL, DAY}
        refs: list[Ref] = []
        if scope is Scope.PROVIDER:
            # Its models may be parked one by one.
            own = (p for p in parkings if p.scope is Scope.MODEL and is_of(p.name, name))
            wanted |= {(p.scope, p.name) for p in own}
        elif scope is Scope.MODEL:
            holders.add((Scope.PROVIDER, name.partition("/")[0]))
        elif scope is Scope.TASK:
            refs = [Ref(*name.split("/", 1))]
            holders.add((Scope.BATCH, refs[0].batch))
        elif scope is Scope.BATCH:
            # A batch's tasks may be parked one by one.
            own = (p for p in parkings if p.scope is Scope.TASK and p.name.startswith(f"{name}/"))
            wanted |= {(p.scope, p.name) for p in own}
            refs = self._lifecycle.concerned(scope, name)
        for ref in refs:
            holders.update(self._lifecycle.needs(ref))
        return wanted, holders

    async def _judged(self, name: str) -> int:
        """Count the tasks of others whose judge is at this provider, or this model:
        they work until they are judged.
        """
        if not is_of(self._current.config.evaluation.judge_model, name):
            return 0
        count = 0
        for place, ref in enumerate(self._lifecycle.refs()):
            if place % _CHUNK == 0:
                await asyncio.sleep(0)
            model = self._lifecycle.model(ref)
            if model and not is_of(model, name):
                count += self._store.read(lookups.find_task, ref).evaluator == "judge"
        return count

    def _scope(self, scope: Scope, name: str) -> tuple[Scope, str]:
        """Return scope and name as holds have them: no name for all and the day.

        Raises ``UsageError`` for a provider that is not known,
        and a batch or task that is not under way.
        """
        # What is parked can be named, also when the configuration has it no more.
        parked = (p.name.partition("/")[0] for p in self._lifecycle.holds.parkings if p.scope.asked)
        known = dict.fromkeys((*self._current.config.providers, *parked))
        provider, _, model = name.partition("/")
        if scope.asked and (scope is Scope.MODEL) != bool(model):
            raise UsageError(f"{name!r} is not a {scope}: name a model PROVIDER/MODEL")
        if scope.asked and provider not in known:
            raise UsageError(
                f"there is no provider {provider}; the known ones are {', '.join(known)}"
            )
        batch = name.partition("/")[0]
        if scope in {Scope.BATCH, Scope.TASK} and self._batches.get(batch) is None:
            if self._store.read(lookups.used, batch) and self._store.read(
                lookups.unfinished, batch
            ):
                raise targets.left_over(batch)
            targets.find(self._store, name)[0].unfinished()  # it raises, with what there is
            raise UsageError(f"no {scope} {name} is under way: `batchd status` lists what there is")
        if scope is Scope.TASK and (
            "/" not in name or not self._lifecycle.open(Ref(*name.split("/", 1)))
        ):
            targets.find(self._store, name)[0].unfinished()
            raise UsageError(f"no task {name} is under way")
        return scope, "" if scope in {Scope.ALL, Scope.DAY} else name

    # priority, nice, prune

    async def _prioritise(
        self, target: str | tuple[str, ...], new: Callable[[int], int], by: Requester
    ) -> list[int]:
        """Give tasks that have not ended another priority, made of their own; return what each
        has now.
        """
        await self._ready(by)
        refs = [ref for each in targets.find(self._store, target) for ref in each.unfinished()]

        def fitting(priority: int) -> int:
            if not -_INT32 <= (found := new(priority)) < _INT32:
                raise UsageError("a priority is a whole number of 32 bits; higher goes first")
            return found

        found = await self._store.order(operations.prioritise, refs, fitting, by.insist)
        for ref, priority in zip(refs, found, strict=True):
            self._lifecycle.take(inputs.Reprioritised(ref, priority))
        main_loop.wake()
        return found

    async def _prune(self, order: Prune, by: Requester) -> Pruned:
        """Drop what batches have left that were published ``older_than_days`` ago, or earlier.

        ``outbox``: their folders too. Names, results' statuses, tokens and money stay.
        """
        days = order.older_than_days
        if not 0 <= days <= _MOST_DAYS:
            raise UsageError("older_than_days is a number of days, from 0 on")
        before = time.time() - days * _DAY_S
        found = self._store.read(lookups.prunable, before)
        removed, freed, problems = 0, 0, []
        for each in found if order.outbox else ():
            folder = outbox.PublishedFolder(each.batch.outbox, each.batch.name)
            size = await self._outboxes.at(folder.size, each.batch.outbox)
            if size is None:
                continue
            if problem := await self._outboxes.at(folder.remove, each.batch.outbox):
                problems.append(problem)
            else:
                removed, freed = removed + 1, freed + size
        # The journals last: an order that is cut short can be given again.
        # The folders may have made room for it.
        await self._ready(by, _ROOM_TO_PRUNE)
        while await self._store.order(operations.prune, before):
            pass
        mirrors, mirror_bytes = await self._attempts.bases.prune()
        return Pruned(
            pruned=sum(each.stored for each in found),
            bytes=sum(each.bytes for each in found),
            folders=removed,
            folder_bytes=freed,
            mirrors=mirrors,
            mirror_bytes=mirror_bytes,
            problems=tuple(problems),
        )


def _asked(
    kind: type[ControlRequest[Any]], given: Mapping[str, Any], by: Requester
) -> dict[str, Any]:
    """Return who asks, and for what. ``given``: the fields of the request, as JSON has them."""
    fields = {name: value for name, value in given.items() if name != "claim"}
    if wanted := fields.get("changes"):
        fields["changes"] = shown(wanted) if isinstance(wanted, dict) else "…"
    fields = {k: [*v][:_SHOWN] if isinstance(v, list | tuple) else v for k, v in fields.items()}
    who = {"verb": kind.verb(), "uid": by.uid, "pid": by.pid, "via": by.via}
    return {k: v for k, v in {**who, **fields}.items() if v or k in {"uid", "pid"}}


def _answered(answer: object) -> dict[str, Any]:
    """Return the figures and names of an answer."""
    fields = requests.fields(answer)
    figures: dict[str, Any] = {k: v for k, v in fields.items() if isinstance(v, int)}
    if batches := fields.get("batches"):
        figures["batches"] = [*batches][:_SHOWN]
    if ended := fields.get("ended"):
        figures["ended"] = [each["target"] for each in ended][:_SHOWN]
    return figures
