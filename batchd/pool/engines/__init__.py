"""Engines: each starts workers somewhere, sees them end, and ends them; nothing else.

What workers work on, and what they say, the supervisor alone knows: an engine carries none of it.
"""

from __future__ import annotations

from typing import Protocol

from batchd.pool.channel import Channel


class WorkerLife(Protocol):
    """One worker's process, wherever it runs, from its start to its end."""

    @property
    def pid(self) -> int:
        """Its process id there; 0: it has not started."""

    @property
    def node(self) -> str:
        """The machine it runs on; empty: this one."""

    @property
    def heard_at(self) -> float:
        """When it was last heard of, by the loop's clock."""

    @property
    def label(self) -> str:
        """What the store says of who has a task:
        ``PID``, or ``NODE/PID/SECONDS`` with how long its fence lasts.
        """

    @property
    def lease_s(self) -> float:
        """How long it may go on after its last heartbeat, in seconds; 0: it has no lease."""

    @property
    def fence_left_s(self) -> float:
        """For how long what it works on may still change, whatever is seen of it here, in seconds;
        not above 0: it cannot.
        """

    @property
    def over(self) -> bool:
        """Whether it has ended, though what it sent last may be yet to be read."""

    async def start(self, channel: Channel) -> None:
        """Start it, and attach the daemon's end of its channel.

        Raises ``OSError`` or ``EOFError`` where it cannot be started.
        """

    def kill(self) -> None:
        """End it at once, unless it is over; also before it has started."""

    def heard(self) -> None:
        """Take that it is alive."""

    def silent(self) -> None:
        """Take that the channel is closed: all that it sent is read."""

    async def ended(self) -> str:
        """Return how it ended, once it can do nothing more and all that it sent is read;
        empty: that is not known.
        """

    def leave(self) -> None:
        """Leave it behind, killed but not ended: the end of this process does not wait for it."""


class Engine(Protocol):
    """Where workers are started."""

    def prepare(self) -> None:
        """Be ready to start some."""

    def life(self) -> WorkerLife:
        """Return a worker's life that is yet to start."""

    def renew(self) -> None:
        """End what starts workers: starts that hang fail, and the next one begins afresh."""
