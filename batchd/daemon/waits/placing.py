"""Placing: tasks that need something of their machine are kept
from starting while no worker has room for that.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from batchd.actions import Action
from batchd.errors import NotPossibleError
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.queue import rank_of
from batchd.log import get_logger
from batchd.pool.supervisor import Supervisor
from batchd.records import Cause, HoldKey, Needs, Ref, Scope

#: So many of one kind are let go on at a time, and so many counted.
_AT_ONCE, _COUNTED = 16, 10_000
#: How many kinds a message names.
_NAMED = 3


@dataclass(slots=True, eq=False, repr=False)
class Placing:
    """Holds tasks for what they need, so that others pass them,
    and lets the best go on where there is room.

    Whether one that goes on gets that room, its turn says: it may be kept again.
    """

    _lifecycle: Lifecycle
    _pool: Supervisor
    #: Whether it is for people to start workers;
    #: else a crew does so, and reports what it cannot get.
    _reports: bool
    #: What tasks are kept for.
    _kept: dict[Needs, None] = field(default_factory=dict)
    _missing: tuple[NotPossibleError, float] | None = None

    def keeps(self, ref: Ref) -> bool:
        """Keep a task that was just taken from starting, if no worker has room for what it needs;
        return whether that is so.
        """
        needs, alone = self._lifecycle.needs_of(ref), self._lifecycle.suspect(ref)
        if not needs or self._pool.fits(needs, alone=alone):
            return False
        self._kept[needs] = None
        self._lifecycle.take(inputs.Held(ref, _room_for(needs)))
        return True

    def refill(self) -> bool:
        """Let the best go on for which there may be room; asked before each turn.

        Return whether there are more of them.
        """
        more = False
        for needs in [*self._kept]:
            kept = self._lifecycle.holds.kept(_room_for(needs))
            if not kept:
                del self._kept[needs]
            elif self._pool.has(needs):
                # A suspect waits for a process of its own,
                # which is made room for where it waits in the queue.
                free = self._pool.fits(needs)
                ready = kept if free else filter(self._lifecycle.suspect, kept)
                best = heapq.nsmallest(_AT_ONCE, ready, key=self._rank)
                for ref in best:
                    self._lifecycle.take(inputs.Lifted(ref, _room_for(needs)))
                more = more or (free and len(kept) > len(best))
        return more

    def demand(self) -> Mapping[Needs, int]:
        """Return how many tasks wait for room, or only for their turn,
        by what they need; those that need nothing apart.
        """
        counts = Counter(self._lifecycle.needy)
        for needs in self._kept:
            hold = _room_for(needs)
            entries = map(self._lifecycle.entries.get, self._lifecycle.holds.kept(hold))
            first = islice(entries, _COUNTED)
            counts[needs] += sum(entry is not None and entry.holds == (hold,) for entry in first)
        return counts

    @property
    def missing(self) -> tuple[NotPossibleError, float] | None:
        """The trouble that no worker has what tasks need, with the fix, and since when; None:
        there is none.
        """
        return self._missing

    def look(self) -> None:
        """See whether any worker has what tasks need; log it when none does."""
        lacking = sorted(filter(self._lacks, {*self._lifecycle.needy, *self._kept}))
        if not lacking or not self._reports:
            self._missing = None
            return
        first = lacking[0]
        options = [f"--gpus {first.gpu}"] * bool(first.gpu) + [f"--label {first.label}"] * bool(
            first.label
        )
        named = "; others ".join(map(str, lacking[:_NAMED]))
        command = " ".join(("batchd worker --join -", *options))
        fix = f"start one where it is, `batchd invite NODE | ssh NODE {command}`"
        error = NotPossibleError(f"tasks need {named}, and no worker has that: {fix}")
        since = self._missing[1] if self._missing else time.time()
        if self._missing is None or str(self._missing[0]) != str(error):
            get_logger().error(Action.WORKER_TROUBLE, message=str(error))
        self._missing = error, since

    def _lacks(self, needs: Needs) -> bool:
        """Whether tasks wait for what no worker has."""
        if self._pool.has(needs):
            return False
        hold = _room_for(needs)
        kept = map(self._lifecycle.entries.get, self._lifecycle.holds.kept(hold))
        return bool(self._lifecycle.needy.get(needs)) or any(e and e.holds == (hold,) for e in kept)

    def _rank(self, ref: Ref) -> tuple[int, int, Ref]:
        return rank_of(self._lifecycle.entries[ref])


def _room_for(needs: Needs) -> HoldKey:
    """Return what keeps tasks of these needs."""
    return HoldKey(Scope.ALL, str(needs), Cause.NEEDS)
