"""``[limits]``: what tasks may use up."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from batchd import records
from batchd.config.values import Amount, Count, Positive, Section, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps(Section):
    """Limits that may be left open; the keys of ``[limits.ceiling]`` and of a task's ``limits``."""

    max_iterations: Count | None = None
    """Rounds of work and evaluation."""
    max_calls: Count | None = None
    """Model calls, evaluations and compactions included."""
    max_tokens: Count | None = None
    """Tokens over all calls, input and output together."""
    max_output_tokens: Positive | None = None
    """Output tokens of one call."""
    max_cost_usd: Amount | None = None
    """Money over all calls."""
    timeout_s: Amount | None = None
    """Time at work; parked time does not count."""
    call_timeout_s: Span | None = None
    """One model call, from request to the last byte."""
    tool_timeout_s: Span | None = None
    """One command or file tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(Section):
    """``[limits]``: defaults for tasks; 0 means no limit."""

    max_iterations: Count = 10
    """Rounds of work and evaluation."""
    max_calls: Count = 100
    """Model calls, evaluations and compactions included."""
    max_tokens: Count = 0
    """Tokens over all calls, input and output together."""
    max_output_tokens: Positive = 8192
    """Output tokens of one call."""
    max_cost_usd: Amount = 0.0
    """Money over all calls."""
    timeout_s: Amount = 3600.0
    """Time at work; parked time does not count."""
    call_timeout_s: Span = 600.0
    """One model call, from request to the last byte."""
    tool_timeout_s: Span = 120.0
    """One command or file tool."""
    ceiling: Caps = field(default_factory=Caps)
    """``[limits.ceiling]``: binds every task."""

    def record(self) -> records.Limits:
        """Return the defaults alone, as tasks carry them."""
        return records.Limits(
            **{f.name: getattr(self, f.name) for f in fields(records.Limits)},
        )

    def lowered(self, limits: records.Limits) -> records.Limits:
        """Return limits of which none is above the ceiling."""
        low = {
            f.name: min(getattr(limits, f.name) or ceiling, ceiling)
            for f in fields(self.ceiling)
            if (ceiling := getattr(self.ceiling, f.name))
        }
        return replace(limits, **low)
