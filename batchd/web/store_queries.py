"""The store, read by threads: nothing here waits for the disk on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar

from batchd.errors import BatchdError, StoreError
from batchd.observe.status import Observer, Status
from batchd.records import Ref
from batchd.spool import outbox
from batchd.store import lookups
from batchd.store.queries import StoreReader
from batchd.store.rows import BatchRow

#: Characters of an excerpt.
_MAX_EXCERPT_CHARS = 140
#: Excerpts that are kept; beyond it all are read again.
_KEPT = 50_000

#: A batch by its claim, which no other has, a task of it, and whether the batch was pruned.
_Key: TypeAlias = tuple[str, str, bool]


def excerpt(prompt: str) -> str:
    """Return how a prompt begins, in a line."""
    whole = " ".join(prompt[: 4 * _MAX_EXCERPT_CHARS].split())
    return (
        whole
        if len(whole) <= _MAX_EXCERPT_CHARS
        else f"{whole[: _MAX_EXCERPT_CHARS - 2].rstrip()} …"
    )


class Excerpts:
    """Reads each prompt once. For several threads."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}

    def line(self, reader: StoreReader, batch: BatchRow, task: str = "") -> str:
        """Return how a task's prompt begins, of a batch that of its first task;
        empty: no one knows any more.

        Raises ``StoreError`` where the store cannot be read.
        """
        key = (batch.batch.claim, task, bool(batch.pruned))
        if (found := self._known.get(key)) is None:
            name = batch.batch.name
            refs = (
                [Ref(name, task)]
                if task
                else [row.ref for row in reader.tasks_where(name, limit=1)[1]]
            )
            found = excerpt(prompt(reader, refs[0], batch.batch.folder)) if refs else ""
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = found
        return found


def prompt(reader: StoreReader, ref: Ref, folder: str) -> str:
    """Return a task's prompt; of a pruned one as its result
    in the outbox has it, and empty where that is gone.
    """
    if not reader.read(lookups.pruned, ref):
        return reader.prompt(ref)
    with contextlib.suppress(OSError, ValueError):
        found = outbox.result(Path(folder), ref.task) or {}
        return str(found.get("first_prompt", ""))
    return ""


T = TypeVar("T")
#: Questions that are answered at once; the others wait.
_THREADS = 4


class StoreQueries:
    """Answers questions to the store, also after another file was put in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.excerpts = Excerpts()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    async def ask(self, question: Callable[[StoreReader], T]) -> T:
        """Return what a question to the store returns. Raises ``StoreError``."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._answer, question
        )

    def close(self) -> None:
        """Answer no more."""
        self._threads.shutdown(cancel_futures=True)

    def _answer(self, question: Callable[[StoreReader], T]) -> T:
        # To open it takes half a millisecond, and another file may be in its place by now.
        try:
            reader = StoreReader(self.path)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error
        with reader:
            return question(reader)


#: The time between two looks (seconds).
_EVERY_S = 1.0
#: A look that takes long is taken less often, though not less than every so many seconds.
_REST_FACTOR = 10.0
_SELDOM_S = 10.0


class StoreWatch:
    """Looks, and wakes who waits for it."""

    def __init__(self, state: Path) -> None:
        self._observer = Observer(state)
        self._watching = 0
        self._looking: asyncio.Task[None] | None = None
        self._sight: Status | None = None
        #: Done with the next sight.
        self._next: asyncio.Future[Status] | None = None

    async def sights(self) -> AsyncGenerator[Status, None]:
        """Yield what is seen, look by look; who is slow misses some."""
        self._watching += 1
        try:
            if self._sight is not None:
                yield self._sight
            while True:
                yield await asyncio.shield(self._coming())
        finally:
            self._watching -= 1

    async def once(self) -> Status:
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

    def _coming(self) -> asyncio.Future[Status]:
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

    def _see(self) -> Status:
        try:
            return self._observer.look()
        except BatchdError as error:
            return Status(trouble=str(error))
