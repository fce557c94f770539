"""Limits of a task: each is defined here, and nowhere else.

``[limits]`` of the configuration inherits these fields, ``[limits.ceiling]`` and a task file's
``limits`` are made from them, and ``tests/unit/test_docs.py`` holds config.toml and docs/tasks.md
to them. Another limit is a line here, its two lines of documentation,
and the place that enforces it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from batchd.records.numbers import Amount, Count, Positive, Span


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a limit, and its unit: a part of a sentence."""

    text: str

    def __get_pydantic_json_schema__(
        self, schema: Any, handler: Callable[[Any], dict[str, Any]]
    ) -> dict[str, Any]:
        """Describe a key in the schema of task files;
        pydantic asks, who defines a limit need not import it.
        """
        return {**handler(schema), "description": f"{self.text[0].upper()}{self.text[1:]}."}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """The limits of a task. 0 means no limit, where its kind of number has a 0."""

    max_iterations: Annotated[Count, Meaning("rounds of work and evaluation")] = 10
    max_calls: Annotated[Count, Meaning("model calls, evaluations and compactions included")] = 100
    max_tokens: Annotated[Count, Meaning("tokens over all calls, input and output together")] = 0
    max_output_tokens: Annotated[Positive, Meaning("output tokens of one call")] = 8192
    max_cost_usd: Annotated[Amount, Meaning("US dollars over all calls")] = 0.0
    timeout_s: Annotated[Amount, Meaning("seconds at work; parked time does not count")] = 3600.0
    call_timeout_s: Annotated[
        Span, Meaning("seconds of one model call, from request to the last byte")
    ] = 600.0
    tool_timeout_s: Annotated[Span, Meaning("seconds of one command or file tool")] = 120.0
