"""The estimate's arithmetic: ranges that hold what happens,
who counts as similar, what limits allow.
"""

from __future__ import annotations

import random

import pytest
from replacing import replace

from batchd.config import Config
from batchd.config.sections import PoolSection, ProviderSection
from batchd.estimate import bounds, similar, wall
from batchd.estimate.bounds import Bounds
from batchd.estimate.ranges import Range, Sample, of_all, of_one
from batchd.estimate.similar import Prompts, SimilarTasks, TaskKind, outcome
from batchd.estimate.task_groups import EstimatePart, Ranges
from batchd.records import ModelSetup, Price, Rate, Task, TaskLimits, Usage
from batchd.store import labels
from batchd.store.past import PastTask

PRICE = Price(rates=(Rate(input=1.0, cached_input=0.1, output=2.0),), source="config")
DEAR = Price(rates=(Rate(input=10.0, cached_input=1.0, output=20.0),), source="config")
SETUP = ModelSetup(name="p/m", price=PRICE, context_window=100_000)
#: As long as those on record.
SAME = Prompts(tokens=500, prompt_tokens=100, prompt_chars=400)


def kind(*tags: str, evaluation: str = "check", **more: object) -> TaskKind:
    """Return a kind of task."""
    label = labels.of(Task(id="1", first_prompt="x", model="p/m", tags=tags)).tags
    values = {"setup": SETUP, "judge": SETUP, "limits": TaskLimits()} | more
    return TaskKind(tags=label, evaluation=evaluation, **values)  # type: ignore[arg-type] # by name


def past(*tags: str, evaluation: str = "check", batch: int = 1, **more: object) -> PastTask:
    """Return a task on record: four calls, two thirds of whose input came from the cache."""
    usage = Usage(calls=4, input_tokens=3000, cached_input_tokens=2000, output_tokens=500)
    label = labels.of(Task(id="1", first_prompt="x", model="p/m", tags=tags)).tags
    values = {"model": "p/m", "prompt_chars": 400, "cost_usd": 0.0022, "seconds": 8.0} | more
    return PastTask(batch=batch, tags=label, evaluation=evaluation, usage=usage, **values)  # type: ignore[arg-type] # by name


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
        sample = Sample(size, [v for _, v in history], [b for b, _ in history], 0.1)
        found = of_all([sample])
        assert found is not None
        held.append(found.low <= sum(_batch(rng, size)) <= found.high)
    assert 0.72 <= sum(held) / len(held) <= 0.92


def test_a_total_is_no_sum_of_percentiles() -> None:
    """Chance evens out over many tasks;
    what is known from few does not become more certain by that.
    """
    rng = random.Random(1)
    values = [rng.lognormvariate(0, 1) for _ in range(200)]
    one = of_one([Sample(1000, values, [1] * 200, 0.0)])
    many = of_all([Sample(1000, values, [1] * 200, 0.0)])
    few = of_all([Sample(1000, values[:6], [1] * 6, 0.0)])
    alone = of_all([Sample(10, [5.0], [1], 0.1)])
    assert one
    assert many
    assert few
    assert alone
    assert many.high < 0.7 * 1000 * one.high
    assert few.high / few.low > 1.2 * many.high / many.low
    assert alone.high > 1.5 * alone.low
    assert (of_one([]), of_all([])) == (None, None)
    # Two kinds of task, one of them three times as frequent.
    assert of_one([Sample(75, [1.0, 2.0], [1, 1], 0), Sample(25, [9.0], [1], 0)]) == Range(1, 2, 9)
    assert Range(1, 2, 9).within(2) == Range(1, 2, 2)


