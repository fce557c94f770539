"""The daemon's child for mirrors and packs: reads what to do on its input,
writes a ``FetchOutcome``, and ends with the daemon.

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
from batchd.workspace.fetch_job import FetchJob, FetchOutcome, Lay, PackUp, Work
from batchd.workspace.mirrors import Mirror

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Do what is asked for."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        return 1  # the daemon died before the line above
    job = _work(sys.stdin.buffer.read())
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_outcome(job))))
    return 0


def _work(text: bytes) -> Work:
    """Return what is asked for; a daemon of 0.1, which runs on until it is restarted,
    asks for fetching alone, without a type.
    """
    asked = decoders.decode(text, dict[str, Any])
    work: Work = decoders.convert({"type": FetchJob.__name__, **asked}, Work)
    return work


async def _outcome(work: Work) -> FetchOutcome:
    try:
        match work:
            case FetchJob(kept=kept):
                with Mirror(Path(kept).parent).locked():
                    return FetchOutcome(commit=await fetching.fetched(work))
            case PackUp():
                return FetchOutcome(pack=await travelling.packed(work))
            case Lay():
                await travelling.laid(work)
                return FetchOutcome()
    except (WorkspaceError, SandboxError, SandboxUnavailableError, FolderError) as error:
        return FetchOutcome(error=str(error), errno=travelling.refused(error))
    except OSError as error:
        what = "fetched" if isinstance(work, FetchJob) else "done"
        return FetchOutcome(error=f"it cannot be {what}: {error}", errno=travelling.refused(error))


if __name__ == "__main__":
    sys.exit(main())
