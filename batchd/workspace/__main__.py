"""The child that fetches: reads a ``Job`` on its input, writes an ``Outcome``, and ends with the daemon.

Started as ``python -m batchd.workspace PID``, the number being the daemon's.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path

import msgspec

from batchd.errors import SandboxError, SandboxUnavailableError, WorkspaceError
from batchd.workspace import fetching
from batchd.workspace.job import Job, Outcome
from batchd.workspace.mirrors import Mirror

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Fetch what is asked for."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return 1  # the daemon died before the line above
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_outcome(job))))
    return 0


async def _outcome(job: Job) -> Outcome:
    try:
        with Mirror(Path(job.kept).parent).locked():
            return Outcome(commit=await fetching.fetched(job))
    except (WorkspaceError, SandboxError, SandboxUnavailableError) as error:
        return Outcome(error=str(error))
    except OSError as error:
        return Outcome(error=f"it cannot be fetched: {error}")


if __name__ == "__main__":
    sys.exit(main())
