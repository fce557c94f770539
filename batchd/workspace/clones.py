"""The making of a task's clone, or copy, in its directory."""

from __future__ import annotations

from batchd.records import Base
from batchd.sandbox import Workplace
from batchd.workspace import git

_CLONE, _COPY = git.text("clone"), git.text("own_copy")


async def make(place: Workplace, base: Base, timeout_s: float) -> None:
    """Make the directory what a task begins with.

    Raises ``WorkspaceError``, ``SandboxError``, ``FolderError``.
    """
    if base.origin.kind == "copy":
        argv = git.script(_COPY, place.base)
    else:
        above = f"refs/heads/{base.branch}".rpartition("/")[0]
        argv = git.script(_CLONE, place.base, base.commit, base.branch, above)
    ran = await place.run(argv, timeout_s=timeout_s)
    git.insist(ran, f"{base.origin.source} cannot be made the task's own")
    place.begin()
