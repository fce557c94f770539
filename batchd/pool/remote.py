"""Workers elsewhere: a stream to each, and a lease that may outlast that.

Those of ``[pool] machines`` are each a command of the user's, run here, over whose standard input
and output it speaks.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import dataclasses
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any, NamedTuple, TypeAlias

from msgspec.structs import replace

from batchd import log, wire
from batchd.config.sections import MachineSection
from batchd.errors import NotPossibleError, cut
from batchd.log import Action
from batchd.pauses import aside
from batchd.pool import code, shared_folders
from batchd.pool.elsewhere import MAGIC
from batchd.pool.here import digest
from batchd.pool.pool_worker import PoolWorker
from batchd.records import Place, SandboxPolicy, tasks
from batchd.version import __version__

#: What a machine may say before the worker does: bytes, and seconds.
_GREETING, _GREETING_S = 64 << 10, 30.0
#: What a node that was frozen may take to notice that its lease is over, in seconds.
MARGIN_S = 5.0
#: How far the clock of a machine may be off, in seconds.
_OFF_S = 60.0
CLOCK_FIX = "have it set, as by NTP"
#: Heartbeats within a lease: some may be late.
_BEATS = 4
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

#: What is wrong, with the fix, and since when.
Trouble: TypeAlias = tuple[NotPossibleError, float]


class RemoteTerms(NamedTuple):
    """What workers elsewhere and this machine have in common."""

    #: What they share.
    folders: Sequence[str]
    policy: SandboxPolicy
    #: How long one may go on after each heartbeat, in seconds.
    lease_s: float


class RemoteWorker(PoolWorker):
    """One worker elsewhere.

    Its process cannot be seen: it is over when its parent there says so, or else with its lease.
    """

    remote = True

    def __init__(
        self,
        received: Callable[[PoolWorker, Any], None],
        node: str,
        terms: RemoteTerms,
    ) -> None:
        """``node``: what it is called until it has said where it is."""
        super().__init__(received)
        self.node = node
        self.terms = terms
        self.lease_s = terms.lease_s
        #: Whether its parent has seen it die by itself.
        self.died = False
        #: What was put into each folder, by what proves it.
        self.words: dict[wire.FolderProof, str] = {}
        #: What distinguishes digests of keys.
        self.salt = os.urandom(16).hex()
        #: What helps where no task can run there.
        self.fix = ""
        #: The providers whose keys it does not have, and those of which it has another one than the
        #: daemon.
        self.lacks: frozenset[str] = frozenset()
        self.unlike: frozenset[str] = frozenset()
        #: What stands for the keys that it has, and for those that were refused, by provider.
        self._keys: Mapping[str, str] = {}
        self._refused: dict[str, str] = {}
        self._killed = False
        #: Set when it is known that nothing of it runs there any more.
        self._gone = asyncio.Event()

    # What differs by the way to it

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

    async def _begin(self) -> None:
        """Reach it, and wait until it answers.

        Raises ``OSError`` where it does not.
        """
        self.words = await aside(
            partial(shared_folders.ask, self.terms.folders, self.terms.policy), "machine"
        )
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
            self._silent.set()
            how = await self._end()
            raise ConnectionError(f"{error}; {how}" if how else str(error)) from None
        await self.channel.attach(stream)

    def _insist(self) -> None:
        if self._killed:
            raise ConnectionError("it was to end before it had started")

    def _strike(self) -> None:
        """Part with it at once: there it ends for that, and here nothing of it counts any more."""
        self._killed = True
        self.channel.abort()
        self.disconnect()

    async def _end(self) -> str:
        """Return how it ended, once nothing of it is heard any more."""
        await self._silent.wait()
        await aside(partial(shared_folders.forget, self.words), "machine")
        return await self.parted()

    def over_there(self, *, died: bool) -> None:
        """Take its parent's word that it has ended: its lease protects nothing any more."""
        self.died = died
        self._gone.set()
        self.channel.abort()  # whatever carried the bytes may still be there

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
            look = partial(shared_folders.problem, proof, word, self.terms.policy)
            if why := await aside(look, "machine"):
                return why, "mount it there at the same path, with the same users"
        await aside(partial(shared_folders.forget, self.words), "machine")
        return "", ""

    def called(self, host: str) -> str:
        """Return what its node is called, by what that calls itself."""
        return host or self.node

    # What it gets, and for whom it has keys

    def suits(self, place: Place) -> bool:
        """Whether a task that asks for this may be given to it."""
        there = not place.machine or place.machine == self.machine
        return there and self.lacks.isdisjoint(place.providers)

    def settings(self, settings: wire.WorkerSettings) -> wire.WorkerSettings:
        """Return what it gets of the settings: a lease, and no key."""
        known = {name: e for name, e in settings.endpoints.items() if name in settings.keys}
        keyless = {name: dataclasses.replace(e, api_key="") for name, e in known.items()}
        # Its lease stays what it was, however the time that others may be silent is changed.
        beat_s = min(settings.heartbeat_s, self.lease_s / _BEATS)
        return replace(settings, endpoints=keyless, lease_s=self.lease_s, heartbeat_s=beat_s)

    def has_keys(self, keys: Mapping[str, str], settings: wire.WorkerSettings, judge: str) -> None:
        """Take which providers' keys are on its machine, as ``MachineFacts`` has them; ``judge``:
        the provider that tasks of any model ask to be judged by, empty: there is none.
        """
        ours = {name: digest(self.salt, e.api_key) for name, e in settings.endpoints.items()}
        self.unlike = frozenset(name for name in keys if keys[name] != ours.get(name))
        self._keys = keys
        refused = {name for name in keys if self._refused.get(name) == keys[name]}
        self.lacks = frozenset((ours.keys() - keys.keys()) | refused)
        if judge in self.lacks:
            self.lacks = frozenset(ours)

    def bar(self, provider: str, own: str) -> bool:
        """Give it no more tasks of a provider that refused its key, unless that is the daemon's."""
        if provider not in self.unlike | self.lacks:
            return False
        if provider in self._keys:
            self._refused[provider] = self._keys[provider]
            self.refused(provider)
        self.lacks |= {provider, own}
        return True

    @property
    def keys_fit(self) -> bool:
        """Whether none of the keys that it has was refused."""
        return not any(self._refused.get(name) == key for name, key in self._keys.items())


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


