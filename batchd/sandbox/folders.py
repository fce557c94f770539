"""The folders that a task's commands are given, open."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from batchd import trees
from batchd.errors import SandboxError

_MODE = 0o1777
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class TaskFolders:
    """Descriptors: the task's directory, and its /tmp where that lasts."""

    #: -1 once it is closed.
    task: int
    tmp: int | None = None
    #: What its directory begins as, which commands see read-only;
    #: None: it begins empty, or is another's.
    base: int | None = None
    #: The task's own /tmp where commands are given another: it takes room all the same.
    kept: int | None = None
    #: Whether the directory was made just now: nothing is in it.
    new: bool = False
    #: Their paths, as they were opened.
    task_path: str = ""
    tmp_path: str = ""
    base_path: str = ""

    def __iter__(self) -> Iterator[int]:
        """Yield what is open."""
        if self.task >= 0:
            yield self.task
        yield from (each for each in (self.tmp, self.base, self.kept) if each is not None)

    def copy(self) -> TaskFolders:
        """Return descriptors of the same folders that outlive these. Raises ``OSError``."""
        made = replace(self, task=-1, tmp=None, base=None, kept=None)
        try:
            made.task = os.dup(self.task)
            made.tmp = None if self.tmp is None else os.dup(self.tmp)
            made.base = None if self.base is None else os.dup(self.base)
            made.kept = None if self.kept is None else os.dup(self.kept)
        except OSError:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Close them, once."""
        for descriptor in self:
            os.close(descriptor)
        self.task, self.tmp, self.base, self.kept = -1, None, None, None


def apart_tmp(path: str) -> str:
    """Return where a check has its own, by the path of its task's."""
    return f"{path}.check"


def remove_tmp(path: str) -> None:
    """Remove the /tmp of a check, if it is there. Raises ``SandboxError``."""
    try:
        trees.remove(path)
    except OSError as error:
        raise SandboxError(f"the /tmp of a former check cannot be removed: {error}") from error


def _above(path: str) -> int:
    """Open the folder of all of them, which the first one makes."""
    try:
        return os.open(path, _FLAGS)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            Path(path).mkdir(mode=0o700)
        return os.open(path, _FLAGS)


def open_tmp(path: str) -> int:
    """Make a task's /tmp where it is not there yet, and open it. Raises ``SandboxError``."""
    parent, name = os.path.split(path)
    try:
        with trees.held(_above(parent)) as above:
            try:
                os.mkdir(name, dir_fd=above)
            except FileExistsError:
                trees.let_in(above, name)  # a command may have closed it
            folder = os.open(name, _FLAGS, dir_fd=above)
        os.fchmod(folder, _MODE)
    except OSError as error:
        raise SandboxError(f"the task's /tmp cannot be made: {error}") from error
    return folder
