"""Workers elsewhere: a stream to each, and a lease that may outlast that.

Those of ``[pool] machines`` are each a command of the user's, run here, over whose standard input
and output it speaks.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath

from batchd import __version__, log, wire
from batchd.actions import Action
from batchd.config.sections import MachineSection
from batchd.errors import NotPossibleError, cut
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
#: Of the variables of this process, what a command of the user's gets.
_VARIABLES = re.compile(
    "PATH|HOME|USER|LOGNAME|LANG|LC_.*|TZ|TMPDIR|XDG_RUNTIME_DIR"
    "|SSH_AUTH_SOCK|KRB5CCNAME|KUBECONFIG|SLURM_CONF"
)
#: The first options of any ssh: nothing is forwarded, nobody is asked, no stranger is trusted.
_SSH = (
    *("-a", "-x", "-T", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"),
    *("-o", "ControlMaster=no", "-o", "StrictHostKeyChecking=yes"),
)
#: What a command that is to end gets, in seconds, and how much of its last words is kept.
_END_S, _READ, _CHARACTERS = 5.0, 1 << 16, 2000
#: So many workers of one machine start at a time.
_STARTS = 2


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


@dataclass(slots=True, eq=False)
class Machine:
    """A machine that workers are kept on."""

    section: MachineSection
    #: What it shares with this one.
    folders: Sequence[str]
    policy: SandboxPolicy
    lease_s: float
    #: Why no task can run there, with the fix, and since when; None: some can.
    trouble: tuple[NotPossibleError, float] | None = None
    #: Whether the configuration has it no more.
    over: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set where the next start is not to wait any more.
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_STARTS))

    def life(self) -> MachineWorker:
        """Return a worker's life that is yet to start."""
        return MachineWorker(self)

    def end(self) -> None:
        """Start no more workers there."""
        self.over.set()
        self.hurry.set()

    def fails(self, why: str, fix: str) -> None:
        """Note why a worker did not come up."""
        since = self.trouble[1] if self.trouble else time.time()
        said = log.escape(log.masked(f"{self.section.called}: {why}: {fix}"))
        if self.trouble is None or str(self.trouble[0]) != said:
            log.get_logger().error(Action.NODE_TROUBLE, node=self.section.called, message=said)
        self.trouble = NotPossibleError(said), since


class MachineWorker(RemoteWorker):
    """One worker of a machine, and the command that reaches it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.section.called, machine.folders, machine.policy, machine.lease_s)
        self._machine = machine
        self._process: asyncio.subprocess.Process | None = None
        self._last = b""
        self._hears: asyncio.Task[None] | None = None

    @property
    def machine(self) -> str:
        """The machine that it is one of."""
        return self._machine.section.called

    async def connect(self) -> socket.socket:
        """Run the command; return a stream to it. Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        command = _guarded(self._machine.section.command)
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=asyncio.subprocess.PIPE,
                env={name: text for name, text in os.environ.items() if _VARIABLES.fullmatch(name)},
                cwd="/",
                start_new_session=True,
            )
            undo.pop_all()
        self._hears = asyncio.create_task(self._hear(self._process))
        return ours

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last words of the command."""
        assert process.stderr is not None, "a pipe was asked for"
        while data := await process.stderr.read(_READ):
            self._last = (self._last + data)[-_CHARACTERS:]

    def disconnect(self) -> None:
        """End the command at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def parted(self) -> str:
        """Return how the command ended, and its last words."""
        process = self._process
        if process is None:
            return ""
        # What it has left running may hold its pipes: nobody waits for that.
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_S)
            self.disconnect()
        if self._hears is not None:
            await asyncio.wait({self._hears}, timeout=1.0)
            self._hears.cancel()
        said = self._last.decode(errors="replace").strip()
        how = f"`{' '.join(self._machine.section.shown)}` ended with {process.returncode}"
        return f"{how}: {said}" if said else how

    def fails(self, why: str, fix: str) -> None:
        """Note why no task can run there, and what helps; without that it is tried again."""
        if not self._machine.over.is_set():
            self._machine.fails(why, fix or "batchd tries again by itself")

    def refused(self, provider: str) -> None:
        """Note that a provider refuses the key that is there, and is not the daemon's."""
        fix = f"put the daemon's key there, where [providers.{provider}] has it from"
        self._machine.fails(f"{provider} refuses its key, so it gets no task of that", fix)


def _guarded(command: Sequence[str]) -> list[str]:
    """Return a command as it is run."""
    program, *rest = command
    return [program, *(_SSH if PurePath(program).name == "ssh" else ()), *rest]
