"""Names of batches, each the name of a folder in the outbox:
found and reserved before anything is stored.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from batchd.daemon import main_loop
from batchd.daemon.outboxes import Outboxes
from batchd.records import Batch, BatchNaming
from batchd.spool import outbox
from batchd.store import lookups
from batchd.store.store import Store

#: Names that are reserved together: their folders are made in one go.
_AT_ONCE = 256
#: A name in bytes, which are letters, digits, ``_`` and ``-``.
_MAX_NAME_BYTES = 100
#: Reservations that are remembered until their batches are stored: more than can be under way.
_REMEMBERED = 4096


@dataclass(slots=True, eq=False)
class _Wanted:
    """A batch that waits for its name."""

    batch: Batch
    #: Names that it may have, the first of them best, with the number of each.
    names: Iterator[tuple[int, str]]


@dataclass(slots=True, eq=False, repr=False)
class BatchNames:
    """Names batches: finds a name that no batch has ever had,
    nor anything in the outbox, and makes its folder.
    """

    _store: Store
    _outboxes: Outboxes
    #: By outbox: what waits while others are reserved there.
    _waiting: dict[str, list[_Wanted]] = field(default_factory=dict)
    #: By claim: its name, once it is found. It may be wanted twice at a time:
    #: an order is given again where its answer was lost.
    _named: dict[str, asyncio.Future[str]] = field(default_factory=dict)
    #: By claim: what is reserved, or asked for, for it.
    #: What comes after may fail, and be tried again.
    _reserved: dict[str, str] = field(default_factory=dict)
    #: The same by name.
    _claims: dict[str, str] = field(default_factory=dict)
    #: By stem: the number up to which all are taken for good. Without it a hundred thousand files
    #: of one name would each try all numbers.
    _taken_to: dict[str, int] = field(default_factory=dict)

    async def reserve(self, batch: Batch) -> Batch:
        """Return a batch with its name, or that with the first of ``-2``,
        ``-3``, … that is free: its folder is there now.

        Those that come together get their names in their order.
        Raises ``OSError`` where the outbox does not answer.
        """
        if batch.claim not in self._named:
            self._want(batch)
        return replace(batch, name=await asyncio.shield(self._named[batch.claim]))

    async def give_back(self, batch: Batch) -> None:
        """Give the name of a batch back that is not stored,
        and never will be; a later start looks again.

        Raises ``OSError``.
        """
        if self._store.read(lookups.claimed, batch.claim):
            return
        if name := self._forget(batch.claim):
            work = partial(outbox.give_back, batch.outbox, name, batch.claim)
            await self._outboxes.promptly(work, batch.outbox)

    def _want(self, batch: Batch) -> None:
        folder, named = batch.outbox, asyncio.get_running_loop().create_future()
        self._named[batch.claim] = named
        begins = folder not in self._waiting
        self._waiting.setdefault(folder, []).append(_Wanted(batch, self._free(batch)))
        if begins:
            main_loop.spawn(self._work(folder))

    def _free(self, batch: Batch) -> Iterator[tuple[int, str]]:
        """Yield names that a batch may have, with their numbers;
        none that is stored, or another's that is under way.
        """
        known = self._reserved.get(batch.claim)
        if known is not None and not self._store.read(lookups.used, known):
            yield 0, known
        for number in itertools.count(self._taken_to.get(batch.name, 0) + 1):
            name = _numbered(batch.name, number)
            if self._store.read(lookups.used, name):
                self._taken(batch.name, number)
            elif self._claims.get(name, batch.claim) == batch.claim:
                yield number, name

    def _taken(self, stem: str, number: int) -> None:
        """Note that a number is taken for good; a name that waits for its claim,
        of an earlier daemon perhaps, is passed by.
        """
        if number == self._taken_to.get(stem, 0) + 1:
            self._taken_to[stem] = number

    async def _work(self, folder: str) -> None:
        """Reserve what waits for an outbox, many at a time."""
        try:
            while waiting := self._waiting[folder]:
                group = waiting[:_AT_ONCE]
                del waiting[:_AT_ONCE]
                await self._name(folder, group)
        finally:
            del self._waiting[folder]

    async def _name(self, folder: str, group: Sequence[_Wanted]) -> None:
        """Name batches, in their order; or have each fail that cannot be named."""
        found: dict[str, str | OSError] = {}
        left = list(group)
        while left:
            asked = [self._ask(each) for each in left]
            try:
                answers = await self._outboxes.promptly(partial(_reserve, asked), folder)
            except OSError as error:
                answers = [error] * len(asked)
            again = []
            for each, (number, name, batch), answer in zip(left, asked, answers, strict=True):
                if answer is BatchNaming.OURS:
                    found[batch.claim] = name
                    continue
                self._forget(batch.claim)
                if isinstance(answer, OSError):
                    found[batch.claim] = answer
                    continue
                if answer is BatchNaming.TAKEN:
                    self._taken(batch.name, number)
                again.append(each)
            left = again
        for each in group:
            named, result = self._named.pop(each.batch.claim), found[each.batch.claim]
            if isinstance(result, OSError):
                named.set_exception(result)
            else:
                named.set_result(result)

    def _ask(self, wanted: _Wanted) -> tuple[int, str, Batch]:
        """Return the next name to try for a batch, which is no one else's meanwhile."""
        batch = wanted.batch
        number, name = next(wanted.names)
        self._forget(batch.claim)
        self._reserved[batch.claim], self._claims[name] = name, batch.claim
        if len(self._reserved) > _REMEMBERED:
            self._forget(next(iter(self._reserved)))
        return number, name, batch

    def _forget(self, claim: str) -> str | None:
        name = self._reserved.pop(claim, None)
        if name is not None:
            del self._claims[name]
        return name


def _reserve(asked: Sequence[tuple[int, str, Batch]]) -> list[BatchNaming | OSError]:
    """Make the folder of each, in a thread of the outbox's;
    return whose it is, or why that cannot be said.
    """
    answers: list[BatchNaming | OSError] = []
    for _, name, batch in asked:
        try:
            answers.append(outbox.reserve(batch, name))
        except OSError as error:
            answers.append(error)
    return answers


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem[: _MAX_NAME_BYTES - len(str(number)) - 1]}-{number}"
