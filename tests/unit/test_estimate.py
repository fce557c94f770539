"""The estimate's arithmetic: spreads that hold what happens, prices, what limits allow."""

from __future__ import annotations

import random

import pytest
from replacing import replace

from batchd.config import Config
from batchd.config.sections import PoolSection, ProviderSection
from batchd.estimate import (
    Amounts,
    Bounds,
    EstimatePart,
    FirstCost,
    Sample,
    Spread,
    TaskGroup,
    longest_chain,
    of_all,
    of_one,
    wall_s,
)
from batchd.records import ModelSetup, Price, Rate, Tally, Task, TaskLimits, TaskStatus
from batchd.store.queries import PastTask

PRICE = Price(rates=(Rate(input=1.0, cached_input=0.1, output=2.0),), source="config")
DEAR = Price(rates=(Rate(input=10.0, cached_input=1.0, output=20.0),), source="config")
SETUP = ModelSetup(name="p/m", price=PRICE, context_window=100_000)


def kind(
    limits: TaskLimits | None = None, setup: ModelSetup = SETUP, judge: ModelSetup | None = None
) -> TaskGroup:
    """Return tasks of a kind."""
    return TaskGroup(setup=setup, judge=judge, limits=limits or TaskLimits())


def _batch(rng: random.Random, tasks: int) -> list[float]:
    """Return what the tasks of a batch cost:
    long tails, and all of them dearer or cheaper together.
    """
    shared = rng.lognormvariate(0, 0.3)
    return [shared * rng.lognormvariate(0, 1.0) for _ in range(tasks)]


@pytest.mark.parametrize(("batches", "tasks", "size"), [(8, 40, 100), (8, 40, 3), (20, 10, 1000)])
def test_eight_in_ten_totals_lie_in_the_range(batches: int, tasks: int, size: int) -> None:
    """Over many histories and new batches, with batches that differ,
    the range is neither too narrow nor useless.
    """
    held = []
    for seed in range(500):
        rng = random.Random(seed)
        history = [(number, v) for number in range(batches) for v in _batch(rng, tasks)]
        sample = Sample(size, "p/m", [v for _, v in history], [b for b, _ in history])
        found = of_all([sample], None)
        held.append(found.low <= sum(_batch(rng, size)) <= found.high)
    assert 0.72 <= sum(held) / len(held) <= 0.96


