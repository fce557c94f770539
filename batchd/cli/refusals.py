"""Refusals of the system, in words: what is in the way, whose it is, how to go on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def failed(error: OSError) -> str:
    """Return what is the matter with a file, a folder or a stream."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, FileNotFoundError):  # getcwd's alone has no name
        return "the working directory is gone: change to one that exists"
    return error.strerror or str(error) or type(error).__name__


def closed(command: str, error: PermissionError, arguments: Sequence[str]) -> str:
    """Return what to say of a file that this user may not use."""
    # Where the words are ours and not the system's, they say what is to be done.
    if not isinstance(error.filename, str) or error.strerror != os.strerror(error.errno or 0):
        return f"{command}: {failed(error)}"
    from batchd import users  # few need it

    path = Path(error.filename)
    said = users.closed(f"{command}: {path} is closed to this user", path)
    return with_fix(str(said), said.user, arguments)


def with_fix(said: str, user: str, arguments: Sequence[str]) -> str:
    """Return what was said, and the same command as the user it is for, where one is known."""
    if not user:
        return said
    program = Path(sys.argv[0])
    user = f"#{user}" if user.isdecimal() else user
    name = str(program.resolve()) if program.name == "batchd" else "batchd"
    return f"{said}\nAs that user: sudo -u {shlex.join([user, name, *arguments])}"
