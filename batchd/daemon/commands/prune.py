"""``prune``: finished batches give their journals back, and their folders if asked to."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from batchd.control import Prune, Pruned
from batchd.control.requester import Requester
from batchd.daemon.attempts.bases import Bases
from batchd.daemon.outboxes import Outboxes
from batchd.daemon.writes import DaemonStore
from batchd.errors import UsageError
from batchd.free_room import STATE
from batchd.spool import removal
from batchd.store import lookups, operations

_DAY_S = 86400.0
_MOST_DAYS = 1e6
#: It makes no file, and deletes some: mirrors lie on that disk, too.
_ROOM = replace(STATE, files=0)


@dataclass(slots=True, eq=False, repr=False)
class PruneHandler:
    """The handler of ``Prune``: drops what published batches have left."""

    _store: DaemonStore
    _outboxes: Outboxes
    _bases: Bases

    async def prune(self, request: Prune, by: Requester) -> Pruned:
        """Drop what batches have left that were published ``older_than_days`` ago, or earlier.

        ``outbox``: their folders too. Names, results' statuses, tokens and money stay.
        """
        days = request.older_than_days
        if not 0 <= days <= _MOST_DAYS:
            raise UsageError("older_than_days is a number of days, from 0 on")
        before = time.time() - days * _DAY_S
        found = self._store.read(lookups.prunable, before)
        removed, freed, problems = 0, 0, []
        for each in found if request.outbox else ():
            folder = removal.PublishedFolder(each.batch.outbox, each.batch.name)
            size = await self._outboxes.at(folder.size, each.batch.outbox)
            if size is None:
                continue
            if problem := await self._outboxes.at(folder.remove, each.batch.outbox):
                problems.append(problem)
            else:
                removed, freed = removed + 1, freed + size
        # The journals last: an order that is cut short can be given again.
        # The folders may have made room for it.
        await self._store.ready(_ROOM)
        by.insist()
        while await self._store.order(operations.prune, before):
            pass
        mirrors, mirror_bytes = await self._bases.prune()
        return Pruned(
            pruned=sum(each.stored for each in found),
            bytes=sum(each.bytes for each in found),
            folders=removed,
            folder_bytes=freed,
            mirrors=mirrors,
            mirror_bytes=mirror_bytes,
            problems=tuple(problems),
        )
