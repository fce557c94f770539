"""The listener for workers of other machines: lets in who has a ticket.

Until its token is seen, a process that connects gets little:
a few connections at a time, ten seconds, four kilobytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections import Counter
from typing import Protocol, cast

import msgspec

from batchd import __version__, wire
from batchd.actions import Action
from batchd.errors import NotPossibleError
from batchd.log import get_logger
from batchd.pool import code
from batchd.pool.joining.certificate import DaemonCertificate
from batchd.pool.joining.invitations import Invitations
from batchd.pool.joining.ticket import located
from batchd.records import tasks

#: Connections that have not shown a token: in all, and from one address.
_MOST_WAITING, _MOST_FROM_ONE = 64, 8
#: What each may take, in seconds, and send, in bytes.
_JOIN_S, _MAX_JOIN_BYTES = 10.0, 4096
#: What one that is sent away gets to close its end, in seconds.
_LEAVE_S = 2.0
#: At most one line in so many seconds says who was not let in.
_QUIET_S = 10.0
_HEAD = 4
#: Characters of a machine's name.
_MOST_NAME = 255


class WorkerReceiver(Protocol):
    """The receiver of workers that showed a good token."""

    def problem(self, join: wire.Join, address: str) -> str:
        """Return why a worker with a good ticket cannot be let in; empty: it can."""

    def admit(
        self, transport: asyncio.Transport, join: wire.Join, address: str, badge: int
    ) -> None:
        """Take over the connection of a worker that is let in,
        from an IP address; ``badge``: whose its ticket was.
        """

    def ended(self, parting: str, *, died: bool) -> None:
        """Take a keeper's word that a worker has ended; ``died``: by itself."""

    def broke(self, error: BaseException) -> None:
        """Take that no worker can come any more, for a bug."""


