"""Bounds, by what limits let tasks take at most.

No history is needed for that, and none can break it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from batchd.records import ModelSetup, TaskLimits

_Amount = TypeVar("_Amount", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """Tasks to come that nothing here distinguishes but their prompts."""

    setup: ModelSetup
    #: What judges them; None: no model does.
    judge: ModelSetup | None
    limits: TaskLimits


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that tasks may take; None: nothing limits it, or the price is not known."""

    calls: int | None = 0
    tokens: int | None = 0
    cost: float | None = 0.0

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(
            _sum(self.calls, other.calls),
            _sum(self.tokens, other.tokens),
            _sum(self.cost, other.cost),
        )

    def __mul__(self, count: int) -> Bounds:
        calls, tokens, cost = self.calls, self.tokens, self.cost
        return Bounds(
            None if calls is None else calls * count,
            None if tokens is None else tokens * count,
            None if cost is None else cost * count,
        )

    def capped(self, budget_usd: float) -> Bounds:
        """Return the most under a budget for all of them; 0: there is none."""
        return replace(self, cost=_least([self.cost, budget_usd or None]))


def of_task(kind: TaskKind) -> Bounds:
    """Return the most that one task of a kind may take."""
    limits, setups = kind.limits, [kind.setup, *([kind.judge] if kind.judge else [])]
    calls = limits.max_calls or None
    # A window holds what comes out as well.
    windows = (s.context_window for s in setups)
    longest = _most(max(w, limits.max_output_tokens) if w else None for w in windows)
    tokens = _least([_counted(kind), calls * longest if calls and longest else None])
    dearest = _most(_dearest(s, limits.max_output_tokens) for s in setups)
    cost = _least(
        [limits.max_cost_usd or None, calls * dearest if calls and dearest is not None else None]
    )
    return Bounds(calls, None if tokens is None else int(tokens), cost)


def _counted(kind: TaskKind) -> float | None:
    """Return what ``max_tokens`` allows: it is looked at before each call,
    with the agent's input but not the judge's.
    """
    limits, judge = kind.limits, kind.judge.context_window if kind.judge else 0
    if not limits.max_tokens or (kind.judge and not judge):
        return None
    return limits.max_tokens + limits.max_output_tokens + judge


def _dearest(setup: ModelSetup, output: int) -> float | None:
    """Return what a call costs at most:
    a window full of new input, and all the output that it may have.
    """
    price, window = setup.price, setup.context_window
    if price is None or not window:
        return None
    return price.most(window, output).total


def _sum(one: _Amount | None, other: _Amount | None) -> _Amount | None:
    return None if one is None or other is None else one + other


def _most(values: Iterable[float | None]) -> float | None:
    """Return the largest, None as soon as one is unlimited."""
    found = list(values)
    known = [v for v in found if v is not None]
    return max(known) if len(known) == len(found) else None


def _least(values: Iterable[float | None]) -> float | None:
    """Return the smallest of those that limit."""
    return min((v for v in values if v is not None), default=None)
