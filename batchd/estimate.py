"""The estimate of a batch before it runs: its first requests by its prompts, its bounds by limits,
the rest from what tasks of the same models came to.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cache, partial
from graphlib import TopologicalSorter
from operator import attrgetter
from statistics import fmean, stdev
from typing import Any

from msgspec.structs import replace as changed

from batchd.agent import context, prompts
from batchd.config import Config
from batchd.events import TaskStarted, Terms
from batchd.records import ModelSetup, SandboxPolicy, Task, TaskLimits, TaskStatus, Usage
from batchd.spool.taskfile import Parsed
from batchd.store import queries
from batchd.store.queries import PastTask, StoreReader
from batchd.taskstate import TaskState, apply
from batchd.terms import setup

#: Of each model, the newest tasks that are looked at.
_LOOKED_AT = 1_000
#: Deviations on both sides of the mean within which eight in ten lie.
_EIGHT_IN_TEN = 1.2816
#: What a single task on record may be off by, and tasks of a single batch, as a share of them.
_ONE_TASK, _ONE_BATCH = 0.5, 0.2


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that tasks may take by their limits;
    None: nothing limits it, or the price is not known.
    """

    calls: int | None = 0
    tokens: int | None = 0
    cost: float | None = 0.0

    def __add__(self, other: Bounds) -> Bounds:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Bounds(*(None if a is None or b is None else a + b for a, b in pairs))

    def __mul__(self, count: int) -> Bounds:
        return Bounds(*(None if each is None else each * count for each in astuple(self)))

    def capped(self, budget_usd: float) -> Bounds:
        """Return the most under a budget for all of them; 0: there is none."""
        return replace(self, cost=_least([self.cost, budget_usd or None]))


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
    #: Seconds, roughly; None: nothing is on record.
    wall_s: Spread | None
    #: Tasks that can be at work at a time.
    slots: int
    history: tuple[ModelRecord, ...]
    #: Models without a known price, judges included.
    unpriced: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """Tasks of one file that nothing here distinguishes but their prompts."""

    setup: ModelSetup
    #: What judges them; None: no model does.
    judge: ModelSetup | None = None
    limits: TaskLimits
    past: Sequence[PastTask] = ()
    #: The tokens of each one's first request.
    openings: list[int] = field(default_factory=list)

    def bounds(self) -> Bounds:
        """Return the most that one of them may take."""
        limits, setups = self.limits, [each for each in (self.setup, self.judge) if each]
        calls = limits.max_calls or None
        # A window holds what comes out as well.
        windows = [
            s.context_window and max(s.context_window, limits.max_output_tokens) for s in setups
        ]
        tokens = [calls * max(windows) if calls and all(windows) else None]
        if limits.max_tokens and (self.judge is None or self.judge.context_window):
            # It is looked at before each call, with the agent's input but not the judge's.
            judged = self.judge.context_window if self.judge else 0
            tokens += [limits.max_tokens + limits.max_output_tokens + judged]
        # A window full of new input, and all the output that a call may have.
        dear = [
            s.price.most(s.context_window, limits.max_output_tokens).total
            for s in setups
            if s.price and s.context_window
        ]
        cost = calls * max(dear) if calls and len(dear) == len(setups) else None
        return Bounds(calls, _least(tokens), _least([limits.max_cost_usd or None, cost]))

    def cost(self, past: PastTask) -> float | None:
        """Return what a task on record would cost at these prices; None: one is missing.

        Where another model judges, which tokens were its own is not on record, but the money is.
        """
        price, judge = self.setup.price, self.judge
        if price is None or (judge is not None and judge.price is None):
            return None
        foreign = judge is not None and judge.name != self.setup.name
        return past.tally.cost_usd if foreign else price.cost_of_many(past.tally).total

    def first_cost(self) -> float | None:
        """Return what their first requests cost as new input; None: the price is missing."""
        if (price := self.setup.price) is None:
            return None
        return sum(price.cost(Usage(calls=1, input_tokens=n)).total for n in self.openings)


def _least(values: Iterable[float | None]) -> Any:
    """Return the smallest of those that limit; None: none does."""
    return min((v for v in values if v is not None), default=None)


