"""The estimate of a batch before it runs: its first requests exactly, its bounds by limits,
the rest from what tasks of the same models came to.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from graphlib import TopologicalSorter
from operator import add, attrgetter
from statistics import fmean, stdev

from msgspec.structs import replace

from batchd.config import Config
from batchd.estimate import bounds
from batchd.estimate.bounds import Bounds, TaskKind
from batchd.estimate.first_requests import FirstRequests
from batchd.pricing import Prices
from batchd.records import ModelSetup, Task, TaskStatus, Usage
from batchd.store import queries
from batchd.store.queries import PastTask, StoreReader
from batchd.terms import setup

#: Of each model, the newest tasks that are looked at.
_LOOKED_AT = 1_000
#: Deviations on both sides of the mean within which eight in ten lie.
_EIGHT_IN_TEN = 1.2816
#: What a single task on record may be off by, and tasks of a single batch, as a share of them.
_ONE_TASK, _ONE_BATCH = 0.5, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """A task file that has been checked."""

    #: The batch's, as it will be unless it is taken.
    name: str
    tasks: tuple[Task, ...]
    #: 0: there is none.
    budget_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean of something, its standard deviation, and what eight in ten lie between."""

    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What one task comes to, or all of them."""

    calls: Spread
    tokens: Spread
    #: None: a price is missing.
    cost: Spread | None
    #: At work and waiting.
    seconds: Spread


@dataclass(frozen=True, slots=True)
class FirstCost:
    """What the first requests of all tasks come to."""

    input_tokens: int
    #: As new input; None: a price is missing.
    cost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatePart:
    """The tasks of a model, or all of them."""

    tasks: int
    #: Those of them whose model is on record: ``per_task`` and ``in_all`` are about these.
    with_history: int
    first_requests: FirstCost
    per_task: Amounts | None
    in_all: Amounts | None
    at_most: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The tasks of a model on record that the estimate of some to come rests on."""

    model: str
    tasks: int
    batches: int
    #: Those of the tasks that were accepted.
    completed: int
    to_come: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The estimate: all that can be known before the first call."""

    #: By model, in the order of the files.
    models: dict[str, EstimatePart]
    total: EstimatePart
    #: ``total`` at the prices of this hour; None: at any other hour they are the same.
    now: EstimatePart | None
    #: Seconds, roughly; None: nothing is on record.
    wall_s: Spread | None
    #: Tasks that can be at work at a time.
    slots: int
    history: tuple[ModelRecord, ...]
    #: Models without a known price, judges included.
    unpriced: tuple[str, ...]
    #: Why the line of facts about the sandbox is not in the first requests; empty: it is.
    missing_facts: str


@dataclass(frozen=True, slots=True)
class _TaskGroup:
    """Tasks of one file and kind."""

    file: CheckedFile
    kind: TaskKind
    #: The tokens of each one's first request.
    openings: list[int]
    past: Sequence[PastTask]


def estimate(
    files: Sequence[CheckedFile], settings: Config, reader: StoreReader | None
) -> Estimate:
    """Return what files may come to; ``reader``: of the tasks on record, if there are any.

    Raises ``ConfigError`` for a judge whose provider is not configured, ``StoreError``.
    """
    setups = cache(partial(setup, config=settings, prices=Prices(settings.models)))

    def at_once(model: str) -> ModelSetup:
        price = setups(model).price
        return replace(setups(model), price=price and price.now(time.time()))

    openings = FirstRequests(settings.sandbox_policy(), agents_md=settings.agent.agents_md)
    tasks = (
        (task, setups(task.model), f"{settings.paths.outbox}/{file.name}/{task.id}")
        for file in files
        for task in file.tasks
    )
    counted = asyncio.run(openings.count([*tasks]))
    past = cache(
        lambda model: reader.read(queries.past_of_model, model, _LOOKED_AT) if reader else []
    )
    groups = _groups(files, counted, settings, setups, past)
    capped = (
        reduce(add, map(_bounds, (g for g in groups if g.file is file)), Bounds()).capped(
            file.budget_usd
        )
        for file in files
    )
    most = reduce(add, capped, Bounds())
    by_model: dict[str, list[_TaskGroup]] = defaultdict(list)
    for group in groups:
        by_model[group.kind.setup.name].append(group)
    models = {name: _part(theirs) for name, theirs in by_model.items()}
    total = _part(groups, most)
    used = [s for g in groups for s in (g.kind.setup, g.kind.judge) if s]
    dear = any(s.price and s.price.hours for s in used)
    return Estimate(
        models=models,
        total=total,
        now=_part(_groups(files, counted, settings, at_once, past), most) if dear else None,
        wall_s=wall_s(
            settings, models, total, max((longest_chain(f.tasks) for f in files), default=0)
        ),
        slots=_slots(settings, total.tasks),
        history=tuple(_record(name, past(name), models[name]) for name in models if past(name)),
        unpriced=tuple(dict.fromkeys(s.name for s in used if s.price is None)),
        missing_facts=openings.missing,
    )


def _record(model: str, past: Sequence[PastTask], part: EstimatePart) -> ModelRecord:
    return ModelRecord(
        model=model,
        tasks=len(past),
        batches=len({p.batch for p in past}),
        completed=sum(p.status is TaskStatus.COMPLETED for p in past),
        to_come=part.tasks,
    )


def _groups(
    files: Sequence[CheckedFile],
    counted: Sequence[int],
    settings: Config,
    setups: Callable[[str], ModelSetup],
    past: Callable[[str], Sequence[PastTask]],
) -> list[_TaskGroup]:
    """Return the tasks of each file, those that cost alike together."""
    left, groups = iter(counted), dict[tuple[object, ...], _TaskGroup]()
    for number, file in enumerate(files):
        for task, opening in zip(file.tasks, left, strict=False):
            judged, waits = task.evaluator == "judge", task.tier_fallback_s is not None
            key = (number, task.model, judged, task.limits, task.service_tier, waits)
            if key not in groups:
                name = settings.evaluation.judge_model or task.model
                own = _sold(setups(task.model), task)
                judge = own if name == task.model else setups(name)
                kind = TaskKind(setup=own, judge=judge if judged else None, limits=task.limits)
                groups[key] = _TaskGroup(file, kind, [], past(task.model))
            groups[key].openings.append(opening)
    return [*groups.values()]


def _sold(setup: ModelSetup, task: Task) -> ModelSetup:
    """Return how a task's model is called, at the price of its tier;
    the standard one where calls may go on at that.
    """
    if setup.price is None or task.tier_fallback_s is not None:
        return setup
    return replace(setup, price=setup.price.at(task.service_tier))


def _bounds(group: _TaskGroup) -> Bounds:
    return bounds.of_task(group.kind) * len(group.openings)


def _part(groups: Sequence[_TaskGroup], at_most: Bounds | None = None) -> EstimatePart:
    """Return what groups come to;
    ``at_most``: less than their limits allow, because of a budget.
    """
    most = at_most or reduce(add, map(_bounds, groups), Bounds())
    known = [g for g in groups if g.past]
    return EstimatePart(
        tasks=sum(len(g.openings) for g in groups),
        with_history=sum(len(g.openings) for g in known),
        first_requests=FirstCost(sum(sum(g.openings) for g in groups), _first_cost(groups)),
        per_task=_amounts(known, of_one, Bounds(None, None, None)) if known else None,
        in_all=_amounts(known, of_all, most) if known else None,
        at_most=most,
    )


def _first_cost(groups: Iterable[_TaskGroup]) -> float | None:
    total = 0.0
    for group in groups:
        price = group.kind.setup.price
        if price is None:
            return None
        total += sum(price.cost(Usage(calls=1, input_tokens=n)).total for n in group.openings)
    return total


@dataclass(frozen=True, slots=True)
class Sample:
    """Some tasks to come, and what each one on record came to."""

    tasks: int
    model: str
    values: Sequence[float]
    #: The batch of each value.
    batches: Sequence[int]

    def spread(self) -> tuple[float, float]:
        """Return mean and deviation of a task."""
        mean = fmean(self.values)
        return mean, stdev(self.values) if len(self.values) > 1 else _ONE_TASK * mean

    def common(self) -> float:
        """Return by how much the mean of a new batch deviates: what is dear is so for all of it."""
        by_batch: dict[int, list[float]] = defaultdict(list)
        for batch, value in zip(self.batches, self.values, strict=True):
            by_batch[batch].append(value)
        mean, deviation = self.spread()
        count = len(by_batch)
        between = stdev(map(fmean, by_batch.values())) if count > 1 else _ONE_BATCH * mean
        return max(between * math.sqrt(1 + 1 / count), deviation / math.sqrt(len(self.values)))


def _amounts(
    groups: Sequence[_TaskGroup],
    of: Callable[[Sequence[Sample], float | None], Spread],
    most: Bounds,
) -> Amounts:
    """Return what tasks come to; none of it above ``most``."""

    def samples(each: Callable[[_TaskGroup, PastTask], float | None]) -> list[Sample]:
        found = []
        for g in groups:
            known = [(v, p.batch) for p in g.past if (v := each(g, p)) is not None]
            if known:
                found.append(Sample(len(g.openings), g.kind.setup.name, *zip(*known, strict=True)))
        return found

    costs = samples(lambda g, p: cost(g.kind, p))
    return Amounts(
        calls=of(samples(lambda _, p: p.tally.calls), most.calls),
        tokens=of(samples(lambda _, p: p.tally.total_tokens), most.tokens),
        cost=of(costs, most.cost) if len(costs) == len(groups) else None,
        seconds=of(samples(lambda _, p: p.seconds), None),
    )


def cost(kind: TaskKind, past: PastTask) -> float | None:
    """Return what a task on record would cost at the prices that are asked for; None: one is
    missing.

    Where another model judges, which tokens were its own is not on record, but the money is.
    """
    price, judge = kind.setup.price, kind.judge
    if price is None or (judge is not None and judge.price is None):
        return None
    foreign = judge is not None and judge.name != kind.setup.name
    return past.tally.cost_usd if foreign else price.cost_of_many(past.tally).total


def of_one(samples: Sequence[Sample], most: float | None) -> Spread:
    """Return what one task of these comes to; none of it above ``most``."""
    tasks = sum(sample.tasks for sample in samples)
    spreads = [(sample.tasks / tasks, *sample.spread()) for sample in samples]
    mean = sum(part * average for part, average, _ in spreads)
    square = sum(part * (average**2 + deviation**2) for part, average, deviation in spreads)
    return _within(mean, math.sqrt(max(0.0, square - mean**2)), most)


def of_all(samples: Sequence[Sample], most: float | None) -> Spread:
    """Return what all of them come to: chance evens out between tasks, but not what those of one
    model have in common.
    """
    mean = by_chance = 0.0
    in_common: dict[str, float] = defaultdict(float)
    for sample in samples:
        average, deviation = sample.spread()
        mean += sample.tasks * average
        by_chance += sample.tasks * deviation**2
        in_common[sample.model] += sample.tasks * sample.common()
    return _within(mean, math.hypot(math.sqrt(by_chance), *in_common.values()), most)


def _within(mean: float, deviation: float, most: float | None) -> Spread:
    """Return a spread none of which is above ``most``; None: there is no limit."""
    most, far = math.inf if most is None else most, _EIGHT_IN_TEN * deviation
    return Spread(
        min(mean, most), deviation, max(0.0, min(mean - far, most)), min(mean + far, most)
    )


# How long it takes


def _slots(settings: Config, tasks: int) -> int:
    """Return how many tasks can be at work at a time."""
    pool = settings.pool
    return max(1, min(pool.processes * pool.agents_per_process, tasks))


def longest_chain(tasks: Iterable[Task]) -> int:
    """Return how many tasks of a file must wait for each other, one after another, at the most."""
    after = {task.id: task.after for task in tasks}
    depth: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        depth[name] = 1 + max((depth[a] for a in after[name]), default=0)
    return max(depth.values(), default=0)


def wall_s(
    settings: Config, parts: Mapping[str, EstimatePart], total: EstimatePart, chain: int
) -> Spread | None:
    """Return the seconds from the first task's start to the last one's end,
    nothing else being at work.

    The slowest of what holds a batch up counts: its work over the slots, its longest chain, and the
    requests and tokens a minute of each provider. None where nothing is on record.
    """
    if total.per_task is None or total.in_all is None:
        return None
    one, work, slots = (
        total.per_task.seconds,
        total.in_all.seconds,
        _slots(settings, total.with_history),
    )

    def at(of: Callable[[Spread], float]) -> float:
        waits = [of(work) / slots, chain * one.mean, of(one)]
        for name, provider in settings.providers.items():
            theirs = [
                p.in_all for m, p in parts.items() if m.partition("/")[0] == name and p.in_all
            ]
            busy = sum(of(t.seconds) for t in theirs)
            waits.append(busy / min(slots, provider.max_concurrent))
            if provider.rpm:
                waits.append(sum(of(t.calls) for t in theirs) * 60 / provider.rpm)
            if provider.tpm:
                waits.append(sum(of(t.tokens) for t in theirs) * 60 / provider.tpm)
        return max(waits)

    low, mean, high = map(at, map(attrgetter, ("low", "mean", "high")))
    return Spread(mean, (high - low) / 2 / _EIGHT_IN_TEN, low, high)
