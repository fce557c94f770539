"""A worker elsewhere: a stream to it, and a lease that may outlast that."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from functools import partial

from batchd import __version__, wire
from batchd.errors import cut
from batchd.pauses import aside
from batchd.pool import code, shared_folders
from batchd.pool.channel import Channel
from batchd.pool.elsewhere import MAGIC
from batchd.records import SandboxPolicy, tasks

#: What a machine may say before the worker does: bytes, and seconds.
_GREETING, _GREETING_S = 64 << 10, 30.0
#: What a node that was frozen may take to notice that its lease is over, in seconds.
MARGIN_S = 5.0
#: How far the clock of a machine may be off, in seconds.
_OFF_S = 60.0
CLOCK_FIX = "have it set, as by NTP"


class RemoteWorker(abc.ABC):
    """One worker elsewhere.

    Its process cannot be seen: it is over when its parent there says so, or else with its lease.
    """

    def __init__(
        self, node: str, folders: Sequence[str], policy: SandboxPolicy, lease_s: float
    ) -> None:
        """``node``: what it is called until it has said where it is.

        ``folders``: what it shares with this machine. ``lease_s``: how long it may go on after each
        heartbeat.
        """
        self.node = node
        self.pid = 0
        self.lease_s = lease_s
        self.heard_at = asyncio.get_running_loop().time()
        #: Whether its parent has seen it die by itself.
        self.died = False
        #: What was put into each folder, by what proves it.
        self.words: dict[wire.FolderProof, str] = {}
        #: What distinguishes digests of keys.
        self.salt = os.urandom(16).hex()
        #: What helps where no task can run there.
        self.fix = ""
        self.folders = folders
        self.policy = policy
        self._killed = False
        self._channel: Channel | None = None
        self._silent = asyncio.Event()
        #: Set when it is known that nothing of it runs there any more.
        self._gone = asyncio.Event()

    # What differs by the way to it

    @property
    def machine(self) -> str:
        """The machine of ``[pool] machines`` that it is one of; empty: of none."""
        return ""

    @abc.abstractmethod
    async def connect(self) -> socket.socket:
        """Reach it; return a stream to it. Raises ``OSError``."""

    @abc.abstractmethod
    def disconnect(self) -> None:
        """Give up the way to it."""

    @abc.abstractmethod
    async def parted(self) -> str:
        """Return how the way to it ended, which it has."""

    @abc.abstractmethod
    def fails(self, why: str, fix: str) -> None:
        """Note why no task can run there, and what helps; without that it is tried again."""

    @abc.abstractmethod
    def refused(self, provider: str) -> None:
        """Note that a provider refuses the key that is there, and is not the daemon's."""

    # Its life

    @property
    def label(self) -> str:
        """Its machine, its process there, and its fence."""
        return tasks.elsewhere(self.node, self.pid, self.lease_s + MARGIN_S)

    @property
    def over(self) -> bool:
        """Whether nothing of it is heard any more."""
        return self._silent.is_set()

    async def start(self, channel: Channel) -> None:
        """Reach it, and wait until it answers.

        Raises ``OSError`` where it does not.
        """
        self.words = await aside(partial(shared_folders.ask, self.folders, self.policy), "machine")
        stream = None
        try:
            self._insist()
            stream = await self.connect()
            stream.setblocking(False)
            await _greeted(stream)
            self._insist()
        except OSError as error:
            if stream is not None:
                stream.close()
            self.silent()
            how = await self.ended()
            raise ConnectionError(f"{error}; {how}" if how else str(error)) from None
        self._channel = channel
        await channel.attach(stream)

    def _insist(self) -> None:
        if self._killed:
            raise ConnectionError("it was to end before it had started")

    def kill(self) -> None:
        """Part with it at once: there it ends for that, and here nothing of it counts any more."""
        self._killed = True
        if self._channel is not None:
            self._channel.abort()
        self.disconnect()

    def heard(self) -> None:
        """Take that it is alive, and that its lease is renewed."""
        self.heard_at = asyncio.get_running_loop().time()

    def silent(self) -> None:
        """Take that the channel is closed."""
        self._silent.set()

    async def ended(self) -> str:
        """Return how it ended, once nothing of it is heard any more."""
        await self._silent.wait()
        await aside(partial(shared_folders.forget, self.words), "machine")
        return await self.parted()

    def gone(self, *, died: bool) -> None:
        """Take its parent's word that it has ended: its lease protects nothing any more."""
        self.died = died
        self._gone.set()
        if self._channel is not None:  # whatever carried the bytes may still be there
            self._channel.abort()

    @property
    def fence_left_s(self) -> float:
        """For how long what it works on may still change, in seconds."""
        left_s = self.heard_at + self.lease_s + MARGIN_S - asyncio.get_running_loop().time()
        return 0.0 if self._gone.is_set() else max(0.0, left_s)

    async def unfenced(self) -> None:
        """Return when what it worked on cannot change any more."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), self.fence_left_s)

    def leave(self) -> None:
        """Leave it behind: its own lease ends it."""
        self.disconnect()

    async def problem(self, hello: wire.Hello) -> tuple[str, str]:
        """Return why no task can run there, and what helps; empty: one can.

        Raises ``OSError``, ``SandboxUnavailableError``.
        """
        facts = hello.machine
        if facts is None or (hello.code, facts.python) != (code.content(), code.python()):
            python = f" on Python {facts.python}" if facts else ""
            ours = f"the daemon's {__version__} ({code.content()[:8]}) on Python {code.python()}"
            theirs = f"its batchd {hello.version} ({hello.code[:8]}){python}"
            why = f"{theirs} is of other files than {ours}"
            return why, "install the daemon's there"
        self.pid, self.node = hello.pid, self.called(facts.host.replace("/", "_"))
        if hello.problem:
            return cut(hello.problem), "give it what docs/cluster.md says that a machine needs"
        if why := clock_problem(facts.at):
            return why, CLOCK_FIX
        for proof, word in self.words.items():
            look = partial(shared_folders.problem, proof, word, self.policy)
            if why := await aside(look, "machine"):
                return why, "mount it there at the same path, with the same users"
        await aside(partial(shared_folders.forget, self.words), "machine")
        return "", ""

    def called(self, host: str) -> str:
        """Return what its node is called, by what that calls itself."""
        return host or self.node


def clock_problem(at: float) -> str:
    """Return that a machine's clock is off, by what it says that it is; empty: it is not."""
    off_s = at - time.time()
    return f"its clock is off by {off_s:+.0f} s" if abs(off_s) > _OFF_S else ""


async def _greeted(stream: socket.socket) -> None:
    """Read a machine's greeting, up to the worker's first line. Raises ``OSError``."""
    loop, said = asyncio.get_running_loop(), bytearray()
    try:
        async with asyncio.timeout(_GREETING_S):
            while not said.endswith(MAGIC):
                if not (data := await loop.sock_recv(stream, _GREETING)):
                    raise ConnectionError("it ended before a worker answered")
                said += data
                if len(said) > _GREETING + len(MAGIC):
                    raise ConnectionError(
                        f"it says {len(said):,} bytes, and no worker is among them"
                    )
    except TimeoutError:
        raise ConnectionError(f"no worker answers within {_GREETING_S:.0f} s") from None
