"""One look at the spool a second, for all who watch, and none while nothing watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import BatchdError
from batchd.observe.snapshot import Observer, Snapshot
from batchd.web.store_queries import identity

#: The time between two looks (seconds).
_EVERY_S = 1.0
#: A look that takes long is taken less often, though not less than every so many seconds.
_REST_FACTOR = 10.0
_SELDOM_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSight:
    """What a look has shown."""

    #: None where the store cannot be read.
    snapshot: Snapshot | None
    #: Why not.
    trouble: str = ""


class StoreWatch:
    """Looks, and wakes who waits for it."""

    def __init__(self, state: Path) -> None:
        self._store = state / "batchd.db"
        self._observer = Observer(state)
        self._file: tuple[int, int] | None = None
        self._watching = 0
        self._looking: asyncio.Task[None] | None = None
        self._sight: StoreSight | None = None
        #: Done with the next sight.
        self._next: asyncio.Future[StoreSight] | None = None

    async def sights(self) -> AsyncGenerator[StoreSight, None]:
        """Yield what is seen, look by look; who is slow misses some."""
        self._watching += 1
        try:
            if self._sight is not None:
                yield self._sight
            while True:
                yield await asyncio.shield(self._coming())
        finally:
            self._watching -= 1

    async def once(self) -> StoreSight:
        """Return what the next look shows, or the last one has,
        where there was one a moment ago.
        """
        if self._sight is not None:
            return self._sight
        return await asyncio.shield(self._coming())

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        self._observer.close()

    def _coming(self) -> asyncio.Future[StoreSight]:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return self._next

    async def _look(self) -> None:
        """Look, as long as a page is open."""
        while self._next is not None or self._watching:
            begun = time.monotonic()
            try:
                self._sight = await asyncio.to_thread(self._see)
            except BaseException:
                if self._next is not None:
                    self._next.cancel()
                self._next = self._sight = None
                raise
            took = time.monotonic() - begun
            coming, self._next = self._next, None
            if coming is not None:
                coming.set_result(self._sight)
            await asyncio.sleep(max(_EVERY_S - took, min(took * _REST_FACTOR, _SELDOM_S)))
        self._sight = None

    def _see(self) -> StoreSight:
        file = identity(self._store)
        if file != self._file:
            self._observer.close()  # a backup was put in its place
            self._file = file
        try:
            return StoreSight(snapshot=self._observer.look())
        except BatchdError as error:
            return StoreSight(snapshot=None, trouble=str(error))
