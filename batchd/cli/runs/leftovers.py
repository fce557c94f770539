"""What earlier runs of a file have left half-finished:
found by the tickets of ``run``, and held while somebody goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchd import config
from batchd.cli.display import formatting
from batchd.errors import NotPossibleError, StoreError
from batchd.records import Batch, Cause, Parking, Reason
from batchd.spool import claims, outbox, run_locks
from batchd.store.reader import StoreReader
from batchd.store.rows import BatchRow

#: For so long the next ``run`` of a file shows how it ended
#: while no ``run`` of it was there, and begins nothing.
_NEWS_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a ``run`` of the same file has left half-finished."""

    claim: str
    #: None: it is not stored yet.
    batch: Batch | None


@dataclass(slots=True, eq=False, repr=False)
class Leftovers:
    """The leftovers of one spool; each that is found, or begun, belongs to this process while it
    lives.
    """

    _state: Path
    _inbox: Path
    #: Descriptors of tickets, which are closed with this process.
    _locks: list[int] = field(default_factory=list)

    def issue(self, claim: str) -> None:
        """Make the ticket of a file that is handed over next."""
        self._locks.append(run_locks.issue(self._state, claim))

    def forget(self, batches: Iterable[Batch]) -> None:
        """Remove the tickets of batches that have ended."""
        for batch in batches:
            run_locks.forget(self._state, batch.claim)

    def release(self) -> None:
        """Leave them to others."""
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks.clear()

    def find(self, name: str, data: bytes, waited_for: Collection[str]) -> Leftover | None:
        """Return what a ``run`` of the same file has left half-finished, and take its ticket;
        None: nothing, those apart that others wait for.

        Raises ``NotPossibleError`` for what people have paused.
        """
        issued = run_locks.issued(self._state)
        if not issued:
            return None
        lying = {c.ulid: c for c in claims.lying(self._inbox, self._state)[0]}
        with StoreReader(formatting.store_path(self._state)) as reader:
            stored = _stored(reader, issued)
            for claim in sorted(issued):
                row, file = stored.get(claim), lying.get(claim)
                if row is None and file is None:
                    self._clear(claim)  # it was never taken up
                    continue
                if row is not None and (
                    row.published_at is not None or row.batch.name in waited_for
                ):
                    continue
                if not _same(row, file, name, data) or not self._taken(claim):
                    continue
                if row is not None:
                    _refuse_paused(reader.parked(), row.batch.name)
                return Leftover(claim, row.batch if row else None)
        return None

    def ended(self, name: str, data: bytes, outbox: str) -> Batch | None:
        """Return the batch of the same file that has ended in the same outbox
        while no ``run`` of it was there, and take its ticket.

        What ended long ago, or was ended by somebody, is none: its ticket goes.
        """
        issued = run_locks.issued(self._state)
        if not issued:
            return None
        with StoreReader(formatting.store_path(self._state)) as reader:
            for claim, row in sorted(_stored(reader, issued).items(), reverse=True):
                if row.published_at is None:
                    if _same(row, None, name, data):
                        return None  # one that is half-finished goes before
                elif time.time() - row.published_at > _NEWS_S or _was_ended(reader, row.batch.name):
                    self._clear(claim)
                elif row.batch.outbox == outbox and _same(row, None, name, data):
                    return row.batch if self._taken(claim) else None
        return None

    def _taken(self, claim: str) -> bool:
        """Lock a ticket for the life of this process; return whether no one else has."""
        descriptor = run_locks.take(self._state, claim)
        if descriptor is None:
            return False
        self._locks.append(descriptor)
        return True

    def _clear(self, claim: str) -> None:
        """Remove the ticket of what has ended without its ``run``, or was never taken up."""
        if (descriptor := run_locks.take(self._state, claim)) is not None:
            run_locks.forget(self._state, claim)
            os.close(descriptor)


def over(settings: config.Config, files: Sequence[tuple[str, bytes]]) -> list[Batch]:
    """Return the batches of some files where each has ended
    while no ``run`` of it was there, and say so.

    No daemon need start for that. Of a store that is not there,
    or is older, the daemon that comes knows more: nothing.
    """
    leftovers = Leftovers(Path(settings.paths.state), Path(settings.paths.inbox))
    found: list[Batch] = []
    with contextlib.suppress(StoreError):
        for name, data in files:
            batch = leftovers.ended(name, data, settings.paths.outbox)
            if batch is None:
                break
            found.append(batch)
    if len(found) < len(files):
        leftovers.release()
        return []
    for name, _ in files:
        say_ended(name)
    leftovers.forget(found)
    return found


def say_ended(name: str) -> None:
    """Say that what was left of a file has ended, and that nothing of it is begun."""
    said = "what an earlier run of it left has ended since; nothing new starts."
    print(f"{name}: {said}\nTo begin again, run it once more.", file=sys.stderr)


def _stored(reader: StoreReader, issued: Collection[str]) -> dict[str, BatchRow]:
    """Return the batches that have a ticket, by their claims."""
    return {row.batch.claim: row for row in reader.batches() if row.batch.claim in issued}


def _was_ended(reader: StoreReader, batch: str) -> bool:
    """Return whether somebody has ended a batch, or a part of it:
    a ``run`` of the file begins another.
    """
    return any(task.reason == Reason.USER for task in reader.tasks(batch))


def _same(row: BatchRow | None, file: claims.Claim | None, name: str, data: bytes) -> bool:
    """Return whether a batch, or a file that is not stored yet,
    is of a file of this name and content.
    """
    if row is None:
        return file is not None and file.name == name and _holds(file.path, data)
    base = re.escape(outbox.batch_name(name))
    path = file.path if file else Path(row.batch.folder, row.batch.request)
    return re.fullmatch(rf"{base}(-\d+)?", row.batch.name) is not None and _holds(path, data)


def _holds(file: Path, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return file.stat().st_size == len(data) and file.read_bytes() == data
    return False


def _refuse_paused(parked: Sequence[Parking], batch: str) -> None:
    """Refuse to wait for a batch that people have paused, or a task of it.

    Raises ``NotPossibleError``.
    """
    for parking in parked:
        own = parking.name.partition("/")[0] == batch and not parking.scope.asked
        if own and parking.cause is Cause.PAUSED:
            raise NotPossibleError(
                f"{parking.name} is paused ({parking.message}): batchd resume {parking.name}"
            )