def troubled(before: Trouble | None, said: str, action: Action, **fields: str) -> Trouble:
    """Return what is wrong by now, and since when; it is logged where it was not known."""
    said = log.escape(log.masked(said))
    if before is None or str(before[0]) != said:
        log.get_logger().error(action, **fields, message=said)
    return NotPossibleError(said), before[1] if before else time.time()


@dataclass(slots=True, eq=False)
class Machine:
    """A machine that workers are kept on."""

    section: MachineSection
    #: Those of workers that start there from now on.
    terms: RemoteTerms
    #: Why no task can run there, with the fix, and since when; None: some can.
    trouble: Trouble | None = None
    #: Whether the configuration has it no more.
    over: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set where the next start is not to wait any more.
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_STARTS))

    def worker(self, received: Callable[[PoolWorker, Any], None]) -> MachineWorker:
        """Return a worker that is yet to start; ``received`` takes what it says."""
        return MachineWorker(received, self)

    def end(self) -> None:
        """Start no more workers there."""
        self.over.set()
        self.hurry.set()

    def fails(self, why: str, fix: str) -> None:
        """Note why a worker did not come up."""
        name = self.section.called
        said = f"{name}: {why}: {fix}"
        self.trouble = troubled(self.trouble, said, Action.NODE_TROUBLE, node=name)


class MachineWorker(RemoteWorker):
    """One worker of a machine, and the command that reaches it."""

    def __init__(self, received: Callable[[PoolWorker, Any], None], machine: Machine) -> None:
        super().__init__(received, machine.section.called, machine.terms)
        self.machine = machine.section.called
        self._machine = machine
        self._process: asyncio.subprocess.Process | None = None
        self._last = b""
        self._hears: asyncio.Task[None] | None = None

    async def connect(self) -> socket.socket:
        """Run the command; return a stream to it. Raises ``OSError``."""
        ours, theirs = socket.socketpair()
        program, *rest = self._machine.section.command
        safe = _SSH if PurePath(program).name == "ssh" else ()
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            self._process = await asyncio.create_subprocess_exec(
                program,
                *safe,
                *rest,
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
