"""``[limits]``: what tasks may use up. The limits themselves are those of ``records.Limits``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, TypeVar, get_type_hints

from batchd import records
from batchd.config.values import Section

_Table = TypeVar("_Table")


def left_open() -> dict[str, Any]:
    """Return what each limit may be where it may be left open: within its bounds, or None.

    By name.
    """
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(records.TaskLimits, include_extras=True).items():
        *bounds, meaning = kind.__metadata__
        kinds[name] = Annotated[Annotated[kind.__origin__, *bounds] | None, meaning]
    return kinds


def _with_limits(cls: type[_Table]) -> type[_Table]:
    """Make a class the dataclass of all limits; each may be left open."""
    cls.__annotations__ = left_open()
    for name in cls.__annotations__:
        setattr(cls, name, None)
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


@_with_limits
class LimitsCeilingSection(Section):
    """``[limits.ceiling]``: no task may ask for more. What is left open, or 0, binds nothing."""

    def binding(self) -> dict[str, Any]:
        """Return the ceilings that bind, by name."""
        return {f.name: cap for f in fields(records.TaskLimits) if (cap := getattr(self, f.name))}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSection(records.TaskLimits, Section):
    """``[limits]``: defaults for tasks; 0 means no limit."""

    ceiling: LimitsCeilingSection = field(default_factory=LimitsCeilingSection)
    """``[limits.ceiling]``: binds every task."""

    def record(self) -> records.TaskLimits:
        """Return the defaults alone, as tasks carry them."""
        return records.TaskLimits(
            **{f.name: getattr(self, f.name) for f in fields(records.TaskLimits)},
        )

    def lowered(self, limits: records.TaskLimits) -> records.TaskLimits:
        """Return the limits, each lowered to the ceiling."""
        low = {
            name: min(getattr(limits, name) or most, most)
            for name, most in self.ceiling.binding().items()
        }
        return replace(limits, **low) if low else limits
