"""``retry``: tasks of a batch once more, as a run of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET

from batchd.config import Config, providers
from batchd.config.providers import model_problem
from batchd.control import NewRun, Retried, Retry
from batchd.control.socket_server import Requester
from batchd.daemon import main_loop, targets
from batchd.daemon.attempts import Attempts
from batchd.daemon.batches import OpenBatches
from batchd.daemon.current_config import CurrentConfig
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.targets import OrderTarget
from batchd.daemon.writes import DaemonStore
from batchd.errors import BatchdError, Problem, StoreError, TaskFileError, UsageError
from batchd.lifecycle import Lifecycle
from batchd.pauses import aside
from batchd.records import STANDARD, Batch, Cause, Needs, Origin, Ref, Task
from batchd.spool import outbox, taskfile
from batchd.spool.claims import mark
from batchd.spool.task_directories import TaskDirectories
from batchd.spool.ulid import PATTERN, marked, ulid
from batchd.store import lookups, operations
from batchd.store.operations import wanted
from batchd.words import listed

#: Tasks that are read in one go, before others get their turn.
_CHUNK = 200


@dataclass(frozen=True, slots=True)
class _Plan:
    """A run that is to be added."""

    batch: Batch
    tasks: Sequence[Task]
    #: The text of its request file.
    data: bytes
    #: The keys of old tasks that are gone, and left out.
    dropped: Collection[str] = ()


@dataclass(slots=True, eq=False, repr=False)
class Reruns:
    """Starts new runs of old tasks."""

    _current: CurrentConfig
    _lifecycle: Lifecycle
    _store: DaemonStore
    _outboxes: Outboxes
    _batches: OpenBatches
    _attempts: Attempts

    async def retry(self, order: Retry, by: Requester) -> Retried:
        """Run batches or tasks again. With another model, tasks that wait for one that is gone run
        again too: they are cancelled once the new run is durable.

        An order that is given twice with one claim, as its answer was lost, runs once. What is
        stored and reserved for it carries this state directory's mark, by which a later daemon
        knows it for its own.
        """
        store, failed, model = self._store, order.failed, order.model
        claim = order.claim or ulid()
        if model and (problem := model_problem(model, self._current.config)):
            raise UsageError(str(problem))
        if not PATTERN.fullmatch(claim):
            raise UsageError("a claim is a ULID")
        found = targets.find(store, order.target)
        if not store.read(lookups.claimed, claim):  # as earlier versions stored it
            claim = marked(claim, mark(Path(self._current.config.paths.state)))
        claims = [f"{claim}-{number}" if number else claim for number in range(len(found))]
        made = {c: batch for c in claims if (batch := store.read(lookups.claimed, c))}
        plans = {
            c: await self._plan(target, c, failed=failed, model=model)
            for c, target in zip(claims, found, strict=True)
            if c not in made
        }
        for c, plan in plans.items():
            # Once one run is durable the order is, and the others follow.
            made[c] = await self._add(plan, None if made else by)
        for target, c in zip(found, claims, strict=True) if model else ():
            # What has not ended of the tasks that run again would come back with its model.
            name = made[c].name
            again = (Ref(target.batch.name, task) for task in store.read(lookups.tasks, name))
            if left := [ref for ref in again if self._lifecycle.open(ref)]:
                await self._attempts.end_all(left, f"it runs again in {name}, with {model}")
        runs = tuple(
            NewRun(
                batch=batch.name,
                retry_of=batch.retry_of,
                tasks=len(store.read(lookups.tasks, batch.name)),
            )
            for batch in (made[c] for c in claims)
        )
        dropped = {key for plan in plans.values() for key in plan.dropped}
        names = tuple(run.batch for run in runs)
        return Retried(runs=runs, batches=names, dropped=tuple(sorted(dropped)) or UNSET)

    async def _add(self, plan: _Plan, by: Requester | None) -> Batch:
        """Store a run and queue its tasks; return its batch.

        ``by``: who must still be there for it.

        Raises ``NotPossibleError`` where store or outbox takes nothing: a run that waited for them
        would surprise who has given up on it, and be paid for.
        """
        await self._batches.try_out(plan.batch.outbox)
        named = await self._store.ordered(partial(self._batches.names.reserve, plan.batch))
        check = by.insist if by else wanted
        try:
            stored = await self._store.order(
                operations.add_batch, named, tuple(plan.tasks), check=check
            )
        except BatchdError:
            with contextlib.suppress(BatchdError, OSError):
                await self._batches.names.give_back(named)
            raise
        batch = self._batches.opened(stored, plan.tasks)
        request = Path(batch.folder, batch.request)
        publish = partial(outbox.publish, request, plan.data, replace=True)
        try:
            await self._outboxes.promptly(publish, batch.outbox)
        except OSError:
            # It is durable by now, and so is the answer:
            # the request follows when the outbox takes it.
            main_loop.spawn(self._batches.bring(batch, plan.data))
        else:
            self._batches.moved(batch.name)
        return batch

    def torn(self, batches: Iterable[Batch]) -> list[Batch]:
        """Return those of a killed daemon's runs whose request had
        not come into their folders yet.
        """
        retried = [batch for batch in batches if batch.retry_of]
        return [b for b in retried if not Path(b.folder, b.request).exists()]

    async def bring_again(self, batch: Batch) -> None:
        """Bring a torn run's request into its folder, as far as it can still be had."""
        config = self._current.config
        assert batch.retry_of is not None, "it is a run of its own otherwise"
        old = self._store.read(lookups.find_batch, batch.retry_of)
        data, _ = await self._outboxes.at(partial(_request, old, config), old.outbox)
        if data is None:
            tasks = [
                self._store.read(lookups.find_task, Ref(batch.name, task))
                for task in self._store.read(lookups.tasks, batch.name)
            ]
            data = _written(batch, tasks)
        await self._batches.bring(batch, data)

    async def _plan(self, target: OrderTarget, claim: str, *, failed: bool, model: str) -> _Plan:
        """Return what a run consists of. Raises ``UsageError``, ``TaskFileError``."""
        old, config = target.batch, self._current.config
        again = target.again(failed=failed, held=self._held(target) if model else ())
        try:
            data, why = await self._outboxes.promptly(partial(_request, old, config), old.outbox)
        except OSError as error:
            data, why = None, f"their file cannot be read ({error})"
        dropped: set[str] = set()
        specs = await self._specs(old, again, data, why, dropped)
        if any(spec.needs for spec in specs):
            specs, dropped = [replace(spec, needs=Needs()) for spec in specs], {*dropped, "needs"}
        if dropped:
            data = None  # its file is written again, without them
        if model:
            # Its file says what runs: a later retry may have no more than that.
            specs, data = [_with(model, spec, config) for spec in specs], None
        tasks = [replace(spec, after=tuple(a for a in spec.after if a in again)) for spec in specs]
        # In a thread: there may be 100,000, and a disk may hang.
        await aside(partial(_check_directories, config, old, tasks), "retry")
        batch = Batch(
            name=self._line(old)[-1],
            claim=claim,
            outbox=config.paths.outbox,
            request=old.request if data is not None else "request.json",
            received_at=time.time(),
            budget_usd=old.budget_usd,
            parallel=old.parallel,
            retry_of=old.name,
            after_batches=self._before(old),
        )
        return _Plan(batch, tasks, data if data is not None else _written(batch, specs), dropped)

    def _held(self, target: OrderTarget) -> set[str]:
        """Return the ids of tasks that wait for a model that is gone."""
        lifecycle = self._lifecycle
        left = (ref for task in target.tasks if lifecycle.open(ref := Ref(target.batch.name, task)))
        return {r.task for r in left if any(p.cause is Cause.GONE for p in lifecycle.why(r))}

    def _before(self, old: Batch) -> tuple[str, ...]:
        """Return what a run comes after: what its batch came after, and later runs of that,
        as far as they are under way. What has ended is known to who orders the run.
        """
        if not (named := set(old.after_batches)):
            return ()
        again = (b.name for b in self._batches if not named.isdisjoint(self._line(b)))
        return tuple(
            sorted({*(n for n in named if self._store.read(lookups.unfinished, n)), *again})
        )

    def _line(self, batch: Batch) -> list[str]:
        """Return a run and those that it is a retry of, down to the one that was dropped:
        names are counted from there, ``games-2``, ``games-3``.
        """
        line = [batch.name]
        while batch.retry_of:
            batch = self._store.read(lookups.find_batch, batch.retry_of)
            line.append(batch.name)
        return line

    async def _specs(
        self, old: Batch, ids: Iterable[str], data: bytes | None, why: str, dropped: set[str]
    ) -> list[Task]:
        """Return tasks as they were asked for: from the store, or, once pruned, from their file."""
        store, specs = self._store, []

        async def parsed(lack: str) -> dict[str, Task]:
            if data is None:
                raise UsageError(f"{lack}, and {why}: drop the file again")
            parse = partial(taskfile.parse, data, old.request, self._current.config)
            found = await asyncio.to_thread(parse, dropped=dropped)
            return {task.id: task for task in found.tasks}

        try:
            for task in ids:
                specs.append(store.read(lookups.find_task, Ref(old.name, task)))
                if len(specs) % _CHUNK == 0:
                    await asyncio.sleep(0)
        except StoreError:
            known = await parsed(f"the tasks of {old.name} have been pruned")
            if missing := [task for task in ids if task not in known]:
                raise UsageError(
                    f"{Path(old.folder, old.request)} no longer has task {listed(missing)}"
                ) from None
            specs = [known[task] for task in ids]
        if lost := [spec.id for spec in specs if _lost(spec)]:
            known = await parsed(
                f"{old.name}: the secrets of {listed(lost)} were deleted at its end"
            )
            secrets = {name: task.secrets for name, task in known.items()}
            specs = [replace(s, secrets=secrets.get(s.id, {})) if _lost(s) else s for s in specs]
        return specs


