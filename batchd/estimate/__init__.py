"""The estimate of a batch before it runs:
its first requests exactly, the rest from tasks like these on record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from operator import add

from msgspec.structs import replace

from batchd.config import Config
from batchd.estimate import bounds, wall
from batchd.estimate.bounds import Bounds
from batchd.estimate.first_requests import FirstRequest, FirstRequests
from batchd.estimate.ranges import Range
from batchd.estimate.similar import MAX_SIMILAR_TASKS, SimilarTasks, TaskKind
from batchd.estimate.task_groups import EstimatePart, TaskGroup, group, part
from batchd.pricing import Prices
from batchd.records import ModelSetup, Task
from batchd.store import labels, past
from batchd.store.reader import StoreReader
from batchd.terms import setup

__all__ = ["Basis", "CheckedFile", "Estimate", "EstimatePart", "Range", "estimate"]

#: Of each model, the newest tasks that are looked at …
_LOOKED_AT = 5_000
#: … and those of them that one kind of task is estimated from, even where there are many kinds.
_MIN_SAMPLE_PER_KIND = 20
#: What is worked out for all kinds together,
#: so that a file of a thousand kinds takes a second, not a minute.
_OUTCOMES = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """A task file that has been checked."""

    #: The batch's, as it will be unless it is taken.
    name: str
    tasks: tuple[Task, ...]
    #: 0: there is none.
    budget_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """The basis that an estimate rests on."""

    model: str
    #: In what the tasks on record are like those to come.
    like: str
    #: Tasks on record, and the batches that they are of.
    tasks: int
    batches: int
    #: Tasks to come that are estimated from them.
    to_come: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The estimate: all that can be known before the first call."""

    #: By model, in the order of the files.
    models: dict[str, EstimatePart]
    total: EstimatePart
    #: ``total`` at the prices of this hour; None: at any other hour they are the same.
    now: EstimatePart | None
    #: Seconds, roughly; None: nothing like it is on record.
    wall_s: Range | None
    #: Tasks that can be at work at a time.
    slots: int
    basis: tuple[Basis, ...]
    #: Models without a known price, judges included.
    unpriced: tuple[str, ...]
    #: Why the line of facts about the sandbox is not in the first requests; empty: it is.
    missing_facts: str


def estimate(
    files: Sequence[CheckedFile], settings: Config, reader: StoreReader | None
) -> Estimate:
    """Return what files may come to; ``reader``: of the tasks on record, if there are any.

    Raises ``ConfigError`` for a judge whose provider is not configured, ``StoreError``.
    """
    setups = cache(partial(setup, config=settings, prices=Prices(settings.models)))

    @cache
    def at_once(model: str) -> ModelSetup:
        price = setups(model).price
        return replace(setups(model), price=price and price.now(time.time()))

    tasks = [(file, task) for file in files for task in file.tasks]
    openings = FirstRequests(settings.sandbox_policy(), agents_md=settings.agent.agents_md)
    counted = asyncio.run(
        openings.count(
            [
                (task, setups(task.model), f"{settings.paths.outbox}/{file.name}/{task.id}")
                for file, task in tasks
            ]
        )
    )
    archive = _Archive(reader)
    groups = list(_groups(files, counted, settings, setups, archive))
    models = {
        name: part(g for _, g in groups if g.kind.setup.name == name) for name in _names(groups)
    }
    capped = (
        reduce(
            add, (bounds.of_task(g.kind) * len(g.tasks) for f, g in groups if f is file), Bounds()
        ).capped(file.budget_usd)
        for file in files
    )
    most = reduce(add, capped, Bounds())
    total = part((g for _, g in groups), most)
    chain = max((wall.longest_chain(file.tasks) for file in files), default=0)
    used = [s for _, g in groups for s in (g.kind.setup, *([g.kind.judge] * g.kind.judged))]
    return Estimate(
        models=models,
        total=total,
        now=part((g for _, g in _groups(files, counted, settings, at_once, archive)), most)
        if any(s.price and s.price.hours for s in used)
        else None,
        wall_s=wall.rough(settings, models, total, chain),
        slots=wall.slots(settings, total.tasks),
        basis=_basis([g for _, g in groups]),
        unpriced=tuple(dict.fromkeys(s.name for s in used if s.price is None)),
        missing_facts=openings.missing,
    )


