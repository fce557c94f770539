"""The job of a process that parses task files, and its answer: each a length and so many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from batchd.config import Config
from batchd.errors import Problem
from batchd.records import Task
from batchd.spool.taskfile import Parsed

#: How long the length is that goes before each.
HEAD = 8
#: Tasks in one part of an answer: decoding it holds nothing up.
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseJob:
    """One file."""

    #: Where it lies.
    path: str
    #: What it was called when it was dropped.
    name: str
    config: Config


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedPart:
    """A part of a parsed file, or why there is nothing to be had from it."""

    tasks: Sequence[Task] = ()
    budget_usd: float = 0.0
    parallel: int = 0
    after_batches: tuple[str, ...] = ()
    #: What is wrong with the file.
    problems: tuple[Problem, ...] = ()
    #: What the system refused: a number of errno, and its text.
    refused: tuple[int, str] | None = None
    #: What does not answer.
    silent: str = ""
    #: A bug: the traceback.
    bug: str = ""
    #: Whether nothing more comes.
    last: bool = True


def parts(parsed: Parsed) -> Iterator[ParsedPart]:
    """Return what is in a file in parts."""
    for start in range(0, len(parsed.tasks), _AT_ONCE):
        end = start + _AT_ONCE
        yield ParsedPart(
            tasks=parsed.tasks[start:end],
            budget_usd=parsed.budget_usd,
            parallel=parsed.parallel,
            after_batches=parsed.after_batches,
            last=end >= len(parsed.tasks),
        )
