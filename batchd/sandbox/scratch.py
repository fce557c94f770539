"""A task's /tmp: a folder that lasts as long as the task,
over all of its commands, parking and restarts.

Open to all, as /tmp is, below one that only batchd may enter; commands get it by descriptor.
A check has another beside it, which is made for it and goes with it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from batchd import trees
from batchd.errors import SandboxError

_MODE = 0o1777
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def apart(path: str) -> str:
    """Return where a check has its own, by the path of its task's."""
    return f"{path}.check"


def remove(path: str) -> None:
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


def opened(path: str) -> int:
    """Make a task's /tmp where it is not there yet, and open it. Raises ``SandboxError``."""
    parent, name = os.path.split(path)
    try:
        above = _above(parent)
        try:
            try:
                os.mkdir(name, dir_fd=above)
            except FileExistsError:
                trees.let_in(above, name)  # a command may have closed it
            folder = os.open(name, _FLAGS, dir_fd=above)
        finally:
            os.close(above)
        os.fchmod(folder, _MODE)
    except OSError as error:
        raise SandboxError(f"the task's /tmp cannot be made: {error}") from error
    return folder