def test_a_total_is_no_sum_of_ranges() -> None:
    """Chance evens out over many tasks;
    what is known from few does not become more certain by that. Limits cut.
    """
    rng = random.Random(1)
    values = [rng.lognormvariate(0, 1) for _ in range(200)]
    each = [n // 20 for n in range(200)]
    one = of_one([Sample(1000, "p/m", values, each)], None)
    many = of_all([Sample(1000, "p/m", values, each)], None)
    few = of_all([Sample(1000, "p/m", values[:6], each[:6])], None)
    alone = of_all([Sample(10, "p/m", [5.0], [1])], None)
    assert many.high < 0.7 * 1000 * one.high
    assert few.high / few.mean > many.high / many.mean
    assert (alone.mean, alone.high > 60) == (50, True)
    assert of_all([Sample(10, "p/m", [5.0], [1])], 20.0).high == 20
    # Two kinds of task, one of them three times as frequent.
    both = of_one(
        [Sample(75, "p/m", [2.0, 2.0], [1, 1]), Sample(25, "p/n", [10.0] * 2, [1, 1])], None
    )
    assert (both.mean, both.deviation) == (4, pytest.approx(12**0.5))


def test_a_task_on_record_is_priced_today() -> None:
    """Its cached input as cached; what a judge of another model cost is in the money alone;
    without a price it is not known.
    """
    used = Tally(
        calls=4,
        input_tokens=3000,
        cached_input_tokens=2000,
        output_tokens=500,
        input_usd=0.05,
    )
    past = PastTask(batch=1, status=TaskStatus.COMPLETED, seconds=8.0, tally=used)
    same = kind().cost(past)
    assert same == pytest.approx((1000 * 1 + 2000 * 0.1 + 500 * 2) / 1e6)
    assert kind(setup=replace(SETUP, price=DEAR)).cost(past) == pytest.approx(10 * same)
    assert kind(judge=SETUP).cost(past) == same
    assert kind(judge=ModelSetup(name="q/j", price=DEAR)).cost(past) == 0.05
    assert kind(judge=ModelSetup(name="q/j", price=None)).cost(past) is None
    assert kind(setup=replace(SETUP, price=None)).cost(past) is None


def test_limits_bound_what_a_task_may_take() -> None:
    """Calls times the most expensive call, or the limit on tokens or money where that is less;
    without a window, it is unknown.
    """
    limits = TaskLimits(max_calls=10, max_output_tokens=1000)
    assert kind(limits=limits).bounds() == Bounds(10, 1_000_000, pytest.approx(10 * 0.102))
    judged = kind(limits=limits, judge=replace(SETUP, name="q/j", price=DEAR))
    assert judged.bounds().cost == pytest.approx(10 * 1.02)
    less = replace(limits, max_tokens=50_000, max_cost_usd=0.5)
    assert kind(limits=less).bounds() == Bounds(10, 51_000, 0.5)
    # A judge's request is not looked at before.
    judged = kind(limits=less, judge=replace(SETUP, context_window=20_000))
    assert judged.bounds().tokens == 71_000
    unknown = kind(limits=limits, setup=replace(SETUP, context_window=0))
    assert unknown.bounds() == Bounds(10, None, None)
    assert kind(limits=TaskLimits(max_calls=0)).bounds() == Bounds(None, None, None)
    total = kind(limits=less).bounds() * 4 + unknown.bounds()
    assert total == Bounds(50, None, None)
    assert total.capped(3.0).cost == 3.0
    assert Bounds(1, 1, 2.0).capped(0.0).cost == 2.0


def _part(count: int, seconds: float, calls: float) -> EstimatePart:
    def amounts(calls: float, seconds: float) -> Amounts:
        values = (Spread(v, 0, v, v) for v in (calls, calls * 1000, seconds))
        calls_, tokens, seconds_ = values
        return Amounts(calls=calls_, tokens=tokens, cost=None, seconds=seconds_)

    return EstimatePart(
        tasks=count,
        with_history=count,
        first_requests=FirstCost(0, None),
        per_task=amounts(1, seconds),
        in_all=amounts(calls, count * seconds),
        at_most=Bounds(),
    )


@pytest.mark.parametrize(
    ("provider", "chain", "expected"),
    [
        ({}, 1, 100 * 6 / 8),
        ({}, 30, 180),
        ({"max_concurrent": 2}, 1, 300),
        ({"rpm": 60}, 1, 400),
        ({"tpm": 40_000}, 1, 600),
    ],
)
def test_the_slowest_of_what_holds_a_batch_up_counts(
    provider: dict[str, int], chain: int, expected: float
) -> None:
    """Slots, chains of tasks, calls at a time, requests and tokens a minute."""
    settings = Config(
        pool=PoolSection(processes=4, agents_per_process=2),
        providers={"p": ProviderSection(base_url="http://x", **provider)},  # type: ignore[arg-type] # by name
    )
    part = _part(100, 6.0, 400)
    assert wall_s(settings, {"p/m": part}, part, chain) == Spread(expected, 0, expected, expected)
    assert wall_s(settings, {}, replace(part, per_task=None, in_all=None), 1) is None


def test_the_longest_chain_of_tasks() -> None:
    """What comes after what, wherever it stands in the file."""
    tasks = [
        Task(id=name, first_prompt="x", model="p/m", after=after)
        for name, after in {"d": ("c", "a"), "a": (), "b": ("a",), "c": ("b",), "e": ()}.items()
    ]
    assert longest_chain(tasks) == 4
