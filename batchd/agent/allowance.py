"""What a task has left of its limits, in words for its model."""

from __future__ import annotations

from collections.abc import Iterator

from batchd.records import (
    TaskLimits,
)
from batchd.taskstate import TaskState

#: The share of a limit that is used by then (the design's number).
_WARN_SHARE = 0.8


def left(limits: TaskLimits, state: TaskState, now: float) -> str:
    """Return what is left of the limits that are nearly used up, for the model; empty: of none."""
    found = ", ".join(_nearly_used(limits, state, now))
    if not found:
        return ""
    return f"[Limits are nearly used up. Left: {found}. Finish what matters most.]"


def _nearly_used(limits: TaskLimits, state: TaskState, now: float) -> Iterator[str]:
    used = state.tally
    calls = used.calls + used.unsettled_calls
    if _near(calls, limits.max_calls):
        left = limits.max_calls - calls
        yield f"{left} model {'call' if left == 1 else 'calls'}"
    if _near(used.total_tokens, limits.max_tokens):
        yield f"{limits.max_tokens - used.total_tokens:,} tokens"
    seconds = state.run_time(now)
    if _near(seconds, limits.timeout_s):
        yield f"{limits.timeout_s - seconds:,.0f} seconds"
    spent = (used.cost_usd or 0.0) + used.unsettled_usd
    if _near(spent, limits.max_cost_usd):
        yield f"${limits.max_cost_usd - spent:.4f}"


def _near(used: float, limit: float) -> bool:
    return 0 < limit * _WARN_SHARE <= used < limit
