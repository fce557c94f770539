"""Has children of the daemon pack directories and lay them out:
what a task has written is touched in the sandbox alone.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from batchd.config import Config
from batchd.daemon.attempts import workspace_child
from batchd.daemon.attempts.workspace_child import WorkspaceChildren
from batchd.errors import FolderError, SandboxError, WorkspaceError
from batchd.records import Base, Pack, SandboxPolicy
from batchd.sandbox import directory
from batchd.sandbox.probe import someone
from batchd.workspace.workspace_job import Lay, PackUp, WorkspaceJob, WorkspaceOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryLayout:
    """What a directory becomes when it is laid out; the fields are those of ``Lay``."""

    directory: str
    fresh: bool
    base: Base | None
    changes: tuple[Pack, ...]


async def packed(
    children: WorkspaceChildren, config: Config, shelf: Path, path: str, *, mirror: bool = False
) -> Pack:
    """Return the pack of a directory, which is on the shelf by then.

    Raises ``WorkspaceError``, and ``OSError`` where the disk takes nothing.
    """
    most = config.workspace.max_mirror_bytes if mirror else config.sandbox.max_disk_bytes
    outcome = await _done(
        children,
        PackUp(
            directory=path,
            mirror=mirror,
            shelf=str(shelf),
            policy=config.sandbox_policy(),
            timeout_s=config.workspace.fetch_timeout_s,
            max_bytes=most,
        ),
        config.workspace.fetch_timeout_s,
    )
    if outcome.pack is None:
        raise WorkspaceError(f"{path} cannot be packed: {outcome.error}")
    return outcome.pack


async def laid(
    children: WorkspaceChildren, config: Config, shelf: Path, layout: DirectoryLayout
) -> str:
    """Lay a directory out; return why it cannot be, empty: it is.

    Raises ``OSError`` where the disk takes nothing.
    """
    policy = config.sandbox_policy()
    if not layout.changes and layout.base is None:
        if layout.fresh:
            await asyncio.to_thread(_made, layout.directory, policy)
        return ""
    outcome = await _done(
        children,
        Lay(
            directory=layout.directory,
            fresh=layout.fresh,
            base=layout.base,
            changes=layout.changes,
            shelf=str(shelf),
            policy=policy,
            timeout_s=config.workspace.fetch_timeout_s,
        ),
        config.workspace.fetch_timeout_s * (1 + len(layout.changes)),
    )
    return outcome.error


def _made(path: str, policy: SandboxPolicy) -> None:
    """Make a directory that is empty: the task has left nothing in it.

    Raises ``OSError``, ``SandboxUnavailableError``.
    """
    try:
        made, _ = directory.fresh(path, someone(policy))
    except (FolderError, SandboxError) as error:
        raise OSError(errno.EIO, str(error)) from error
    os.close(made)


async def _done(
    children: WorkspaceChildren, work: WorkspaceJob, limit_s: float
) -> WorkspaceOutcome:
    """Return how a child did it.

    Raises ``OSError`` and ``NotPossibleError`` where that is not possible for a while.
    """
    await workspace_child.fits()
    outcome = await children.asked(work, limit_s)
    if outcome.errno:
        raise OSError(outcome.errno, outcome.error)
    return outcome
