"""Where a task's directory lies on the machine of its worker,
and what is to be done for it there.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchd import wire
from batchd.sandbox import Workplace


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryPlaces:
    """Paths, as ``Sandbox.open`` takes them."""

    directory: str
    #: Whether it is made where it is not there yet.
    fresh: bool
    #: Its /tmp.
    tmp: str
    #: What it begins as; empty: it begins empty, or is another's.
    base: str


class LocalDirectory:
    """The directory of a task whose worker has the daemon's disk:
    what is written there is where it belongs.
    """

    #: Whether it may go on on another machine, where a file has another inode.
    travels = False

    def places(self, run: wire.Run) -> DirectoryPlaces:
        """Return where everything lies."""
        return DirectoryPlaces(
            directory=run.batch.directory(run.task),
            fresh=not run.task.dir,
            tmp=run.tmp,
            base=run.base.mirror if run.base else "",
        )

    async def arrive(self) -> None:
        """Bring the task's directory here, before the agent begins.

        Raises ``WorkspaceError`` where it cannot be made of what there is, ``SandboxError`` and
        ``OSError`` where this machine cannot have it,
        and ``FolderError`` where the agent is to stop before.
        """

    async def leave(self) -> None:
        """Take away what is needed no more. Raises ``OSError``."""

    async def begin(self, place: Workplace) -> None:
        """Take the directory as it is now for what the daemon has.

        Raises ``SandboxError``, ``WorkspaceError``.
        """

    async def keep(self, place: Workplace) -> None:
        """Return when the daemon has all that was changed there.

        Raises ``SandboxError``, ``WorkspaceError``, ``StaleAttemptError``, and ``FolderError``
        where the agent is to stop before the daemon's disk takes it.
        """
