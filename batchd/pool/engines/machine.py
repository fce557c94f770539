"""Machines of ``[pool] machines``: each worker there is a command of the user's, run here, over
whose standard input and output it speaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from batchd import log
from batchd.config.sections import MachineSection
from batchd.errors import NotPossibleError
from batchd.log import Action
from batchd.pool.engines.remote import RemoteWorker
from batchd.records import SandboxPolicy

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
