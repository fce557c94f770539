"""Kinds of numbers that people may write, each with its bounds;
pydantic holds a configuration and a task file to them.

Bounds that no honest value meets keep every number within what SQLite and timers can hold.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from annotated_types import Ge, Gt, Le

Count: TypeAlias = Annotated[int, Ge(0), Le(10**15)]
Positive: TypeAlias = Annotated[int, Ge(1), Le(10**15)]
Amount: TypeAlias = Annotated[float, Ge(0), Le(10**9)]
Span: TypeAlias = Annotated[float, Gt(0), Le(10**9)]