def _with(model: str, task: Task, config: Config) -> Task:
    """Return a task with another model: at the standard price where that has no service tiers."""
    if not providers.takes_tiers(model, config):
        task = replace(task, service_tier=STANDARD, tier_fallback_s=None)
    return replace(task, model=model)


def _lost(task: Task) -> bool:
    """Return whether the value of a secret was in the store alone, which has dropped it."""
    return any(not (s.value or s.from_env or s.from_file) for s in task.secrets.values())


def _check_directories(config: Config, old: Batch, tasks: Sequence[Task]) -> None:
    """Refuse directories that are gone, or that the configuration no longer allows,
    or that do not answer. Blocks.
    """
    directories = TaskDirectories(config)
    problems = [
        Problem(f"{old.name}/{task.id}", why)
        for task in tasks
        if (
            why := (task.dir and directories.problem(task.dir, must_exist=True))
            or (task.origin and directories.closed(task.origin))
        )
    ]
    if problems:
        raise TaskFileError(tuple(problems))


def _request(old: Batch, config: Config) -> tuple[bytes | None, str]:
    """Return a batch's dropped file from its folder; None, and why,
    where it cannot be had, or its dropper's it still is.
    """
    path = Path(old.folder, old.request)
    ours = {0, os.geteuid(), Path(config.paths.state).stat().st_uid}
    try:
        return taskfile.read(path, config.spool.max_file_bytes, ours), ""
    except TaskFileError as error:
        return None, f"their file cannot be read ({path}: {error})"


