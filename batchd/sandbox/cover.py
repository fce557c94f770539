"""What is laid over the machine's files for the commands of one place: what ``[sandbox]`` hides, and sockets."""

from __future__ import annotations

from batchd.errors import SandboxError
from batchd.records import SandboxPolicy
from batchd.sandbox import shown
from batchd.sandbox.sockets import Sockets, is_socket


class Cover:
    """The cover of one place: sockets that it has found once are covered for all of its commands."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._found: tuple[str, ...] | None = None

    def fresh(self) -> Cover:
        """Return one that looks again."""
        return Cover(self._sockets)

    async def look(self) -> None:
        """Look for sockets, once. Raises ``SandboxError``."""
        if self._found is None:
            self._found = await self._sockets.found()

    def options(self) -> list[str]:
        """Return what bwrap does for a command that begins now: what has gone by now cannot be covered."""
        there = filter(is_socket, self._found or ())
        covers = [shown.covered(path) for path in there]
        more = (word for cover in covers for word in (*cover, *shown.still(cover)))
        return [*self._sockets.shown.options(), *more]


class Covers:
    """Gives each place its own; what they have found is known to all."""

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
