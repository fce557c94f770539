"""Statistics: from what similar tasks came to, they work out what a new batch may come to.

A batch is not the sum of its tasks' 90th percentiles: chance evens out between tasks. What does not
even out is what all tasks of a batch share (its prompts, its repository, the model's day), and what
a short history does not know. So the variance of a total of n tasks has three parts,
with k tasks of B batches on record:

- n · w: each task differs from the others of its batch, by chance (w: variance within batches);
- n² · w / k: the mean itself is known from k tasks only;
- n² · b · (1 + 1 / B): this batch will differ from the others,
  and these are few (b: variance between batches).

Both variances are themselves known from few, which widens the range as Student's t does.
The total is taken to be lognormal with this mean and variance:
never negative, and with the longer tail above.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

#: The quantiles that a range ends at: eight of ten outcomes lie within.
LOW_QUANTILE, HIGH_QUANTILE = 0.1, 0.9
_Z = NormalDist().inv_cdf(HIGH_QUANTILE)
#: Fewer say nothing of the spread, which is then taken to be as large as the mean.
_MIN_TASKS_FOR_SPREAD = 3
#: How much batches differ at least where too few are on record to know, as a share of the mean.
_UNSEEN = 0.2


@dataclass(frozen=True, slots=True)
class Range:
    """A range of what something may come to: the 10th percentile, the median, the 90th."""

    low: float
    median: float
    high: float

    def within(self, most: float | None) -> Range:
        """Return the range, none of it above ``most``; None: there is no limit."""
        return (
            self
            if most is None
            else Range(*(min(most, v) for v in (self.low, self.median, self.high)))
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """Some tasks to come, and what each of them would come
    to if it went like this or that one on record.
    """

    #: How many.
    tasks: int
    values: Sequence[float]
    #: The batch on record of each value.
    batches: Sequence[int]
    #: By how much the mean of a new batch deviates at least,
    #: as a share of it: nothing repeats itself to the token.
    doubt: float


def of_one(samples: Iterable[Sample]) -> Range | None:
    """Return what one task of these may come to; None without any on record."""
    weighted = sorted(
        (value, sample.tasks / len(sample.values)) for sample in samples for value in sample.values
    )
    whole = sum(weight for _, weight in weighted)
    if not whole:
        return None
    found, passed, wanted = [], 0.0, [LOW_QUANTILE, 0.5, HIGH_QUANTILE]
    for value, weight in weighted:
        passed += weight
        while wanted and passed >= wanted[0] * whole * (1 - 1e-9):
            found.append(value)
            wanted.pop(0)
    return Range(*found)


def of_all(samples: Iterable[Sample]) -> Range | None:
    """Return what all tasks of these may come to together; None without any on record."""
    mean = by_chance = in_common = 0.0
    seen = False
    for sample in samples:
        seen = True
        average = fmean(sample.values)
        within, between = _spread(sample, average)
        count, known, batches = sample.tasks, len(sample.values), len(set(sample.batches))
        mean += count * average
        by_chance += within * (count + count**2 / known) * _caution(known) ** 2
        # A batch that is dearer than usual is so for all its models.
        in_common += count * math.sqrt(between * (1 + 1 / batches)) * _caution(batches)
    return _lognormal(mean, by_chance + in_common**2) if seen else None


def _spread(sample: Sample, average: float) -> tuple[float, float]:
    """Return the variances within batches and between them (an analysis of variance, one way)."""
    doubt = (
        sample.doubt
        if len(set(sample.batches)) >= _MIN_TASKS_FOR_SPREAD
        else max(sample.doubt, _UNSEEN)
    )
    least = (doubt * average) ** 2
    if len(sample.values) < _MIN_TASKS_FOR_SPREAD:
        return average**2, least
    groups: dict[int, list[float]] = defaultdict(list)
    for batch, value in zip(sample.batches, sample.values, strict=True):
        groups[batch].append(value)
    count, batches = len(sample.values), len(groups)
    if batches in {1, count}:
        return variance(sample.values), least
    means = {batch: fmean(values) for batch, values in groups.items()}
    inside = sum((v - means[b]) ** 2 for b, v in zip(sample.batches, sample.values, strict=True))
    within = inside / (count - batches)
    outside = sum(len(v) * (means[b] - average) ** 2 for b, v in groups.items()) / (batches - 1)
    size = (count - sum(len(v) ** 2 for v in groups.values()) / count) / (batches - 1)
    # Half a standard error on top: by itself it is too low more often than too high.
    error = outside / size * math.sqrt(2 / (batches - 1))
    return within, max(least, (outside - within) / size + error / 2)


def _caution(known: int) -> float:
    """Return how many times wider a range is because its spread is known from so few:
    Student's t to the normal's.
    """
    free = known - 1
    if free < 1:
        return 1.0  # the spread is assumed then, not known
    # Cornish and Fisher's expansion, to the third term.
    first, second = (_Z**3 + _Z) / 4, (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return 1 + (first / free + second / free**2) / _Z


def _lognormal(mean: float, spread: float) -> Range:
    if not mean:
        return Range(0.0, 0.0, 0.0)
    sigma = math.sqrt(math.log1p(spread / mean**2))
    middle = mean * math.exp(-(sigma**2) / 2)
    return Range(middle * math.exp(-_Z * sigma), middle, middle * math.exp(_Z * sigma))
