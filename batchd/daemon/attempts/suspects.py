"""Suspects, tasks at which a worker died: each runs next in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass

from batchd.daemon.attempts.attempts import Attempts
from batchd.governor import Governor
from batchd.lifecycle import Lifecycle
from batchd.pool.supervisor import Supervisor
from batchd.records import Ref
from batchd.records.tasks import ANYWHERE

_MESSAGE = "it makes room for an earlier task, which runs in a process of its own"


@dataclass(slots=True, eq=False, repr=False)
class Suspects:
    """Starts suspects by priority and age, as all others;
    where no process is empty, one is cleared for them.

    One at a time: a suspect needs a whole process, and while many wait the other processes go on.
    """

    _lifecycle: Lifecycle
    _governor: Governor
    _attempts: Attempts
    _pool: Supervisor

    def take(self) -> Ref | None:
        """Return the suspect to start now, if it has its turn and a process is empty."""
        queue = self._lifecycle.queue
        suspect = queue.suspect_due(self._governor.crowded)
        if suspect is None:
            return None
        place = self._lifecycle.place_of(suspect)
        # Where no worker at all has what it asks for, it is taken all the same,
        # and held for that: others have their turn.
        due = self._pool.slot_alone(place) or not self._pool.has(place)
        return queue.draw_suspect() if due else None

    def make_room(self) -> bool:
        """Clear a process for the suspect whose turn it is;
        return whether others may have one back that was closed to them.

        Its tasks that came after the suspect give their slots back at their next durable point;
        older and better ones come to their end.
        """
        lifecycle, pool = self._lifecycle, self._pool
        suspect = lifecycle.queue.suspect_due(self._governor.crowded)
        place = lifecycle.place_of(suspect) if suspect else ANYWHERE
        fitting = [worker for worker in pool.workers if pool.could(worker, place)]
        if suspect is None or pool.slot_alone(place) or any(w.alone for w in pool.workers):
            return pool.clear(None)
        worker = pool.clearing if pool.clearing in fitting else None
        worker = worker or min(
            fitting,
            key=lambda w: (sum(lifecycle.precedes(ref, suspect) for ref in w.tasks), len(w.tasks)),
            default=None,
        )
        pool.clear(worker)
        for ref in worker.tasks if worker else ():
            if lifecycle.precedes(suspect, ref):
                self._attempts.halt(ref, _MESSAGE)
        return False
