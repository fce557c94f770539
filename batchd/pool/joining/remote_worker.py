"""The life of a worker that joined from another machine:
its connection, and a lease that may outlast that.
"""

from __future__ import annotations

import asyncio
import contextlib

from batchd.pool.channel import Channel
from batchd.records import Has, tasks

#: What a connection gets to end by itself whose worker is known to be over, in seconds.
_LAST_S = 5.0


class RemoteWorker:
    """One worker elsewhere.

    Its process cannot be seen: it is over when its connection is, and its lease.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        node: str,
        pid: int,
        *,
        address: str,
        badge: int,
        has: Has,
        lease_s: float,
        fence_s: float,
    ) -> None:
        """``address``: the one that it came from.

        ``badge``: whose its ticket was. ``has``: what its machine has.
        ``lease_s``: how long it may go on after each heartbeat.

        ``fence_s``: how long after the last one what it works
        on may still change, where disks are shared.
        """
        self.pid = pid
        self.node = node
        self.address = address
        self.badge = badge
        self.has = has
        self.lease_s = lease_s
        #: Whether its keeper has seen it die by itself.
        self.died = False
        self._transport = transport
        self._fence_s = fence_s
        self.heard_at = asyncio.get_running_loop().time()
        self._silent = asyncio.Event()
        #: Set when it is known that nothing of it runs there any more.
        self._gone = asyncio.Event()

    @property
    def label(self) -> str:
        """Its machine, its process there, and its fence."""
        return tasks.elsewhere(self.node, self.pid, self._fence_s)

    @property
    def over(self) -> bool:
        """Whether its connection is closed."""
        return self._silent.is_set()

    async def start(self, channel: Channel) -> None:
        """Pass the worker's messages to the channel from now on."""
        self._transport.set_protocol(channel)
        channel.connection_made(self._transport)
        if self._transport.is_closing():  # it was closed before anything of it could be heard here
            channel.connection_lost(None)

    def kill(self) -> None:
        """Close the connection at once: there it ends for that,
        and here nothing of it counts any more.
        """
        self._transport.abort()

    def heard(self) -> None:
        """Take that it is alive, and that its lease is renewed."""
        self.heard_at = asyncio.get_running_loop().time()

    def silent(self) -> None:
        """Take that the connection is closed."""
        self._silent.set()

    async def ended(self) -> str:
        """Return how it ended, once its connection is closed."""
        await self._silent.wait()
        return "its connection was closed"

    def gone(self, *, died: bool) -> None:
        """Take its keeper's word that it has ended: its lease protects nothing any more."""
        self.died = died
        self._gone.set()
        # What it sent last may still be under way.
        asyncio.get_running_loop().call_later(_LAST_S, self.kill)

    @property
    def fence_left_s(self) -> float:
        """For how long what it works on may still change, in seconds."""
        left_s = self.heard_at + self._fence_s - asyncio.get_running_loop().time()
        return 0.0 if self._gone.is_set() else max(0.0, left_s)

    async def unfenced(self) -> None:
        """Return when what it worked on cannot change any more."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), self.fence_left_s)

    def leave(self) -> None:
        """Leave it behind: its own lease ends it."""
