"""The daemon's child for mirrors: reads jobs on its input, a line each,
writes a ``FetchOutcome`` for each, and ends with the daemon.

Started as ``python -m batchd.workspace PID``, the number being the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import msgspec

from batchd import decoders, free_room, processes
from batchd.errors import FolderError, SandboxError, SandboxUnavailableError, WorkspaceError
from batchd.workspace import fetching
from batchd.workspace.fetch_job import FetchJob, FetchOutcome
from batchd.workspace.mirrors import Mirror


def main() -> int:
    """Do what is asked for, one after another."""
    processes.end_with(sys.argv[1])
    for line in sys.stdin.buffer:
        outcome = asyncio.run(_outcome(decoders.decode(line, FetchJob)))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()
    return 0


async def _outcome(job: FetchJob) -> FetchOutcome:
    try:
        return FetchOutcome(commit=await _fetched(job))
    except (WorkspaceError, SandboxError, SandboxUnavailableError, FolderError) as error:
        return FetchOutcome(error=str(error), errno=free_room.refused(error))
    except OSError as error:
        said = f"it cannot be fetched: {error}"
        return FetchOutcome(error=said, errno=free_room.refused(error))


async def _fetched(job: FetchJob) -> str:
    """Return the commit that a job fetches, noted as in use before another process has the mirror.

    Raises as ``fetching.fetched`` does, and ``OSError``.
    """
    mirror = Mirror(Path(job.kept).parent)
    with contextlib.ExitStack() as held:
        while True:
            mirror.prepare(job.origin.source)
            with contextlib.suppress(FileNotFoundError):  # who prunes has just removed it
                held.enter_context(mirror.locked())
                break
        try:
            commit = await fetching.fetched(job)
        except (OSError, SandboxError):
            if job.origin.remote or os.path.lexists(job.origin.source):  # noqa: ASYNC240 (it does nothing else)
                raise
            raise WorkspaceError("it is gone") from None
        if job.pin is not None:
            commits = {**job.pin.commits, job.origin.ref: commit}
            mirror.pin(msgspec.structs.replace(job.pin, commits=commits))
    return commit


if __name__ == "__main__":
    sys.exit(main())
