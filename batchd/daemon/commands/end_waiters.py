"""Waiting for the ends of tasks: an order is acknowledged once what it brought about is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from batchd.daemon.listeners import Listener
from batchd.events import Event, TaskFinished
from batchd.records import Ref, TaskStatus


@dataclass(slots=True, eq=False)
class EndWait:
    """A wait for some tasks that are to end."""

    left: set[Ref]
    #: Those of them whose end is durable, and how they ended.
    ended: dict[Ref, TaskStatus] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class EndWaiters(Listener):
    """Requests that wait for tasks to end."""

    def __init__(self) -> None:
        self._durable: list[EndWait] = []

    def task_event(self, ref: Ref, event: Event) -> None:
        """Note a durable end."""
        if isinstance(event, TaskFinished):
            _note(self._durable, ref, event.status)

    def of(self, refs: Iterable[Ref]) -> EndWait:
        """Begin to wait for ends of tasks, before they are asked to end, until they are durable."""
        wait = EndWait(set(refs))
        if wait.left:
            self._durable.append(wait)
        else:
            wait.over.set()
        return wait

    def forget(self, wait: EndWait) -> None:
        """Wait no longer."""
        if wait in self._durable:
            self._durable.remove(wait)


def _note(waits: list[EndWait], ref: Ref, status: TaskStatus) -> None:
    for wait in [w for w in waits if ref in w.left]:
        wait.left.remove(ref)
        wait.ended[ref] = status
        if not wait.left:
            waits.remove(wait)
            wait.over.set()
