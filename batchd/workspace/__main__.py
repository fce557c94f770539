"""The daemon's child for mirrors and packs: reads jobs on its input, a line each,
writes a ``WorkspaceOutcome`` for each, and ends with the daemon.

Started as ``python -m batchd.workspace PID``, the number being the daemon's.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from batchd import decoders
from batchd.errors import FolderError, SandboxError, SandboxUnavailableError, WorkspaceError
from batchd.workspace import fetching, travelling
from batchd.workspace.mirrors import Mirror
from batchd.workspace.workspace_job import FetchJob, Lay, PackUp, WorkspaceJob, WorkspaceOutcome

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do what is asked for, one after another."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return 1  # the daemon died before the line above
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
            case FetchJob(kept=kept):
                with Mirror(Path(kept).parent).locked():
                    return WorkspaceOutcome(commit=await fetching.fetched(work))
            case PackUp():
                return WorkspaceOutcome(pack=await travelling.packed(work))
            case Lay():
                await travelling.laid(work)
                return WorkspaceOutcome()
    except (WorkspaceError, SandboxError, SandboxUnavailableError, FolderError) as error:
        return WorkspaceOutcome(error=str(error), errno=travelling.refused(error))
    except OSError as error:
        what = "fetched" if isinstance(work, FetchJob) else "done"
        return WorkspaceOutcome(
            error=f"it cannot be {what}: {error}", errno=travelling.refused(error)
        )


if __name__ == "__main__":
    sys.exit(main())
