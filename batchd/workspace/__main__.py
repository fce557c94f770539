"""The daemon's child for mirrors and packs: reads what to do on its input, writes an ``Outcome``, and ends with the daemon.

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

from batchd.errors import FolderError, SandboxError, SandboxUnavailableError, WorkspaceError
from batchd.workspace import fetching, travelling
from batchd.workspace.job import Job, Lay, Outcome, PackUp, Work
from batchd.workspace.mirrors import Mirror

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do what is asked for."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return 1  # the daemon died before the line above
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_outcome(job))))
    return 0


async def _outcome(work: Work) -> Outcome:
    try:
        match work:
            case Job(kept=kept):
                with Mirror(Path(kept).parent).locked():
                    return Outcome(commit=await fetching.fetched(work))
            case PackUp():
                return Outcome(pack=await travelling.packed(work))
            case Lay():
                await travelling.laid(work)
                return Outcome()
    except (WorkspaceError, SandboxError, SandboxUnavailableError, FolderError) as error:
        return Outcome(error=str(error), errno=travelling.refused(error))
    except OSError as error:
        what = "fetched" if isinstance(work, Job) else "done"
        return Outcome(error=f"it cannot be {what}: {error}", errno=travelling.refused(error))


if __name__ == "__main__":
    sys.exit(main())
