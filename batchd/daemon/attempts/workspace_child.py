"""The daemon's children for mirrors:
each does one job after another for a minute, and none from files of another version.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field

import msgspec

from batchd import __version__, decoders, processes
from batchd.daemon import main_loop
from batchd.errors import NotPossibleError
from batchd.pool import code
from batchd.pool.supervisor import RESTART
from batchd.workspace.fetch_job import FetchJob, FetchOutcome

_OUTCOME: msgspec.json.Decoder[FetchOutcome] = decoders.decoder(FetchOutcome)
#: How much longer than its own limit the child may take to say so, in seconds.
_GRACE_S = 30.0
#: How long a child is given jobs, in seconds: what its start takes counts for little in that time,
#: and nothing piles up in it.
_LIFE_S = 60.0
#: An outcome is a line; what git says of an error may be long (bytes).
_MAX_LINE = 1 << 26
#: What it is given of the environment: ssh's agent, authorities of https, the way out.
_VARIABLES = (
    *("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "SSH_AUTH_SOCK", "GIT_SSL_CAINFO"),
    *("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"),
)


async def fits() -> None:
    """Return where a child would be of this daemon's own files.

    Raises ``NotPossibleError`` where not, and ``OSError``.
    """
    if await asyncio.to_thread(code.exchanged):
        raise NotPossibleError(
            "the program that works on mirrors has another version than this daemon,"
            f" batchd {__version__}: {RESTART}"
        )


@dataclass(slots=True, eq=False, repr=False)
class WorkspaceChildren:
    """The children; those that have nothing to do are killed when their time is over."""

    _idle: list[_Child] = field(default_factory=list)

    async def asked(self, work: FetchJob, limit_s: float) -> FetchOutcome:
        """Return how a child did a job; one that did not to the end is killed.

        Raises ``OSError``, ``msgspec.DecodeError``.
        """
        child = self._idle.pop() if self._idle else await self._begun()
        outcome = None
        try:
            async with asyncio.timeout(limit_s + _GRACE_S):
                outcome = await child.done(work)
                return outcome or await child.death()
        except TimeoutError:
            return FetchOutcome(error="it does not end")
        finally:
            if outcome is not None and not child.old:
                self._idle.append(child)
            else:
                await child.end()

    async def _begun(self) -> _Child:
        child = _Child(
            await asyncio.create_subprocess_exec(
                *processes.module("batchd.workspace", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                process_group=0,
                limit=_MAX_LINE,
            )
        )
        main_loop.spawn(self._ages(child), endless=True)
        return child

    async def _ages(self, child: _Child) -> None:
        """End a child when its time is over, or the daemon's is, unless it has a job:
        then that does. One that dies gets none.
        """
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LIFE_S):
                    await child.ended()
        finally:
            child.old = True
            if child in self._idle:
                self._idle.remove(child)
                await child.end()


@dataclass(slots=True, eq=False, repr=False)
class _Child:
    """One child."""

    _process: asyncio.subprocess.Process
    #: Whether it gets no further job.
    old: bool = False

    async def done(self, work: FetchJob) -> FetchOutcome | None:
        """Return how it did a job; None: it has died. Raises ``msgspec.DecodeError``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(msgspec.json.encode(work) + b"\n")
            await self._process.stdin.drain()
        answer = await self._process.stdout.readline()
        return _OUTCOME.decode(answer) if answer.endswith(b"\n") else None

    async def death(self) -> FetchOutcome:
        """Return what it said last."""
        assert self._process.stderr is not None
        said = await self._process.stderr.read()
        lines = said.decode(errors="replace").strip().splitlines()
        return FetchOutcome(
            error=f"the program that works on it has died: {lines[-1] if lines else 'killed'}"
        )

    async def ended(self) -> None:
        """Return when it has ended."""
        await self._process.wait()

    async def end(self) -> None:
        """Kill it, if it has not ended, and see it gone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()
