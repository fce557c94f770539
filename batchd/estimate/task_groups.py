"""The parts of an estimate: groups of like tasks, and what each model's tasks come to together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

from batchd.estimate import bounds, ranges
from batchd.estimate.bounds import Bounds
from batchd.estimate.first_requests import FirstRequest
from batchd.estimate.ranges import Range, Sample
from batchd.estimate.similar import Likeness, Prompts, TaskKind, TaskOutcome, outcome
from batchd.records import Task, Usage
from batchd.store.past import PastTask


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGroup:
    """Tasks of one file and kind, and what is on record of their like."""

    kind: TaskKind
    tasks: Sequence[tuple[Task, FirstRequest]]
    #: None: there is nothing.
    likeness: Likeness | None
    past: Sequence[PastTask]
    #: What an average task of the group would come to, by each of them.
    outcomes: Sequence[TaskOutcome]


def group(
    kind: TaskKind,
    tasks: Sequence[tuple[Task, FirstRequest]],
    likeness: Likeness | None,
    past: Sequence[PastTask],
) -> TaskGroup:
    """Return like tasks with what they would come to by each task on record."""
    count = len(tasks)
    prompts = Prompts(
        tokens=sum(o.tokens for _, o in tasks) / count,
        prompt_tokens=sum(o.prompt_tokens for _, o in tasks) / count,
        prompt_chars=sum(len(t.first_prompt) + len(t.system_prompt) for t, _ in tasks) / count,
    )
    return TaskGroup(
        kind=kind,
        tasks=tasks,
        likeness=likeness,
        past=past,
        outcomes=[outcome(p, kind, prompts) for p in past],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The ranges of what some tasks may come to."""

    calls: Range
    tokens: Range
    #: None: a price is missing.
    cost: Range | None
    seconds: Range


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatePart:
    """The tasks of a model, or all of them."""

    tasks: int
    #: Those of them that have their like on record: ``one`` and ``all`` are about these.
    known: int
    #: Input tokens of the first requests of all.
    first_tokens: int
    #: What these cost as new input; None: a price is missing.
    first_cost: float | None
    #: What one task may come to.
    one: Ranges | None
    #: What all may come to together.
    all: Ranges | None
    at_most: Bounds


def part(groups: Iterable[TaskGroup], at_most: Bounds | None = None) -> EstimatePart:
    """Return what groups come to;
    ``at_most``: less than their limits allow, because of a budget.
    """
    groups = list(groups)
    counted = [g for g in groups if g.past]
    limit = at_most or reduce(
        add, (bounds.of_task(g.kind) * len(g.tasks) for g in groups), Bounds()
    )
    together = _ranges(counted, together=True)
    return EstimatePart(
        tasks=sum(len(g.tasks) for g in groups),
        known=sum(len(g.tasks) for g in counted),
        first_tokens=sum(o.tokens for g in groups for _, o in g.tasks),
        first_cost=_first_cost(groups),
        one=_ranges(counted, together=False),
        all=together and _limited(together, limit),
        at_most=limit,
    )


def _ranges(groups: Sequence[TaskGroup], *, together: bool) -> Ranges | None:
    if not groups:
        return None

    def of(name: str) -> Range | None:
        samples = [_sample(g, [getattr(o, name) for o in g.outcomes]) for g in groups]
        return ranges.of_all(_pooled(samples, groups)) if together else ranges.of_one(samples)

    calls, tokens, seconds = of("calls"), of("tokens"), of("seconds")
    if calls is None or tokens is None or seconds is None:
        return None
    priced = all(o.cost is not None for g in groups for o in g.outcomes)
    return Ranges(calls=calls, tokens=tokens, cost=of("cost") if priced else None, seconds=seconds)


def _sample(like: TaskGroup, values: Sequence[float]) -> Sample:
    doubt = like.likeness.doubt if like.likeness else 0.0
    return Sample(len(like.tasks), values, [p.batch for p in like.past], doubt)


def _pooled(samples: Sequence[Sample], groups: Sequence[TaskGroup]) -> list[Sample]:
    """Return the samples with those as one that rest on the same tasks: they err together."""
    pools: dict[tuple[object, ...], Sample] = {}
    for sample, like in zip(samples, groups, strict=True):
        key = (sample.doubt, *map(id, like.past))
        other = pools.get(key)
        if other is None:
            pools[key] = sample
            continue
        count = sample.tasks + other.tasks
        values = [
            (sample.tasks * a + other.tasks * b) / count
            for a, b in zip(sample.values, other.values, strict=True)
        ]
        pools[key] = Sample(count, values, sample.batches, sample.doubt)
    return list(pools.values())


def _limited(found: Ranges, limit: Bounds) -> Ranges:
    return Ranges(
        calls=found.calls.within(limit.calls),
        tokens=found.tokens.within(limit.tokens),
        cost=found.cost and found.cost.within(limit.cost),
        seconds=found.seconds,
    )


def _first_cost(groups: Sequence[TaskGroup]) -> float | None:
    total = 0.0
    for group in groups:
        price = group.kind.setup.price
        if price is None:
            return None
        total += sum(
            price.cost(Usage(calls=1, input_tokens=o.tokens)).total for _, o in group.tasks
        )
    return total
