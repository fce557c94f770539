"""Task files parsed apart from the loop, in one process that is killed with what it works on."""

from __future__ import annotations

import asyncio
import errno
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import msgspec

from batchd import decoders
from batchd.children import Child, ChildDiedError, Children
from batchd.config import Config, trust
from batchd.errors import Problem, TaskFileError
from batchd.pool import code
from batchd.silent_paths import SilentPathError
from batchd.spool.taskfile import Parsed, ParsedPart, ParseJob

#: How long a file's first turn is where others wait (seconds); each further one is twice as long.
_TURN_S = 2.0
#: How long the process is kept for the next file.
_IDLE_S = 20.0
#: How long a file may take in all while none waits:
#: it computes for ``max_parse_s`` at most, so it waits for a disk that hangs.
_HANGS_S = 600.0
#: Unexplained deaths in the middle of one file before the file is refused.
_DEATHS = 2
#: What its jobs are given of the environment: where no task may work.
_PLACES = {*trust.VARIABLES, *trust.DATA}
_PART: msgspec.json.Decoder[ParsedPart] = decoders.decoder(ParsedPart)


class Parser:
    """Parses task files, one after the other; one that takes longer than its turn goes behind all
    that wait.
    """

    def __init__(self) -> None:
        self._children = Children("batchd.spool.taskfile", keep_s=_IDLE_S, variables=("HOME",))
        self._turns = asyncio.Lock()
        self._waiting = 0
        #: Of the file that is being read: its limit, and when its turn ends where others wait.
        self._limit: asyncio.Timeout | None = None
        self._turn_ends = 0.0

    async def parse(self, path: Path, name: str, config: Config) -> Parsed:
        """Return the tasks of a file.

        Raises ``TaskFileError``, also where that would take too long or too much memory;
        ``OSError`` where the system refuses what it needs, or reading it hangs,
        ``SilentPathError`` where a path of it does not answer,
        ``NotPossibleError`` after an upgrade in place, and ``ChildBugError``.
        """
        # No key of a provider's leaves this process.
        environ = {name: config.environ[name] for name in _PLACES & config.environ.keys()}
        job = ParseJob(path=str(path), name=name, config=replace(config, environ=environ))
        turn_s, deaths = _TURN_S, 0
        while turn_s <= 2 * config.spool.max_parse_s:
            try:
                parts = await self._turn(job, turn_s)
            except ChildDiedError as error:
                deaths += 1
                hint = ""
                why = f"the process that reads it dies ({error}), perhaps for lack of memory"
                if error.code == -signal.SIGXCPU:
                    allowed = f"[spool] max_parse_s allows {config.spool.max_parse_s:g} s"
                    why = f"reading it takes too long: {allowed}"
                    hint = "split it, or make it simpler"
                elif deaths < _DEATHS:
                    continue
                raise TaskFileError((Problem("", why, hint),), name) from error
            else:
                if parts:
                    return _parsed(parts, job.path)
                turn_s *= 2
        raise OSError(errno.ETIMEDOUT, "reading it hangs", job.path)

    async def close(self) -> None:
        """End the process."""
        await self._children.close()

    async def _turn(self, job: ParseJob, turn_s: float) -> list[ParsedPart]:
        """Let the process parse a file in its turn; none: the turn is over, and others wait.

        Raises ``ChildDiedError``, and what ``parse`` raises.
        """
        loop = asyncio.get_running_loop()
        self._waiting += 1
        if self._limit:
            self._limit.reschedule(max(loop.time(), self._turn_ends))
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            async with asyncio.timeout(_HANGS_S) as limit:
                if not self._children.resting():
                    await code.insist("reads task files")
                async with self._children.one() as child:
                    # What it takes to start is not the file's.
                    self._turn_ends = loop.time() + turn_s
                    if self._waiting:
                        limit.reschedule(self._turn_ends)
                    self._limit = limit
                    return await _asked(child, job)
        except TimeoutError as error:
            if not limit.expired():
                raise
            if self._waiting:
                return []
            raise OSError(errno.ETIMEDOUT, "reading it hangs", job.path) from error
        finally:
            self._limit = None
            self._turns.release()


async def _asked(child: Child, job: ParseJob) -> list[ParsedPart]:
    await child.send(pickle.dumps(job))
    parts: list[ParsedPart] = []
    while not parts or not parts[-1].last:
        parts.append(_PART.decode(await child.answer()))
        # Where much is there already, others have their turn all the same.
        await asyncio.sleep(0)
    return parts


def _parsed(parts: list[ParsedPart], path: str) -> Parsed:
    """Return what is in a file. Raises what ``Parser.parse`` raises."""
    end = parts[-1]
    if end.problems:
        raise TaskFileError(end.problems)
    if end.silent:
        raise SilentPathError(end.silent)
    if end.refused:
        raise OSError(*end.refused, path)
    tasks = tuple(task for part in parts for task in part.parsed.tasks)
    return replace(end.parsed, tasks=tasks)
