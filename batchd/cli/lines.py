"""A line of ``batchd check``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

LineVerdict: TypeAlias = Literal["ok", "note", "failed"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing looked at."""

    #: ``note``: it works, but know it.
    verdict: LineVerdict
    what: str
    detail: str
    mend: str = ""