def estimate(
    files: Sequence[tuple[str, Parsed]], settings: Config, reader: StoreReader | None
) -> Estimate:
    """Return what files may come to, each with the name that its batch will have unless it is
    taken; ``reader``: of the tasks on record, if there are any.

    Raises ``ConfigError`` for a judge whose provider is not configured, ``StoreError``.
    """
    setups = cache(partial(setup, config=settings))
    past = cache(
        lambda model: reader.read(queries.past_of_model, model, _LOOKED_AT) if reader else []
    )
    policy = settings.sandbox_policy()
    groups, most = list[TaskGroup](), Bounds()
    for _, file in files:
        theirs: dict[tuple[object, ...], TaskGroup] = {}
        for task in file.tasks:
            judged, waits = task.evaluator == "judge", task.tier_fallback_s is not None
            key = (task.model, judged, task.limits, task.service_tier, waits)
            if key not in theirs:
                own, name = setups(task.model), settings.evaluation.judge_model or task.model
                if own.price and not waits:  # else calls may go on at the standard price
                    own = changed(own, price=own.price.at(task.service_tier))
                judge = own if name == task.model else setups(name)
                theirs[key] = TaskGroup(
                    setup=own,
                    judge=judge if judged else None,
                    limits=task.limits,
                    past=past(task.model),
                )
            theirs[key].openings.append(_first_request(task, theirs[key].setup, policy))
        groups += theirs.values()
        most += _bounds(theirs.values()).capped(file.budget_usd)
    by_model: dict[str, list[TaskGroup]] = defaultdict(list)
    for group in groups:
        by_model[group.setup.name].append(group)
    models = {name: _part(theirs, _bounds(theirs)) for name, theirs in by_model.items()}
    total = _part(groups, most)
    used = [s for g in groups for s in (g.setup, g.judge) if s]
    chain = max((longest_chain(file.tasks) for _, file in files), default=0)
    return Estimate(
        models=models,
        total=total,
        wall_s=wall_s(settings, models, total, chain),
        slots=_slots(settings, total.tasks),
        history=tuple(
            ModelRecord(
                model=name,
                tasks=len(past(name)),
                batches=len({p.batch for p in past(name)}),
                completed=sum(p.status is TaskStatus.COMPLETED for p in past(name)),
                to_come=part.tasks,
            )
            for name, part in models.items()
            if past(name)
        ),
        unpriced=tuple(dict.fromkeys(s.name for s in used if s.price is None)),
    )


def _first_request(task: Task, model: ModelSetup, policy: SandboxPolicy) -> int:
    """Return the tokens, as tiktoken counts them, of a task's first request: of its system prompt,
    tools and prompt. What its agent finds in its directory comes on top.
    """
    stays = policy.keep_processes and policy.backend != "none"
    cloned = task.origin is not None and task.origin.kind == "clone"
    facts = prompts.CLONED if cloned else ""
    system = prompts.system(task, facts, text=model.tools == "text", stays=stays)
    terms = Terms(model=model, judge=model, system_prompt=system, keep_processes=stays)
    state = TaskState(first_prompt=task.first_prompt)
    return context.size(apply(state, TaskStarted(at=0.0, terms=terms)))


def _bounds(groups: Iterable[TaskGroup]) -> Bounds:
    return sum((group.bounds() * len(group.openings) for group in groups), Bounds())


def _part(groups: Sequence[TaskGroup], most: Bounds) -> EstimatePart:
    """Return what groups come to; ``most``: what limits and budgets allow them all."""
    known = [g for g in groups if g.past]
    costs = [group.first_cost() for group in groups]
    first = None if None in costs else sum(filter(None, costs), 0.0)
    return EstimatePart(
        tasks=sum(len(g.openings) for g in groups),
        with_history=sum(len(g.openings) for g in known),
        first_requests=FirstCost(sum(sum(g.openings) for g in groups), first),
        per_task=_amounts(known, of_one, Bounds(None, None, None)) if known else None,
        in_all=_amounts(known, of_all, most) if known else None,
        at_most=most,
    )


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
    groups: Sequence[TaskGroup],
    of: Callable[[Sequence[Sample], float | None], Spread],
    most: Bounds,
) -> Amounts:
    """Return what tasks come to; none of it above ``most``."""

    def samples(each: Callable[[TaskGroup, PastTask], float | None]) -> list[Sample]:
        found = []
        for g in groups:
            known = [(v, p.batch) for p in g.past if (v := each(g, p)) is not None]
            if known:
                found.append(Sample(len(g.openings), g.setup.name, *zip(*known, strict=True)))
        return found

    costs = samples(TaskGroup.cost)
    return Amounts(
        calls=of(samples(lambda _, p: p.tally.calls), most.calls),
        tokens=of(samples(lambda _, p: p.tally.total_tokens), most.tokens),
        cost=of(costs, most.cost) if len(costs) == len(groups) else None,
        seconds=of(samples(lambda _, p: p.seconds), None),
    )


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