class _Archive:
    """The tasks on record, read once for each model."""

    def __init__(self, reader: StoreReader | None) -> None:
        self._reader = reader
        self.of = cache(self._of)
        self._others = cache(self._of_provider)

    def _of(self, model: str) -> SimilarTasks:
        if self._reader is None:
            return SimilarTasks((), tuple)
        provider = model.partition("/")[0]
        return SimilarTasks(
            self._reader.past_of_model(model, _LOOKED_AT), lambda: self._others(provider)
        )

    def _of_provider(self, provider: str) -> Sequence[past.PastTask]:
        return self._reader.past_of_provider(provider, _LOOKED_AT) if self._reader else ()


def _sold(setup: ModelSetup, task: Task) -> ModelSetup:
    """Return how a task's model is called, at the price of its tier;
    the standard one where calls may go on at that.
    """
    if setup.price is None or task.tier_fallback_s is not None:
        return setup
    return replace(setup, price=setup.price.at(task.service_tier))


def _groups(
    files: Sequence[CheckedFile],
    counted: Sequence[FirstRequest],
    settings: Config,
    setups: Callable[[str], ModelSetup],
    archive: _Archive,
) -> Iterator[tuple[CheckedFile, TaskGroup]]:
    """Yield the tasks of each file, those of one kind together."""
    left = iter(counted)
    found: dict[tuple[object, ...], list[tuple[Task, FirstRequest]]] = {}
    kinds: dict[tuple[object, ...], tuple[CheckedFile, TaskKind]] = {}
    for number, file in enumerate(files):
        for task, opening in zip(file.tasks, left, strict=False):
            label = labels.of(task)
            key: tuple[object, ...] = (
                number,
                task.model,
                label.tags,
                label.evaluation,
                task.limits,
                task.service_tier,
                task.tier_fallback_s is None,
            )
            found.setdefault(key, []).append((task, opening))
            if key not in kinds:
                judge = settings.evaluation.judge_model or task.model
                judge = judge if task.evaluator == "judge" else task.model
                kinds[key] = (
                    file,
                    TaskKind(
                        setup=_sold(setups(task.model), task),
                        judge=_sold(setups(judge), task)
                        if task.evaluator != "judge" or judge == task.model
                        else setups(judge),
                        tags=label.tags,
                        evaluation=label.evaluation,
                        limits=task.limits,
                    ),
                )
    most = min(MAX_SIMILAR_TASKS, max(_MIN_SAMPLE_PER_KIND, _OUTCOMES // len(kinds)))
    for key, (file, kind) in kinds.items():
        like = archive.of(kind.setup.name).like(kind, most)
        likeness, pasts = like or (None, ())
        yield file, group(kind, found[key], likeness, pasts)


def _names(groups: Sequence[tuple[CheckedFile, TaskGroup]]) -> list[str]:
    return list(dict.fromkeys(g.kind.setup.name for _, g in groups))


def _basis(groups: Sequence[TaskGroup]) -> tuple[Basis, ...]:
    """Return what the groups rest on, each kind of it once for a model."""
    rested: dict[tuple[str, str], list[TaskGroup]] = {}
    for like in groups:
        if like.likeness:
            rested.setdefault((like.kind.setup.name, like.likeness.name), []).append(like)
    return tuple(
        Basis(
            model=model,
            like=name,
            tasks=len({id(p) for g in theirs for p in g.past}),
            batches=len({p.batch for g in theirs for p in g.past}),
            to_come=sum(len(g.tasks) for g in theirs),
        )
        for (model, name), theirs in rested.items()
    )