def test_the_most_similar_tasks_count_as_soon_as_they_are_enough() -> None:
    """Tags and evaluation, tags, a tag, evaluation, the model;
    then other models of the provider; then nothing.
    """
    own = [
        *(past("a", "b") for _ in range(5)),
        *(past("b", evaluation="judge") for _ in range(5)),
        *(past("c") for _ in range(4)),
        *(past(evaluation="none") for _ in range(3)),
    ]
    record = SimilarTasks(own, tuple)
    for wanted, likeness, count in (
        (kind("b", "a"), similar.EXACT, 5),
        (kind("a", "b", evaluation="judge"), similar.TAGS, 5),
        (kind("b", "z"), similar.A_TAG, 10),
        (kind("c"), similar.EVALUATION, 9),
        (kind("z", evaluation="output_schema"), similar.MODEL, 17),
    ):
        found = record.like(wanted)
        assert found is not None
        assert (found[0], len(found[1])) == (likeness, count), likeness
    few, other = (
        SimilarTasks(own[:2], tuple).like(kind("z")),
        SimilarTasks((), lambda: own).like(kind()),
    )
    assert few is not None
    assert other is not None
    assert (few[0], len(few[1])) == (similar.MODEL, 2)
    assert (other[0], len(other[1])) == (similar.PROVIDER, 17)
    assert SimilarTasks((), tuple).like(kind()) is None
    many = SimilarTasks([past("a", batch=i // 200) for i in range(5000)], tuple).like(kind("a"))
    assert many is not None
    assert len(many[1]) <= 200
    assert len({p.batch for p in many[1]}) == 25


def test_an_outcome_is_priced_today_and_cut_at_the_limits() -> None:
    """A longer prompt is paid in each call, cached as before;
    limits end what went on; other prices count in full.
    """
    same = outcome(past(), kind(), SAME)
    assert same.cost == pytest.approx((1000 * 1 + 2000 * 0.1 + 500 * 2) / 1e6)
    assert (same.calls, same.tokens, same.seconds) == (4, 3500, 8)
    # 800 characters more, at 4 a token, in four calls.
    longer = outcome(past(), kind(), Prompts(tokens=700, prompt_tokens=300, prompt_chars=1200))
    assert longer.tokens == 3500 + 4 * 200
    assert longer.cost == pytest.approx(
        (3800 / 3 * 1 + 3800 * 2 / 3 * 0.1 + 500 * 2) / 1e6, rel=1e-3
    )
    assert (
        outcome(
            past(prompt_chars=None), kind(), Prompts(tokens=9e9, prompt_tokens=1, prompt_chars=1)
        )
        == same
    )
    halved = outcome(past(), kind(limits=TaskLimits(max_calls=2)), SAME)
    assert (halved.calls, halved.tokens, halved.seconds) == (2, 1750, 4)
    capped = outcome(past(), kind(limits=TaskLimits(max_cost_usd=0.0011)), SAME)
    assert (capped.cost, capped.calls) == (pytest.approx(0.0011), pytest.approx(2))
    dear = outcome(past(), kind(setup=replace(SETUP, price=DEAR)), SAME)
    assert dear.cost == pytest.approx(10 * (same.cost or 0))
    # What a judge of another model cost is in the money on record alone.
    judged = kind(evaluation="judge", judge=ModelSetup(name="q/j", price=DEAR))
    assert outcome(past(cost_usd=0.05), judged, SAME).cost == pytest.approx(0.05)
    dark = replace(SETUP, price=None)
    assert outcome(past(), kind(setup=dark), SAME).cost is None
    assert (
        outcome(past(), kind(evaluation="check judge", judge=replace(dark, name="q/j")), SAME).cost
        is None
    )


def test_limits_bound_what_a_task_may_take() -> None:
    """Calls times the dearest call, or the limit on tokens or money where that is less;
    without a window, it is unknown.
    """
    limits = TaskLimits(max_calls=10, max_output_tokens=1000)
    assert bounds.of_task(kind(limits=limits)) == Bounds(10, 1_000_000, pytest.approx(10 * 0.102))
    judged = kind(limits=limits, evaluation="judge", judge=replace(SETUP, name="q/j", price=DEAR))
    assert bounds.of_task(judged).cost == pytest.approx(10 * 1.02)
    less = replace(limits, max_tokens=50_000, max_cost_usd=0.5)
    assert bounds.of_task(kind(limits=less)) == Bounds(10, 51_000, 0.5)
    # A judge's request is not looked at before.
    judged = kind(limits=less, evaluation="judge", judge=replace(SETUP, context_window=20_000))
    assert bounds.of_task(judged).tokens == 71_000
    unknown = kind(limits=limits, setup=replace(SETUP, context_window=0))
    assert bounds.of_task(unknown) == Bounds(10, None, None)
    assert bounds.of_task(kind(limits=TaskLimits(max_calls=0))) == Bounds(None, None, None)
    total = bounds.of_task(kind(limits=less)) * 4 + bounds.of_task(unknown)
    assert total == Bounds(50, None, None)
    assert total.capped(3.0).cost == 3.0
    assert Bounds(1, 1, 2.0).capped(0.0).cost == 2.0


def _part(count: int, seconds: float, calls: float) -> EstimatePart:
    one = Range(seconds, seconds, seconds)
    ranges = Ranges(calls=Range(1, 1, 1), tokens=one, cost=None, seconds=one)
    whole = [Range(v, v, v) for v in (calls, calls * 1000, count * seconds)]
    return EstimatePart(
        tasks=count,
        known=count,
        first_tokens=0,
        first_cost=None,
        one=ranges,
        all=Ranges(calls=whole[0], tokens=whole[1], cost=None, seconds=whole[2]),
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
    found = wall.rough(settings, {"p/m": part}, part, chain)
    assert found == Range(expected, expected, expected)
    assert wall.rough(settings, {}, replace(part, one=None, all=None), 1) is None


def test_the_longest_chain_of_tasks() -> None:
    """What comes after what, wherever it stands in the file."""
    tasks = [
        Task(id=name, first_prompt="x", model="p/m", after=after)
        for name, after in {"d": ("c", "a"), "a": (), "b": ("a",), "c": ("b",), "e": ()}.items()
    ]
    assert wall.longest_chain(tasks) == 4
