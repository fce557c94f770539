"""The daemon's child for mirrors and directories:
one for each job, and none from files of another version.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import msgspec

from batchd import __version__, children, decoders
from batchd.errors import NotPossibleError
from batchd.pool import code
from batchd.pool.supervisor import RESTART
from batchd.workspace.workspace_job import WorkspaceJob, WorkspaceOutcome

_OUTCOME: msgspec.json.Decoder[WorkspaceOutcome] = decoders.decoder(WorkspaceOutcome)
#: How much longer than its own limit the child may take to say so, in seconds.
_GRACE_S = 30.0
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
            "the program that works on mirrors and directories has another version than this daemon,"
            f" batchd {__version__}: {RESTART}"
        )


async def asked(work: WorkspaceJob, limit_s: float) -> WorkspaceOutcome:
    """Return how a child did a job. Raises ``OSError``, ``msgspec.DecodeError``."""
    child = await asyncio.create_subprocess_exec(
        *children.module("batchd.workspace", str(os.getpid())),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        process_group=0,
    )
    try:
        async with asyncio.timeout(limit_s + _GRACE_S):
            answer, said = await child.communicate(msgspec.json.encode(work))
    except TimeoutError:
        return WorkspaceOutcome(error="it does not end")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if not answer:
        lines = said.decode(errors="replace").strip().splitlines()
        return WorkspaceOutcome(
            error=f"the program that works on it has died: {lines[-1] if lines else 'killed'}"
        )
    return _OUTCOME.decode(answer)
