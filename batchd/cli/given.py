"""Task files as users name them on a command line: read, and looked through."""

from __future__ import annotations

from pathlib import Path

from batchd import config
from batchd.cli import common
from batchd.errors import TaskFileError, UsageError
from batchd.log import escape
from batchd.spool import taskfile


def read_file(name: str, settings: config.Config) -> bytes:
    """Return a file that the user named. Raises ``UsageError``, ``TaskFileError``."""
    path = Path(name)
    if not path.exists():
        raise UsageError(f"there is no file {escape(name)}")
    # What the user names may be a link; what lies in the inbox may not.
    return taskfile.read(path.resolve(), settings.spool.max_file_bytes)


def parsed(data: bytes, name: str, settings: config.Config) -> taskfile.Parsed:
    """Return what a task file asks for. Raises ``TaskFileError``; says before that no configuration counts, where that is so."""
    try:
        return taskfile.parse(data, name, settings)
    except TaskFileError:
        if not settings.file:
            common.complain(f"batchd: {config.NO_FILE}")
        raise
