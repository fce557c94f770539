"""Hosts that a command's proxy refused, as they are shown in the end."""

from __future__ import annotations

#: What is kept of what was refused.
_MOST_REFUSALS = 20
#: Longer than any host, of which a part would be no secret any more, though it be one as a whole.
_MOST_NAME = 400


class RefusedHosts:
    """The refused hosts, each once, and no more than a few."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._others = 0

    def add(self, what: str) -> None:
        """Note a refusal."""
        what = what[:_MOST_NAME]
        if what in self._counts or len(self._counts) < _MOST_REFUSALS:
            self._counts[what] = self._counts.get(what, 0) + 1
        else:
            self._others += 1

    def taken(self) -> tuple[str, ...]:
        """Return a line for each since this was last asked,
        with how often it was if that is not once.
        """
        lines = [f"{what} ({n} times)" if n > 1 else what for what, n in self._counts.items()]
        lines += [f"{self._others} more"] if self._others else []
        self._counts, self._others = {}, 0
        return tuple(lines)
