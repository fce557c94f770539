"""The cover over the machine's files for the commands of one place:
what ``[sandbox]`` hides, and sockets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeAlias

from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox import shown
from batchd.sandbox.sockets import Sockets, is_socket

#: What is covered, each with what distinguishes it from all others: None, nothing is there.
Covered: TypeAlias = Mapping[str, tuple[int, int, int] | None]


class Cover:
    """The cover of one place:
    sockets that it has found once are covered for all of its commands.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._found: tuple[str, ...] | None = None

    def fresh(self) -> Cover:
        """Return one that looks again."""
        return Cover(self._sockets)

    async def look(self) -> Covered:
        """Look for sockets, unless that was done;
        return what a command that begins now has covered.

        Raises ``SandboxError``.
        """
        if self._found is None:
            self._found = await self._sockets.found()
        return self._covered()

    def gone(self, covered: Covered) -> bool:
        """Return whether something is not what it was, so that it could not be covered:
        then ``look`` looks again.
        """
        if self._covered() == covered:
            return False
        self._found = None
        self._sockets.forget()
        return True

    def _covered(self) -> Covered:
        hidden = (rule.path for rule in self._sockets.shown.rules if not rule.seen)
        return {path: _identity(path) for path in (*(self._found or ()), *hidden)}

    def options(self) -> list[str]:
        """Return what bwrap does for a command that begins now:
        what has gone by now cannot be covered.
        """
        there = filter(is_socket, self._found or ())
        covers = [shown.covered(path) for path in there]
        more = (word for cover in covers for word in (*cover, *shown.still(cover)))
        return [*self._sockets.shown.options(), *more]


def _identity(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


class Covers:
    """The covers of all places; what they have found is known to all."""

    def __init__(self, policy: SandboxPolicy) -> None:
        self._policy = policy
        #: By whether commands share the machine's network, and so see a little more.
        self._sockets: dict[bool, Sockets] = {}

    def fresh(self, *, network: bool) -> Cover:
        """Return the cover of a place. Raises ``SandboxError`` for what cannot be shown."""
        try:
            seen = shown.of(self._policy, network=network)
        except ValueError as error:
            raise SandboxError(str(error)) from None
        sockets = self._sockets.get(network)
        if sockets is None or sockets.shown != seen:  # a link of ``show`` leads elsewhere by now
            sockets = self._sockets[network] = Sockets(seen)
        return Cover(sockets)