class WorkerListener:
    """The listener for workers."""

    def __init__(
        self,
        place: tuple[str, int],
        identity: DaemonCertificate,
        invitations: Invitations,
        doorkeeper: WorkerReceiver,
    ) -> None:
        """``place``: address and port."""
        self._place = place
        self._invitations = invitations
        self._context = identity.context()
        self._doorkeeper = doorkeeper
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._waiting: Counter[str] = Counter()
        self._room = asyncio.Semaphore(_MOST_WAITING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._said_at = -math.inf
        #: Those of whom no line was written since.
        self._unsaid = 0

    def open(self) -> None:
        """Begin to listen. Raises ``NotPossibleError``."""
        host, port = self._place
        code.content()  # of what this process runs, before it can be changed
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        try:
            self._listening = socket.create_server(
                (host, port), family=family, backlog=128, dualstack_ipv6=both
            )
        except OSError as error:
            why = f"[pool] listen: {located(host, port)} cannot be used to listen: {error}"
            raise NotPossibleError(
                f"{why}; name an address of this machine and a free port"
            ) from error
        self._listening.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listening))
        self._accepting.add_done_callback(self._stopped)

    async def close(self) -> None:
        """Admit no more workers; those that are in stay."""
        tasks = [task for task in (self._accepting, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()

    def _stopped(self, accepting: asyncio.Task[None]) -> None:
        """Report the end of the gate's task: a gate that a bug closes would stay closed for
        months.
        """
        if not accepting.cancelled() and (error := accepting.exception()):
            self._doorkeeper.broke(error)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                connection, (address, *_) = await loop.sock_accept(listening)
            except OSError:  # it was gone before it was accepted, or no descriptor is left
                self._room.release()
                await asyncio.sleep(0.1)
                continue
            if self._waiting[address] >= _MOST_FROM_ONE:
                self._room.release()
                connection.close()
                continue
            self._waiting[address] += 1
            task = loop.create_task(self._serve(connection, address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, address: str) -> None:
        """Let one worker in, or not."""
        applicant = _Applicant()
        try:
            async with asyncio.timeout(_JOIN_S):
                # Where this fails, asyncio has closed the connection;
                # from here on it is the transport's.
                transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: applicant,
                    connection,
                    ssl=self._context,
                    ssl_handshake_timeout=_JOIN_S,
                    ssl_shutdown_timeout=_LEAVE_S,
                )
                asked = await applicant.asked
        except asyncio.CancelledError:
            applicant.fail(ConnectionError("the gate is closed"))
            raise
        except (OSError, ValueError) as error:
            applicant.fail(error)
            why = str(error) or f"it said nothing for {_JOIN_S:.0f} s"
            self._not_admitted(address, f"it did not speak as a worker does: {why}")
        else:
            if not self._take(transport, asked, address):
                # It counts as one that waits until it is gone:
                # who never closes must not gather connections.
                await applicant.gone(_LEAVE_S)
                transport.abort()
        finally:
            self._room.release()
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def _take(
        self, transport: asyncio.Transport, asked: wire.Join | wire.WorkerEnded, address: str
    ) -> bool:
        """Let a worker in that has a good ticket, or take a keeper's word;
        return whether the connection is a worker's now.
        """
        if isinstance(asked, wire.WorkerEnded):
            self._doorkeeper.ended(asked.parting, died=asked.died)
            transport.close()
            return False
        # Only who has a good ticket learns what this daemon is;
        # one that does not fit may come again with it.
        refusal = (
            self._invitations.problem(asked.token, address)
            or _refusal(asked)
            or self._doorkeeper.problem(asked, address)
        )
        if refusal:
            transport.write(wire.pack(wire.NotAdmitted(refusal)))
            transport.close()
            self._not_admitted(address, refusal)
        else:
            badge = self._invitations.take(asked.token)
            self._doorkeeper.admit(transport, asked, address, badge)
        return not refusal

    def _not_admitted(self, address: str, why: str) -> None:
        """Write a line, unless one was written just now:
        who has no ticket must not fill the log.
        """
        now = asyncio.get_running_loop().time()
        if now - self._said_at < _QUIET_S:
            self._unsaid += 1
            return
        more = {"more": self._unsaid} if self._unsaid else {}
        self._said_at, self._unsaid = now, 0
        get_logger().warning(Action.WORKER_NOT_ADMITTED, address=address, message=why, **more)


class _Applicant(asyncio.Protocol):
    """A connection that has yet to show a ticket: takes one small frame, and then reads no more."""

    def __init__(self) -> None:
        #: What it wants.
        self.asked: asyncio.Future[wire.Join | wire.WorkerEnded] = (
            asyncio.get_running_loop().create_future()
        )
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio calls this."""
        self._lost.set()
        self.fail(ConnectionError("it left"))

    async def gone(self, within_s: float) -> None:
        """Return when it has closed its end, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), within_s)

    def data_received(self, data: bytes) -> None:
        """Asyncio calls this."""
        self._buffer += data
        if len(self._buffer) < _HEAD:
            return
        size = _HEAD + int.from_bytes(self._buffer[:_HEAD], "big")
        if size > _MAX_JOIN_BYTES:
            self.fail(ValueError(f"a frame of {size} bytes"))
        elif len(self._buffer) > size:
            self.fail(ValueError("more than one frame"))
        elif len(self._buffer) == size:
            try:
                asked = wire.unpack(bytes(self._buffer[_HEAD:]))
            except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
                self.fail(ValueError(f"no message: {error}"))
                return
            if not isinstance(asked, wire.Join | wire.WorkerEnded):
                self.fail(ValueError("another message"))
            elif not self.asked.done():
                self.asked.set_result(asked)

    def fail(self, error: Exception) -> None:
        """Close the connection: it is no worker's."""
        if self._transport is not None:
            self._transport.abort()
        if not self.asked.done():
            self.asked.set_exception(error)
            self.asked.exception()  # whether someone waits for it or not


def _refusal(join: wire.Join) -> str:
    """Return why a worker with a good ticket is not let in; empty: it is."""
    if not join.node.isprintable() or not 0 < len(join.node) <= _MOST_NAME or "/" in join.node:
        return f"{join.node[:_MOST_NAME]!a} is not a name for a machine: choose one with --node"
    if why := next(tasks.wrong(join.gpus, join.labels), ""):
        return why
    theirs, ours = f"batchd {join.version}", f"batchd {__version__}"
    if (join.version, join.python) != (__version__, code.python()):
        theirs, ours = f"{theirs} on Python {join.python}", f"{ours} on Python {code.python()}"
    elif join.code == code.content():
        return ""
    else:
        theirs = f"{theirs} of other files"
    return f"it is {theirs}, and the daemon is {ours}: install the daemon's there"