def _of_origin(origin: Origin | None) -> dict[str, str]:
    """Return the keys of a task file that ask for it."""
    if origin is None:
        return {}
    if origin.kind == "copy":
        return {"dir": origin.source, "workspace": "copy"}
    return {"repo": origin.source, "ref": origin.ref}


def _written(batch: Batch, tasks: Sequence[Task]) -> bytes:
    """Return a task file that asks for these tasks: somebody took the dropped one away."""
    kept = {task.id for task in tasks}
    specs = []
    for task in tasks:
        alone = replace(task, after=tuple(a for a in task.after if a in kept))
        fields: dict[str, Any] = msgspec.to_builtins(alone)
        # Where each secret comes from, and never what it is.
        fields["env"] |= {
            name: {k: v for k, v in source.items() if v and k != "value"} or {"secret": ""}
            for name, source in fields.pop("secrets").items()
        }
        fallback_s = fields.pop("tier_fallback_s")
        fields["tier_fallback"] = "never" if fallback_s is None else fallback_s
        fields.pop("origin")
        fields |= _of_origin(task.origin)
        fields.pop("needs")
        specs.append({k: v for k, v in fields.items() if v or isinstance(v, int | float)})
    keys = ("budget_usd", "parallel", "after_batches")
    whole = {key: value for key in keys if (value := getattr(batch, key))}
    return msgspec.json.format(msgspec.json.encode({**whole, "tasks": specs}), indent=2)
