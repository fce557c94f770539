"""Batches that come after others: held until those have completed, and ended where one has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from batchd.daemon import main_loop
from batchd.daemon.ends.batches import OpenBatches
from batchd.daemon.ends.publisher import Publisher
from batchd.daemon.listeners import Listener
from batchd.daemon.writes import DaemonStore
from batchd.lifecycle import Lifecycle, inputs
from batchd.lifecycle.inputs import End
from batchd.records import Batch, Cause, HoldKey, Reason, Scope, Task, TaskStatus
from batchd.store import lookups


@dataclass(slots=True, eq=False, repr=False)
class Predecessors(Listener):
    """Which open batches wait for which."""

    _lifecycle: Lifecycle
    _store: DaemonStore
    _batches: OpenBatches
    _publisher: Publisher
    #: By the earlier batch: those that come after it.
    _after: dict[str, list[str]] = field(default_factory=dict)

    def restore(self, batches: Iterable[Batch]) -> None:
        """Hold those of an earlier daemon's batches that wait."""
        for batch in batches:
            self._look(batch)

    def batch_received(self, batch: Batch, tasks: Sequence[Task]) -> None:
        """Hold a batch that waits, before any of its tasks starts."""
        self._look(batch)

    def batch_finished(self, batch: Batch, summary: str) -> None:
        """Let those go on, or end them, that came after a batch."""
        for name in self._after.pop(batch.name, ()):
            if not self._completed(batch.name):
                self._end(name, batch.name)
        if self._lifecycle.lift(_until(batch.name)):
            main_loop.wake()

    def _look(self, batch: Batch) -> None:
        for earlier in batch.after_batches:
            if self._store.read(lookups.problems, earlier):
                self._end(batch.name, earlier)  # a refused file: nothing of it ever completes
            elif self._batches.get(earlier) is not None or self._store.read(
                lookups.unfinished, earlier
            ):
                self._after.setdefault(earlier, []).append(batch.name)
                for ref in self._lifecycle.of(batch.name):
                    self._lifecycle.take(inputs.Held(ref, _until(earlier)))
            elif not self._completed(earlier):
                self._end(batch.name, earlier)

    def _completed(self, name: str) -> bool:
        """Whether every task of a batch that has ended did: a refused file has none."""
        tasks = self._store.read(lookups.tasks, name).values()
        return bool(tasks) and all(task.status is TaskStatus.COMPLETED for task in tasks)

    def _end(self, name: str, earlier: str) -> None:
        """End what is left of a batch, as tasks end that come after one that failed."""
        message = f"batch {earlier}, which it comes after, has not completed"
        refs = self._lifecycle.of(name)
        ends = (End(ref, TaskStatus.CANCELLED, Reason.DEPENDENCY, message) for ref in refs)
        main_loop.spawn(self._publisher.give_up(ends))


def _until(batch: str) -> HoldKey:
    """Return what keeps the tasks of batches that come after another."""
    return HoldKey(Scope.BATCH, batch, Cause.DEPENDENCY)
