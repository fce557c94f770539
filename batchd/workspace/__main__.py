"""The daemon's child for mirrors and packs: reads jobs on its input, a line each,
writes a ``WorkspaceOutcome`` for each, and ends with the daemon.

Started as ``python -m batchd.workspace PID``, the number being the daemon's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders, free_room, processes
from batchd.errors import FolderError, SandboxError, SandboxUnavailableError, WorkspaceError
from batchd.workspace import fetching, travelling
from batchd.workspace.mirrors import Mirror
from batchd.workspace.workspace_job import FetchJob, Lay, PackUp, WorkspaceJob, WorkspaceOutcome


def main() -> int:
    """Do what is asked for, one after another."""
    processes.end_with(sys.argv[1])
    for line in sys.stdin.buffer:
        outcome = asyncio.run(_outcome(_work(line)))
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _work(text: bytes) -> WorkspaceJob:
    """Return what is asked for; a daemon of 0.1, which runs on until it is restarted,
    asks for fetching alone, without a type.
    """
    asked = decoders.decode(text, dict[str, Any])
    work: WorkspaceJob = decoders.convert({"type": FetchJob.__name__, **asked}, WorkspaceJob)
    return work


async def _outcome(work: WorkspaceJob) -> WorkspaceOutcome:
    try:
        match work:
            case FetchJob():
                return WorkspaceOutcome(commit=await _fetched(work))
            case PackUp():
                return WorkspaceOutcome(pack=await travelling.packed(work))
            case Lay():
                await travelling.laid(work)
                return WorkspaceOutcome()
    except (WorkspaceError, SandboxError, SandboxUnavailableError, FolderError) as error:
        return WorkspaceOutcome(error=str(error), errno=free_room.refused(error))
    except OSError as error:
        what = "fetched" if isinstance(work, FetchJob) else "done"
        return WorkspaceOutcome(
            error=f"it cannot be {what}: {error}", errno=free_room.refused(error)
        )


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
