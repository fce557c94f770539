"""The store, read by threads: nothing here waits for the disk on the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from batchd.errors import StoreError, UnknownNameError
from batchd.store.reader import StoreReader
from batchd.web.excerpts import Excerpts

T = TypeVar("T")
#: Questions that are answered at once; the others wait.
_THREADS = 4


class StoreQueries:
    """Answers questions to the store, also after another file was put in its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.excerpts = Excerpts()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        #: Readers that are not in use, each with which file it reads.
        self._idle: list[tuple[StoreReader, tuple[int, int]]] = []

    async def ask(self, question: Callable[[StoreReader], T]) -> T:
        """Return what a question to the store returns. Raises ``StoreError``."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._answer, question
        )

    def close(self) -> None:
        """Answer no more."""
        self._threads.shutdown(cancel_futures=True)
        while self._idle:
            self._idle.pop()[0].close()

    def _answer(self, question: Callable[[StoreReader], T]) -> T:
        reader, file = self._take()
        try:
            answer = question(reader)
        except UnknownNameError:
            self._idle.append((reader, file))
            raise
        except BaseException:
            reader.close()
            raise
        self._idle.append((reader, file))
        return answer

    def _take(self) -> tuple[StoreReader, tuple[int, int]]:
        now = identity(self.path)
        while self._idle:
            reader, file = self._idle.pop()
            if file == now:
                return reader, file
            reader.close()
        if now is None:
            raise StoreError(f"{self.path} does not exist; no batchd has worked here yet")
        return StoreReader(self.path), now


def identity(path: Path) -> tuple[int, int] | None:
    """Return which file a path leads to; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
