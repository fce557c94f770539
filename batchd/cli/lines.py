"""A line of ``batchd check``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One thing looked at."""

    #: ``ok``, ``note`` (works, but know it) or ``failed``.
    verdict: str
    what: str
    detail: str
    mend: str = ""
