"""Machines on which no task can run: their workers are sent away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from batchd.errors import NotPossibleError

#: For how long a machine counts as unfit after the last worker that found it so.
_UNFIT_S = 900.0


@dataclass(frozen=True, slots=True)
class _Found:
    """What a worker found on its machine."""

    #: Why no task can run there, and what helps.
    problem: str
    fix: str
    #: Seconds since the epoch.
    since: float
    #: By the loop's clock.
    until: float


class UnfitNodes:
    """The machines that were found unfit lately, by name."""

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}

    def __contains__(self, node: str) -> bool:
        return node in self._today()

    def add(self, node: str, problem: str, fix: str) -> None:
        """Note that no task can run on a machine, and what helps."""
        known = self._today().get(node)
        since = known.since if known else time.time()
        until = asyncio.get_running_loop().time() + _UNFIT_S
        self._found[node] = _Found(problem, fix, since, until)

    def discard(self, node: str) -> None:
        """Note that tasks can run on a machine."""
        self._found.pop(node, None)

    def problems(self) -> dict[str, str]:
        """Return why no task can run on each of them."""
        return {node: found.problem for node, found in self._today().items()}

    def trouble(self) -> tuple[NotPossibleError, float] | None:
        """Return the trouble that machines are unfit, with the fix, and since when; None: none
        is.
        """
        found = self._today()
        if not found:
            return None
        node, first = next(iter(found.items()))
        more = f" (nor on {len(found) - 1} more machines)" if len(found) > 1 else ""
        why = f"no task can run on {node}{more}: {first.problem}"
        return NotPossibleError(f"{why}: {first.fix}"), min(each.since for each in found.values())

    def _today(self) -> Mapping[str, _Found]:
        now = asyncio.get_running_loop().time()
        self._found = {node: each for node, each in self._found.items() if each.until > now}
        return self._found
