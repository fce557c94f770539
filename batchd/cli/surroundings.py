"""The process's surroundings: what it inherits is made fit for use, as the process that starts
batchd may have closed the standard streams, use another encoding than UTF-8, or ignore that a child
ends; and what a user may not do here is said: which file says so, whose it is, how to go on.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import shlex
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from batchd.errors import ForbiddenError

_ERRORS = "batchd.escaped"


def repair() -> None:
    """Put /dev/null where a standard stream is closed, see to it that no letter is too much for
    one, and that the ends of children are reported, with how they ended.

    The number of a closed one would go to the next file that is opened, be it the log or the store,
    and a child would find that as its output.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest free number: this one
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 (it is to stay open)
    sys.stdout = sys.stdout or open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 (as above)
    sys.stderr = sys.stderr or open(2, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 (as above)
    codecs.register_error(_ERRORS, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    # Where the signal is ignored, the kernel reports none of them: no sandbox would be seen to
    # work. Where it is held back, the fork server learns of none: the daemon's end would wait.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Return what an encoding lacks as ``\u2192``: people can read that,
    and within JSON it means the same.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def barred(error: ForbiddenError, arguments: Sequence[str]) -> str:
    """Return what to say of an order, or a question, that is for another user."""
    return _with_fix(str(error), error.user, arguments)


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
    place = users.in_the_way(path)
    try:
        found = place.stat()
    except OSError:
        return f"{command}: {path}: {error.strerror}"
    user, group = users.user(found.st_uid), users.group(found.st_gid)
    said = (
        f"{command}: {path} is closed to this user: {place} belongs to {user}, group {group}, "
        f"with mode {stat.S_IMODE(found.st_mode):04o}"
    )
    if found.st_uid == os.geteuid():
        return f"{said}; give yourself access with chmod"
    return _with_fix(said, user, arguments)


def _with_fix(said: str, user: str, arguments: Sequence[str]) -> str:
    if not user:
        return said
    program = Path(sys.argv[0])
    user = f"#{user}" if user.isdecimal() else user
    name = str(program.resolve()) if program.name == "batchd" else "batchd"
    return f"{said}\nAs that user: sudo -u {shlex.join([user, name, *arguments])}"
