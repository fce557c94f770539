"""Names in the outbox, reserved for the store's one thread: an outbox that hangs must not hold it up."""

from __future__ import annotations

from concurrent.futures import Future, wait

from batchd.pool.disks import Disks, silent
from batchd.records import Batch, Name
from batchd.spool import outbox

#: What an outbox gets to answer; then it is tried again, once it does.
_ANSWERS_S = 5.0


class Reserving:
    """Reserves names as ``outbox.reserve`` does, each in a thread of its outbox's own."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        #: By outbox: what has not been answered in time.
        self._open: dict[str, Future[Name]] = {}

    def __call__(self, batch: Batch, name: str) -> Name:
        """Return whose the name is. Raises ``OSError``, also where there is no answer."""
        folder = batch.outbox
        late = self._open.get(folder)
        if late is not None and not late.done():
            raise silent(folder)
        doing = self._open[folder] = self._disks.at(folder).submit(outbox.reserve, batch, name)
        if not wait((doing,), timeout=_ANSWERS_S).done:
            raise silent(folder)
        return doing.result()
