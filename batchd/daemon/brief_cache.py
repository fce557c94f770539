"""What was so a moment ago, kept so that tasks
that start one after the other do not each ask again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

#: How long an answer about the machine holds (seconds).
_SURE_S = 0.25


@dataclass(slots=True)
class BriefCache:
    """One thing that was so: a user that was there, a folder that took files."""

    _name: str = ""
    #: By the monotonic clock.
    _at: float = 0.0

    def knows(self, name: str) -> bool:
        """Return whether it was so of this one, a moment ago."""
        return name == self._name and time.monotonic() - self._at < _SURE_S

    def note(self, name: str) -> None:
        """Note that it is so."""
        self._name, self._at = name, time.monotonic()
