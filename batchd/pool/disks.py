"""Threads for work on disks that may hang: each disk has its own,
and the end of the process waits for none of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Threads of one disk: what hangs in all of them would hang in more too.
_COUNT = 4


class DiskThreads(Executor):
    """The threads of one disk."""

    def __init__(self) -> None:
        """Start them. Raises ``RuntimeError`` where the system has none to give."""
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        for _ in range(_COUNT):
            # A thread of the standard library's pools would be waited for at the end:
            # for ever, on a disk that hangs.
            threading.Thread(target=self._work, name="disk", daemon=True).start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a call in a thread of the disk."""
        future: Future[T] = Future()
        self._queue.put((future, partial(fn, *args, **kwargs)))
        return future

    def close(self) -> None:
        """End them, each once it has done what it does, without waiting for that."""
        for _ in range(_COUNT):
            self._queue.put(None)

    def _work(self) -> None:
        while job := self._queue.get():
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    result = work()
                except BaseException as error:  # noqa: BLE001 (the future passes it on)
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del future, work, job


class AllDiskThreads:
    """The threads of each disk that somebody writes to, by its path."""

    def __init__(self) -> None:
        self._known: dict[str, DiskThreads] = {}

    def at(self, path: str) -> DiskThreads:
        """Return those of a disk. Raises ``OSError`` where none can be started."""
        if path not in self._known:
            try:
                self._known[path] = DiskThreads()
            except RuntimeError as error:
                raise BlockingIOError(str(error)) from error
        return self._known[path]

    def close(self) -> None:
        """End all threads, without waiting for that."""
        for disk in self._known.values():
            disk.close()
        self._known.clear()
